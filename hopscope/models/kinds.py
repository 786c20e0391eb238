"""Provides the checks that a model is of the kind that was asked for."""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from hopscope.errors import ModelError
from hopscope.models.encoder_decoder import T5_TYPES, EncoderDecoder
from hopscope.models.language_model import LanguageModel

_Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase, str]


_Kind = type[LanguageModel] | type[EncoderDecoder]


def _check_code(config: dict[str, Any], name: str, trusted: bool) -> None:
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING and not trusted:
        raise ModelError(
            f"{name} (model_type {config.get('model_type')!r}) is not part of transformers and "
            f"needs Python code that comes with it ({json.dumps(config['auto_map'])}). Read that "
            "code first; if you trust it, pass trust_remote_code=True."
        )


def _check_type(config: dict[str, Any], name: str, kinds: tuple[_Kind, ...]) -> None:
    """Refuses a checkpoint of another kind before its weights are read."""
    model_type = config.get("model_type")
    if config.get("auto_map") and model_type not in CONFIG_MAPPING:
        return
    if model_type not in CONFIG_MAPPING:
        expected = "a causal language model such as 'llama'"
        if LanguageModel not in kinds:
            expected = "an encoder-decoder such as 't5'"
        raise ModelError(
            f"{name} has a config.json whose model_type is {model_type!r}, which this version of "
            f"transformers does not know; expected {expected}"
        )
    if not _is_t5(config) and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise _wrong_kind(config, name, kinds)
    _check_kind(config, name, kinds)


def _check_kind(config: dict[str, Any], name: str, kinds: tuple[_Kind, ...]) -> None:
    if _is_t5(config):
        fits = EncoderDecoder in kinds
    else:
        fits = LanguageModel in kinds and not _reads_both_ways(config)
    if not fits:
        raise _wrong_kind(config, name, kinds)


def _is_t5(config: dict[str, Any]) -> bool:
    """Whether it is an encoder-decoder whose parts are known."""
    return config.get("model_type") in T5_TYPES and config.get("is_encoder_decoder", True)


def _reads_both_ways(config: dict[str, Any]) -> bool:
    """Whether it is an encoder like BERT or an encoder-decoder like T5."""
    is_encoder = config.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(config.get("is_encoder_decoder") or (is_encoder and not config.get("is_decoder")))


def _wrong_kind(config: dict[str, Any], name: str, kinds: tuple[_Kind, ...]) -> ModelError:
    causal = "decoder-only one, such as Llama, Mistral, Qwen, Gemma, GPT-2, GPT-NeoX or OLMo"
    t5 = f"one of the types {', '.join(T5_TYPES)}, such as T5 or Flan-T5"
    if EncoderDecoder not in kinds:
        text = f"is not a causal language model; expected a {causal}"
        text += ". Load this one with load_encoder_decoder" if _is_t5(config) else ""
    elif LanguageModel not in kinds:
        text = f"is not an encoder-decoder that can be read here; expected {t5}"
        causal_too = config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if causal_too and not _reads_both_ways(config):
            text += ". Load this one with load_model"
    else:
        text = (
            "is not a causal language model, nor an encoder-decoder that can be read here; "
            f"expected a {causal}; or {t5}"
        )
    return ModelError(f"{name} (model_type {config.get('model_type')!r}) {text}")
