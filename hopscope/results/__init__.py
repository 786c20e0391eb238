"""Results as tables: run folders, provenance, and the wording of numbers."""
