"""The style of the figures and the pieces that they are made of."""

from hopscope.compat.old_paths import old_names

__getattr__ = old_names(__name__)
