"""Provides attention of many rows over one shared prefix, and the passes that use it.

A row attends to the prefix, which is stored once, and to its own tokens. The scores against the
prefix are one matrix product for all rows, so the prefix is never copied per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.masking_utils import causal_mask_function

from hopscope.display.progress import tell_done
from hopscope.engine.cache import (
    KeysValues,
    PassPlan,
    Prefix,
    Sees,
    StreamCache,
    all_before,
    by_rule,
)
from hopscope.engine.hooks import contiguous_rows
from hopscope.interrupts import interrupt_safe
from hopscope.models.language_model import LanguageModel

ATTENTION_NAME = "hopscope_shared_prefix"


class Pass(Cache):
    """One pass over a cache, as a model is given it: transformers' interface, and the plan.

    Args:
        cache: the keys and values of what came before; it grows by the tokens of the pass.
        plan: what the pass does.

    Attributes:
        at_layer: the block that runs.
    """

    def __init__(self, cache: StreamCache, plan: PassPlan) -> None:
        super().__init__(layers=[])
        self.cache, self.plan, self.at_layer = cache, plan, 0
        self._allowed: dict[tuple[Sees, int, int, torch.device], Tensor | None] = {}

    def allowed(self, sees: Sees | None, query: Tensor, n_keys: int) -> Tensor | None:
        """What the rule of a layer's own mask lets queries see; layers with one rule share it.

        Args:
            sees: the rule; None where each query sees all keys before it.
            query: shape (row, head, query, head_dim).
            n_keys: number of keys, the prefix's included.

        Returns:
            See `by_rule`; None where nothing is cut, as in a window that is wider than the prompt.
        """
        if sees is None:
            return None
        n_queries, device = query.shape[2], query.device
        asked = (sees, n_queries, n_keys, device)
        if asked not in self._allowed:
            positions = self.cache.key_positions(self.plan, n_keys, device)
            allowed = by_rule(sees, positions, n_queries)
            self._allowed[asked] = None if bool(allowed.all()) else allowed
        return self._allowed[asked]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> KeysValues:
        """Append the keys and values of the pass's tokens; all that the rows have of their own."""
        self.at_layer = layer_idx
        tell_done(layer_idx / len(self.cache.own))
        return self.cache.append((key_states, value_states), layer_idx, self.plan)

    def get_seq_length(self, layer_idx: int = 0, *_: Any, **__: Any) -> int:
        """Number of tokens that each row has seen."""
        return self.cache.n_seen(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the keys, as mask builders ask for them."""
        return self.get_seq_length(layer_idx) + query_length, 0


_active: ContextVar[Pass | None] = ContextVar("hopscope_pass", default=None)


@dataclass(frozen=True)
class LayerMask:
    """What a model's own mask says of a layer, in place of the tensor that a model makes of it.

    Attributes:
        sees: see `Sees`; None where a query sees itself and all keys before it.
    """

    sees: Sees | None


def layer_mask(
    *,
    mask_function: Callable[..., Any] = causal_mask_function,
    use_vmap: bool = False,
    **_: Any,
) -> LayerMask:
    """What transformers calls to build a layer's mask, with the rule by which it would build it.

    Raises:
        NotImplementedError: for a rule that cannot be asked about many tokens at once.
    """
    if use_vmap:
        raise NotImplementedError("this mask's rule takes one query and one key at a time")
    return LayerMask(None if mask_function is causal_mask_function else mask_function)


def shared_prefix_attention(
    module: nn.Module,
    query: Float[Tensor, "row head query head_dim"],
    key: Float[Tensor, "row kv_head own head_dim"],
    value: Float[Tensor, "row kv_head own value_dim"],
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "row query head value_dim"], Tensor | None]:
    """Attention of each row to the shared prefix and to its own tokens.

    The signature is that of transformers' attention functions. Its mask is the `LayerMask` of the
    layer, which knows of windows and chunks; the cache knows which tokens there are.
    """
    active = _active.get()
    assert active is not None, "hopscope's attention function is only used inside `attending`"
    assert isinstance(attention_mask, LayerMask), "this family makes masks of its own"
    cache, layer, n_queries = active.cache, active.at_layer, query.shape[2]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    n_keys = len(cache.prefix) + key.shape[2]
    allowed = active.allowed(attention_mask.sees, query, n_keys)
    visible = cache.visible(layer, active.plan, query, n_keys, allowed)
    plain = softcap is None and s_aux is None and cache.patterns is None
    if cache.fuses and plain and n_queries > 1:
        return _fused(query, key, value, visible, scale), None
    # In bfloat16, scores that are rounded err twenty times more than fused attention does.
    scores = _scores(cache, layer, query.float() * scale, key.float())
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if cache.scores is not None:
        cache.scores[layer] = scores.flatten(1, 2)
    if visible is None and n_queries > 1:
        visible = all_before(query, n_keys)
    if visible is not None:
        groups = scores.shape[2] if visible.shape[1] > 1 else 1
        visible = rearrange(visible, "row (kv group) q k -> row kv group q k", group=groups)
        scores = torch.where(visible, scores, torch.finfo(scores.dtype).min)
    weights = _softmax(scores, s_aux).to(value.dtype)
    given = active.plan.weights.get(layer)
    if given is not None:
        given = given.to(weights).view_as(weights)
        weights = torch.where(given.isnan(), weights, given)
    if cache.patterns is not None:
        cache.patterns[layer] = weights.flatten(1, 2)
    return _weighted(cache, layer, weights, value), None


def _scores(cache: StreamCache, layer: int, query: Tensor, key: Tensor) -> Tensor:
    """Products of queries and keys, the prefix's first: (row, kv_head, group, query, key)."""
    groups = query.shape[1] // key.shape[1]
    grouped = rearrange(query, "row (kv group) q d -> row kv (group q) d", group=groups)
    scores = grouped @ key.transpose(-1, -2)
    if len(cache.prefix):
        keys = cache.prefix.layers[layer][0][0].float()
        flat = rearrange(grouped, "row kv q d -> kv (row q) d") @ keys.transpose(-1, -2)
        before = rearrange(flat, "kv (row q) k -> row kv q k", row=len(query))
        scores = torch.cat([before, scores], dim=-1)
    return rearrange(scores, "row kv (group q) k -> row kv group q k", group=groups)


def _weighted(cache: StreamCache, layer: int, weights: Tensor, value: Tensor) -> Tensor:
    """The values summed by weights (row, kv_head, group, query, key): (row, query, head, d)."""
    groups = weights.shape[2]
    weights = rearrange(weights, "row kv group q k -> row kv (group q) k")
    output = weights[..., -value.shape[2] :] @ value
    if len(cache.prefix):
        values = cache.prefix.layers[layer][1][0]
        before = rearrange(weights[..., : len(cache.prefix)], "row kv q k -> kv (row q) k")
        rows = rearrange(before @ values, "kv (row q) d -> row kv q d", row=len(value))
        output = output + rows
    output = rearrange(output, "row kv (group q) d -> row q (kv group) d", group=groups)
    return output.contiguous()


def _fused(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, scale: float
) -> Tensor:
    """Torch's own attention under a mask, or (None) causally."""
    groups = query.shape[1] // key.shape[1]
    if query.is_cuda and groups > 1:  # its kernels with masks want a key for every head
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    output = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=visible,
        is_causal=visible is None,
        scale=scale,
        enable_gqa=key.shape[1] < query.shape[1],
    )
    return output.transpose(1, 2).contiguous()


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    shape = (*scores.shape[:-1], 1)
    column = rearrange(sinks, "(kv g) -> 1 kv g 1 1", kv=scores.shape[1]).expand(shape)
    joined = torch.cat([scores, column.to(scores.dtype)], dim=-1)
    return torch.softmax(joined, dim=-1, dtype=torch.float32)[..., :-1]


AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION_NAME, layer_mask)


@interrupt_safe
def attending(
    model: LanguageModel, cache: StreamCache, plan: PassPlan | None = None
) -> Iterator[Pass]:
    """Let the model's attention read `cache`, as `plan` says, while the context is open.

    Returns:
        What the model is given in place of a cache of its own.
    """
    remember_attention(model)
    active = Pass(cache, plan or PassPlan())
    token = _active.set(active)
    model.config._attn_implementation = ATTENTION_NAME
    try:
        yield active
    finally:
        model.config._attn_implementation = model.own_attention
        _active.reset(token)


def remember_attention(model: LanguageModel) -> None:
    """Remember the attention that a model has by itself; the engine's is never taken for it."""
    if model.config._attn_implementation != ATTENTION_NAME:
        model.own_attention = model.config._attn_implementation


def give_back_attention(model: LanguageModel) -> None:
    """Give a model its own attention back if it still has the engine's, from a pass that is over.

    Where it has and no pass is open, what ended the pass was cut short.
    """
    if _active.get() is None and model.config._attn_implementation == ATTENTION_NAME:
        model.config._attn_implementation = model.own_attention


def forward_streams(
    model: LanguageModel, cache: StreamCache, ids: Tensor, plan: PassPlan | None = None
) -> Tensor:
    """Run the next tokens of some rows.

    Args:
        model: the model.
        cache: the keys and values of what came before; it grows by these tokens.
        ids: shape (row, token).
        plan: what the pass does besides; nothing if None.

    Returns:
        Logits of each row's last token, shape (row, vocabulary); a pass may end with more rows
        than it begins with.
    """
    with attending(model, cache, plan) as active, contiguous_rows(model):
        output = model.forward(
            input_ids=ids,
            position_ids=cache.positions(ids.shape[1], active.plan, ids.device),
            use_cache=True,
            logits_to_keep=1,
            **{model.cache_argument: active},
        )
    return output.logits[:, -1]  # type: ignore[no-any-return]


@torch.no_grad()
def extend(model: LanguageModel, prefix: Prefix, ids: Sequence[int]) -> Prefix:
    """The prefix with more tokens behind it."""
    cache = StreamCache(prefix, model.n_layers)
    forward_streams(model, cache, torch.tensor([list(ids)], device=model.device))
    return cache.as_prefix(ids)
