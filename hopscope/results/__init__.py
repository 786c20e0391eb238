"""Results as tables: run folders, provenance, and the wording of numbers."""

from hopscope.compat.old_paths import old_names

__getattr__ = old_names(__name__)
