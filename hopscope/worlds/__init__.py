"""Small models trained from scratch on two-hop tasks whose answers and circuits are known."""

from hopscope.compat.old_paths import old_names

__getattr__ = old_names(__name__)
