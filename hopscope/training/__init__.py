"""Training of small models: settings, batches and one training loop."""

from hopscope.compat.old_paths import old_names

__getattr__ = old_names(__name__)
