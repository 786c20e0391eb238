"""Provides how models that other libraries have wrapped are unwrapped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hopscope.errors import ModelError
from hopscope.models.kinds import _Loaded
from hopscope.models.tiny import TINY_ENCODER_DECODERS, TINY_FAMILIES

logger = logging.getLogger(__name__)


def _comes_from(x: object, package: str) -> bool:
    """Whether the class of `x` is one of `package`, told without importing it."""
    return any(base.__module__.split(".")[0] == package for base in type(x).__mro__)


def _unwrap(x: object, tokenizer: PreTrainedTokenizerBase | None) -> _Loaded:
    """The Hugging Face model and tokenizer behind a loaded model of any supported kind."""
    if _comes_from(x, "transformer_lens"):
        hf, found = getattr(x, "original_model", None), getattr(x, "tokenizer", None)
        found = tokenizer or _without_added_bos(found)
    elif _comes_from(x, "nnsight"):
        hf, found = _unwrap_nnsight(x)
    else:
        hf, found = x, None
    if not isinstance(hf, PreTrainedModel):
        raise ModelError(
            f"cannot use a {type(x).__module__}.{type(x).__name__} as a model; expected a name, a "
            "path, a PreTrainedModel, a TransformerBridge, or an nnsight model of a transformers "
            "model"
        )
    origin = str(getattr(hf.config, "_name_or_path", "") or "")
    tokenizer = tokenizer or found or _tokenizer_of(hf, origin)
    # A folder is called by its last name, a hub id by the whole.
    default_name = Path(origin).name if Path(origin).is_dir() else origin
    return hf, tokenizer, default_name or hf.config.model_type


def _unwrap_nnsight(x: Any) -> tuple[Any, Any]:
    """The module inside an nnsight model, whose weights are read now if they are not yet."""
    if not getattr(x, "dispatched", True):
        x.dispatch()
    return x._module, getattr(x, "tokenizer", None)


def _without_added_bos(tokenizer: Any) -> Any:
    """The model's own tokenizer, where TransformerLens has read it again with `add_bos_token`.

    It does so for each tokenizer that has a BOS token, also where the model was trained without
    one, as SmolLM2 was; prompts would then not be those that the model gets elsewhere.
    """
    if tokenizer is None or not tokenizer.init_kwargs.get("add_bos_token"):
        return tokenizer
    if tokenizer.name_or_path in (*TINY_FAMILIES, *TINY_ENCODER_DECODERS):
        return tokenizer
    try:
        return AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    except (OSError, ValueError):
        logger.warning(
            "the tokenizer of the TransformerBridge adds a BOS token, and that of %r cannot be "
            "read to see whether it should; pass tokenizer= to be sure",
            tokenizer.name_or_path,
        )
        return tokenizer


def _tokenizer_of(hf: PreTrainedModel, origin: str) -> PreTrainedTokenizerBase:
    try:
        if not origin:
            raise ValueError("the model does not say where it was loaded from")
        return AutoTokenizer.from_pretrained(origin)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot find the tokenizer of this {type(hf).__name__}: {error}. Pass tokenizer=."
        ) from error
