"""Provides to_transformer_lens(): a model as a TransformerLens bridge over the same parameters."""

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
    """The model as a TransformerLens bridge over the same parameters.

    A bridge replaces the modules of its model in place, so this one gets module objects of its
    own; `model` stays as it is. The parameters are shared, not copied: a weight that is changed in
    one is changed in the other. Only where a family has queries, keys and values in one matrix may
    TransformerLens compute with a copy of its parts (GPT-NeoX does). `enable_compatibility_mode`
    gives the bridge weights of its own.

    The bridge tokenises a text as the model's tokenizer does, with no BOS token beyond that. It
    keeps attention results (`attn.hook_result`) after `bridge.set_use_attn_result(True)`.

    Args:
        model: the model; one that was loaded from a bridge gives back that very bridge, with
            whatever was done to it.

    Returns:
        The bridge, in eager attention, on the model's device and in its dtype.

    Raises:
        ModelError: if TransformerLens does not support the family.

    Example:
        >>> bridge = hs.load_model("tiny-random-llama").to_transformer_lens()  # doctest: +SKIP
        >>> logits, cache = bridge.run_with_cache(ids)                         # doctest: +SKIP
    """
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model.wrapped, TransformerBridge):
        return model.wrapped
    # TransformerLens sets special tokens in place, and reads a tokenizer that adds no BOS token
    # again, from the hub, to have one that does.
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.init_kwargs["add_bos_token"] = True
    hf = copy_of_modules(model.hf)
    hf.config.architectures = [type(hf).__name__]  # not set where a model was made from a config
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
            f"{textwrap.shorten(str(error).partition('. ')[0], 200)}. Use hopscope's own capture "
            "and edit on it."
        ) from error
    tokenizer.init_kwargs = copy.deepcopy(model.tokenizer.init_kwargs)
    bridge.cfg.default_prepend_bos = bridge.cfg.tokenizer_prepends_bos
    return bridge


def copy_of_modules(module: _Module) -> _Module:
    """The same model in other module objects; parameters and buffers are shared, not copied.

    What wraps the copy in place, or hooks it, leaves the original alone.

    Example:
        >>> one = nn.Linear(2, 3)
        >>> other = copy_of_modules(one)
        >>> other is one, other.weight is one.weight
        (False, True)
    """
    shared: dict[int, Any] = {id(p): p for p in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
