"""Provides models: `load_model` and its kin, and the views of what they load.

`LanguageModel` is a decoder-only model, `EncoderDecoder` a T5-like one.
"""

from hopscope.models.encoder_decoder import EncoderDecoder as EncoderDecoder
from hopscope.models.language_model import LanguageModel as LanguageModel
from hopscope.models.load import load_any as load_any
from hopscope.models.load import load_encoder_decoder as load_encoder_decoder
from hopscope.models.load import load_model as load_model
