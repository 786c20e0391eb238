"""Results as tables: run folders, provenance, and the wording of numbers."""

from hopscope.compat.old_paths import names_in, old_names

__getattr__, __dir__ = old_names(__name__), names_in(__name__)
