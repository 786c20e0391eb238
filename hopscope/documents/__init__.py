"""Questions over several documents: files, orders, layouts and templates."""

from hopscope.compat.old_paths import old_names

__getattr__ = old_names(__name__)
