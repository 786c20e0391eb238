"""Provides the keys and values of many rows over one shared prefix, and attention over them.

A row attends to the prefix, which is stored once, and to its own tokens. The scores against the
prefix are one matrix product for all rows, so the prefix is never copied per row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from hopscope.engine.cache import MaskedCache, Prefix, StreamCache
from hopscope.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

ATTENTION_NAME = "hopscope_shared_prefix"


_active: ContextVar[StreamCache | None] = ContextVar("hopscope_stream_cache", default=None)


def shared_prefix_attention(
    module: nn.Module,
    query: Float[Tensor, "row head query head_dim"],
    key: Float[Tensor, "row kv_head own head_dim"],
    value: Float[Tensor, "row kv_head own head_dim"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "row query head head_dim"], Tensor | None]:
    """Attention of each row to the shared prefix and to its own tokens, both causal.

    The signature is that of transformers' attention functions; its mask is not used, since
    what a token sees follows from its position.
    """
    cache = _active.get()
    assert cache is not None, "hopscope's attention function is only used inside `attending`"
    groups = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = rearrange(query, "row (kv group) q d -> row kv (group q) d", group=groups)
    visible = None
    if isinstance(cache, MaskedCache):
        visible = cache.sees(query.shape[2], sliding_window, query.device)
        plain = softcap is None and s_aux is None and cache.patterns is None
        if plain and query.shape[2] > 1:
            return _fused(query, key, value, visible, scale), None
    before = cache.prefix.layers[cache.at_layer] if len(cache.prefix) else None
    parts = [] if before is None else [_prefix_scores(grouped, before[0])]
    scores = torch.cat([*parts, grouped @ key.transpose(-1, -2)], dim=-1) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = rearrange(scores, "row kv (group q) k -> row kv group q k", group=groups)
    if cache.scores is not None:
        cache.scores[cache.at_layer] = rearrange(scores, "row kv g q k -> row (kv g) q k")
    if visible is not None:
        group = groups if visible.shape[1] > 1 else 1
        seen = rearrange(visible, "row (kv group) q k -> row kv group q k", group=group)
        hidden: Tensor | None = ~seen
    else:
        sizes = query.shape[2], scores.shape[-1]
        hidden = _hidden_keys(cache, *sizes, sliding_window, scores.device)
    if hidden is not None:
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    blocked = cache.blocked.get(cache.at_layer)
    if blocked is not None:
        group = groups if blocked.shape[1] > 1 else 1
        blocked = rearrange(blocked, "row (kv group) q k -> row kv group q k", group=group)
        scores = scores.masked_fill(blocked.to(scores.device), torch.finfo(scores.dtype).min)
    weights = _softmax(scores, s_aux).to(value.dtype)
    if cache.patterns is not None:
        cache.patterns[cache.at_layer] = rearrange(weights, "row kv g q k -> row (kv g) q k")
    weights = rearrange(weights, "row kv group q k -> row kv (group q) k")
    output = weights[..., -key.shape[2] :] @ value
    if before is not None:
        output = output + _prefix_values(weights[..., : len(cache.prefix)], before[1])
    output = rearrange(output, "row kv (group q) d -> row q (kv group) d", group=groups)
    return output.contiguous(), None


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


def _prefix_scores(grouped: Tensor, keys: Tensor) -> Tensor:
    rows = grouped.shape[0]
    flat = rearrange(grouped, "row kv q d -> kv (row q) d")
    return rearrange(flat @ keys[0].transpose(-1, -2), "kv (row q) k -> row kv q k", row=rows)


def _prefix_values(weights: Tensor, values: Tensor) -> Tensor:
    rows = weights.shape[0]
    flat = rearrange(weights, "row kv q k -> kv (row q) k")
    return rearrange(flat @ values[0], "kv (row q) d -> row kv q d", row=rows)


def _hidden_keys(
    cache: StreamCache, n_queries: int, n_keys: int, window: int | None, device: torch.device
) -> Tensor | None:
    """Which keys a query does not see: later ones, those outside the window, and padding.

    Returns:
        Booleans that broadcast to (row, kv_head, group, query, key), or None if it sees all.
    """
    if cache.padding is None and n_queries == 1 and (window is None or n_keys <= window):
        return None
    keys = torch.arange(n_keys, device=device)
    queries, own = keys[-n_queries:, None], keys >= len(cache.prefix)
    padding: Tensor | int = 0
    if cache.padding is not None:
        padding = rearrange(cache.padding.to(device), "row -> row 1 1 1 1")
    distance = (queries - padding) - (keys - padding * own)
    hidden = (distance < 0) | (own & (keys < len(cache.prefix) + padding))
    return hidden if window is None else hidden | (distance >= window)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    shape = (*scores.shape[:-1], 1)
    column = rearrange(sinks, "(kv g) -> 1 kv g 1 1", kv=scores.shape[1]).expand(shape)
    joined = torch.cat([scores, column.to(scores.dtype)], dim=-1)
    return torch.softmax(joined, dim=-1, dtype=torch.float32)[..., :-1]


AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)


@contextmanager
def attending(model: LanguageModel, cache: StreamCache) -> Iterator[None]:
    """Let the model's attention read `cache` while the context is open."""
    before = model.config._attn_implementation
    token = _active.set(cache)
    model.config._attn_implementation = ATTENTION_NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
        _active.reset(token)


def forward_streams(
    model: LanguageModel,
    cache: StreamCache,
    ids: Tensor,
    seen: int = 0,
    positions: Tensor | None = None,
) -> Tensor:
    """Run rows of tokens that follow `seen` earlier ones.

    Args:
        model: the model.
        cache: the keys and values of what came before; it grows by these tokens.
        ids: shape (rows, tokens).
        seen: number of tokens before, padding included.
        positions: their position ids, shape (rows, tokens), where they do not just follow.

    Returns:
        Logits of each row's last token, shape (rows, vocabulary).
    """
    if positions is None:
        positions = torch.arange(seen, seen + ids.shape[1], device=ids.device)[None]
        if cache.padding is not None:
            positions = (positions - cache.padding[:, None]).clamp(min=0)
    with attending(model, cache):
        output = model.hf(
            input_ids=ids,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{model.cache_argument: cache},
        )
    return output.logits[:, -1]  # type: ignore[no-any-return]


@torch.no_grad()
def extend(model: LanguageModel, prefix: Prefix, ids: Sequence[int]) -> Prefix:
    """The prefix with more tokens behind it."""
    cache = StreamCache(prefix, model.n_layers)
    row = torch.tensor([list(ids)], device=model.device)
    forward_streams(model, cache, row, len(prefix))
    return cache.as_prefix(ids)
