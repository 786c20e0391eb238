"""Provides language models: `load_model`, and `LanguageModel`, the one view of all of them."""

from hopscope.models.language_model import LanguageModel as LanguageModel
from hopscope.models.load import load_model as load_model
