"""Provides unwrap(): the Hugging Face model inside an object of another library."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hopscope.errors import ModelError, UnusableModelError
from hopscope.models.kinds import LoadedParts
from hopscope.models.tiny import TINY_ENCODER_DECODERS, TINY_FAMILIES

logger = logging.getLogger(__name__)


def _comes_from(x: object, package: str) -> bool:
    """Return whether the class of `x` comes from `package`, without importing the package."""
    return any(base.__module__.split(".")[0] == package for base in type(x).__mro__)


def unwrap(x: object, tokenizer: PreTrainedTokenizerBase | None) -> LoadedParts:
    """Return the Hugging Face model, the tokenizer and the default name of a loaded model.

    Args:
        x: a `PreTrainedModel`, a TransformerLens bridge, an nnsight model, or a peft model.
        tokenizer: the tokenizer to use instead of the model's own.

    Raises:
        UnusableModelError: if `x` is none of these.
        ModelError: if it learned a prompt, or if its tokenizer cannot be
            found.
    """
    if _comes_from(x, "transformer_lens"):
        hf = getattr(x, "original_model", None)
        own_tokenizer = tokenizer or _without_added_bos(getattr(x, "tokenizer", None))
    elif _comes_from(x, "nnsight"):
        hf, own_tokenizer = _unwrap_nnsight(x)
    elif _comes_from(x, "peft"):
        hf, own_tokenizer = _unwrap_peft(x), None
    else:
        hf, own_tokenizer = x, None
    if not isinstance(hf, PreTrainedModel):
        raise UnusableModelError(
            f"cannot use a {type(x).__module__}.{type(x).__name__} as a model; expected a name, a "
            "path, a PreTrainedModel, a TransformerBridge, or an nnsight or peft model of a "
            "transformers model"
        )
    origin = str(getattr(hf.config, "_name_or_path", "") or "")
    tokenizer = tokenizer or own_tokenizer or _tokenizer_of(hf, origin)
    # The name is the last part of a folder, or the whole hub id.
    default_name = Path(origin).name if Path(origin).is_dir() else origin
    return hf, tokenizer, default_name or hf.config.model_type


def _unwrap_nnsight(x: Any) -> tuple[Any, Any]:
    """Return the module and tokenizer of an nnsight model, loading its weights if necessary."""
    if not getattr(x, "dispatched", True):
        x.dispatch()
    return x._module, getattr(x, "tokenizer", None)


def _unwrap_peft(x: Any) -> Any:
    """Return the model that holds the adapters, which act in it as long as they are active.

    Raises:
        ModelError: if what was learned is no adapter in the model, but stands before each prompt.
    """
    if any(getattr(each, "is_prompt_learning", False) for each in x.peft_config.values()):
        raise ModelError(
            f"this {type(x).__name__} learned a prompt, which stands before each text and would be "
            "missing here; expected adapters in the model itself, such as LoRA"
        )
    return x.get_base_model()


def _without_added_bos(tokenizer: Any) -> Any:
    """Return the model's own tokenizer if TransformerLens has reloaded it with `add_bos_token`.

    TransformerLens does so for every tokenizer with a BOS token, even if the model was trained
    without one, as SmolLM2 was. Prompts would then differ from those of the other libraries.
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
            "loaded to check whether it should; pass tokenizer= to be sure",
            tokenizer.name_or_path,
        )
        return tokenizer


def _tokenizer_of(hf: PreTrainedModel, origin: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer from the folder or hub id that the model was loaded from."""
    try:
        if not origin:
            raise ValueError("the model does not record where it was loaded from")
        return AutoTokenizer.from_pretrained(origin)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot find the tokenizer of this {type(hf).__name__}: {error}. Pass tokenizer=."
        ) from error
