"""Presets, studies that run every analysis, the figures, and the HTML report."""

from hopscope.compat.old_paths import old_names

__getattr__ = old_names(__name__)
