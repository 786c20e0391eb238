"""Provides checks that a model is of the requested class: decoder-only or encoder-decoder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from hopscope.errors import ModelError, UntrustedModelError, UnusableModelError
from hopscope.models.encoder_decoder import T5_TYPES, EncoderDecoder
from hopscope.models.language_model import LanguageModel

LoadedParts = tuple[PreTrainedModel, PreTrainedTokenizerBase, str]
"""A model, its tokenizer and its name in results."""

ModelClass = type[LanguageModel] | type[EncoderDecoder]

COMPUTED = (".attn.bias", ".attention.bias", ".masked_bias", ".inv_freq")
"""How names of causal masks and rotary frequencies end, which were saved and are now computed."""


def check_remote_code(config: dict[str, Any], name: str, trusted: bool) -> None:
    """Raise an error if a checkpoint needs its own Python code and that is not trusted."""
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING and not trusted:
        raise UntrustedModelError(
            f"{name} (model_type {config.get('model_type')!r}) is not part of transformers and "
            f"needs Python code from its checkpoint ({json.dumps(config['auto_map'])}). Read that "
            "code first; if you trust it, pass trust_remote_code=True."
        )


def check_model_type(config: dict[str, Any], name: str, classes: tuple[ModelClass, ...]) -> None:
    """Raise a ModelError for a checkpoint of another class, before its weights are read."""
    model_type = config.get("model_type")
    if config.get("auto_map") and model_type not in CONFIG_MAPPING:
        return
    if model_type not in CONFIG_MAPPING:
        expected = "a causal language model such as 'llama'"
        if LanguageModel not in classes:
            expected = "an encoder-decoder such as 't5'"
        raise UnusableModelError(
            f"{name} has a config.json whose model_type is {model_type!r}, which this version of "
            f"transformers does not know; expected {expected}"
        )
    causal = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or reads_images(config)
    if not is_t5(config) and not causal:
        raise wrong_class_error(config, name, classes)
    check_class(config, name, classes)


def check_class(config: dict[str, Any], name: str, classes: tuple[ModelClass, ...]) -> None:
    """Raise a ModelError if a model belongs to none of the given classes."""
    if is_t5(config):
        fits = EncoderDecoder in classes
    else:
        fits = LanguageModel in classes and not _is_bidirectional(config)
    if not fits:
        raise wrong_class_error(config, name, classes)


def reads_images(config: dict[str, Any]) -> bool:
    """Return whether a configuration is that of a text decoder together with a vision tower.

    Some types have the decoder alone, too; then it counts which of the two was saved.
    """
    model_type, saved = str(config.get("model_type")), config.get("architectures") or ()
    whole = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(model_type)
    decoder = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    return whole is not None and (decoder is None or (whole != decoder and whole in saved))


def check_complete(hf: PreTrainedModel, report: Mapping[str, Iterable[str]]) -> None:
    """Check that a checkpoint filled a model, and was used up.

    Older checkpoints also hold buffers that models compute, such as GPT-Neo's causal masks: those
    may be left over.

    Args:
        hf: the model.
        report: what `from_pretrained` says of the names that did not fit, `missing_keys` and
            `unexpected_keys`.

    Raises:
        ValueError: if there are such names.
    """
    missing, unexpected = (sorted(report[f"{kind}_keys"]) for kind in ("missing", "unexpected"))
    if missing:
        raise ValueError(
            f"{len(missing)} parameters are missing from the weights, such as {missing[0]}; "
            "they would be random"
        )
    prefix = f"{hf.base_model_prefix}."  # checkpoints of the base model leave it out
    buffers = {name.removeprefix(prefix) for name, _ in hf.named_buffers()}
    unexpected = [
        name
        for name in unexpected
        if name.removeprefix(prefix) not in buffers and not name.endswith(COMPUTED)
    ]
    if unexpected:
        raise ValueError(
            f"{len(unexpected)} weights have no place in the model that the configuration "
            f"describes, such as {unexpected[0]}; they would be left out. If that is meant, load "
            "the model with transformers, and give the loaded model"
        )


def is_t5(config: dict[str, Any]) -> bool:
    """Return whether a configuration is that of a supported encoder-decoder."""
    return config.get("model_type") in T5_TYPES and config.get("is_encoder_decoder", True)


def _is_bidirectional(config: dict[str, Any]) -> bool:
    """Return whether a configuration is that of an encoder (BERT) or encoder-decoder (T5)."""
    is_encoder = config.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(config.get("is_encoder_decoder") or (is_encoder and not config.get("is_decoder")))


def wrong_class_error(
    config: dict[str, Any], name: str, classes: tuple[ModelClass, ...]
) -> ModelError:
    """Return the error for a model of another class, with what was expected."""
    causal = "decoder-only one, such as Llama, Mistral, Qwen, Gemma, GPT-2, GPT-NeoX or OLMo"
    t5 = f"one of the types {', '.join(T5_TYPES)}, such as T5 or Flan-T5"
    if EncoderDecoder not in classes:
        text = f"is not a causal language model; expected a {causal}"
        text += ". Load this one with load_encoder_decoder" if is_t5(config) else ""
    elif LanguageModel not in classes:
        text = f"is not an encoder-decoder that can be read here; expected {t5}"
        causal_too = config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if causal_too and not _is_bidirectional(config):
            text += ". Load this one with load_model"
    else:
        text = (
            "is not a causal language model, nor an encoder-decoder that can be read here; "
            f"expected a {causal}; or {t5}"
        )
    return UnusableModelError(f"{name} (model_type {config.get('model_type')!r}) {text}")
