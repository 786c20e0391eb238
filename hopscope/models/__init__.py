"""Provides `load_model` and related functions, and the classes of the models that they load.

`LanguageModel` is a decoder-only model, `EncoderDecoder` a T5-like one.
"""

from hopscope.compat.old_paths import names_in, old_names

__getattr__, __dir__ = old_names(__name__), names_in(__name__)
