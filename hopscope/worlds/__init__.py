"""Small models trained from scratch on two-hop tasks whose answers and circuits are known."""

from hopscope.compat.old_paths import names_in, old_names

__getattr__, __dir__ = old_names(__name__), names_in(__name__)
