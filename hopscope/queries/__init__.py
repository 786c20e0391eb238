"""Two-hop queries: files, prompts, demonstrations and answers."""

from hopscope.compat.old_paths import old_names

__getattr__ = old_names(__name__)
