"""Provides to_transformer_lens(): a TransformerLens bridge that shares a model's parameters."""

from __future__ import annotations

import copy
import textwrap
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from hopscope.errors import ModelError
from hopscope.models.token_model import TokenModel

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


_Module = TypeVar("_Module", bound=nn.Module)


def to_transformer_lens(model: TokenModel) -> TransformerBridge:
    """Return a TransformerLens bridge that shares the parameters of a model.

    A bridge replaces the modules of its model in place, so that this one is built on copies of the
    module objects, and `model` is not changed. Parameters are shared: a weight that is changed in
    one is changed in the other. The exception are families with one matrix for queries, keys and
    values, where TransformerLens may compute with copies of its parts (GPT-NeoX).
    `enable_compatibility_mode` gives the bridge its own weights.

    The bridge tokenises a text like the model's tokenizer, and adds no further BOS token. It stores
    attention results (`attn.hook_result`) after `bridge.set_use_attn_result(True)`.

    Args:
        model: the model. If it was loaded from a bridge, that same bridge is returned.

    Returns:
        The bridge with eager attention, on the device and in the dtype of the model.

    Raises:
        ModelError: if TransformerLens does not support the family.

    Example:
        >>> bridge = hs.load_model("tiny-random-llama").to_transformer_lens()  # doctest: +SKIP
        >>> logits, cache = bridge.run_with_cache(ids)                         # doctest: +SKIP
    """
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model.wrapped, TransformerBridge):
        return model.wrapped
    # TransformerLens sets special tokens in place, and loads a tokenizer that adds no BOS token
    # again from the hub with one that does.
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.init_kwargs["add_bos_token"] = True
    hf = copy_of_modules(model.hf)
    hf.config.architectures = [type(hf).__name__]  # not set for a model built from a config
    try:
        bridge = TransformerBridge.boot_transformers(
            model.name,
            hf_model=hf,
            tokenizer=tokenizer,
            device=str(model.device),
            dtype=model.dtype,
        )
    except (ValueError, KeyError, AttributeError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"TransformerLens {version('transformer-lens')} does not support "
            f"{type(model.hf).__name__} (model_type {model.hf.config.model_type!r}): "
            f"{textwrap.shorten(str(error).partition('. ')[0], 200)}. Use hopscope's capture "
            "and edit instead."
        ) from error
    tokenizer.init_kwargs = copy.deepcopy(model.tokenizer.init_kwargs)
    bridge.cfg.default_prepend_bos = bridge.cfg.tokenizer_prepends_bos
    return bridge


def copy_of_modules(module: _Module) -> _Module:
    """Return a copy of the module objects of a model that shares its parameters and buffers.

    Hooks on the copy, and wrappers that replace its modules in place, do not affect the original.

    Example:
        >>> one = nn.Linear(2, 3)
        >>> other = copy_of_modules(one)
        >>> other is one, other.weight is one.weight
        (False, True)
    """
    shared: dict[int, Any] = {id(p): p for p in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
