"""Provides `load_model` and related functions, and the classes of the models that they load.

`LanguageModel` is a decoder-only model, `EncoderDecoder` a T5-like one.
"""

from hopscope.compat.old_paths import old_names

__getattr__ = old_names(__name__)
