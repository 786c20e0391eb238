"""Attention masks: their algebra, the named ones, and how they are lowered for a model."""

from hopscope.compat.old_paths import names_in, old_names

__getattr__, __dir__ = old_names(__name__), names_in(__name__)
