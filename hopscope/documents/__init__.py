"""Questions over several documents: files, orders, layouts and templates."""

from hopscope.compat.old_paths import names_in, old_names

__getattr__, __dir__ = old_names(__name__), names_in(__name__)
