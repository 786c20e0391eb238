"""Attention masks: their algebra, the named ones, and how they are lowered for a model."""

from hopscope.compat.old_paths import old_names

__getattr__ = old_names(__name__)
