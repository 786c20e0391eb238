"""The figures: one script each, which draws from saved results."""
