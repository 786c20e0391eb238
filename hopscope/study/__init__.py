"""Presets, studies that run every analysis, the figures, and the HTML report."""
