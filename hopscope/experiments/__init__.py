"""The analyses, one module each."""

from hopscope.compat.old_paths import old_names

__getattr__ = old_names(__name__)
