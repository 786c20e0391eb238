"""Provides the keys and values of many rows over one shared prefix, and attention over them.

A row attends to the prefix, which is stored once, and to its own tokens. The scores against the
prefix are one matrix product for all rows, so the prefix is never copied per row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, Cache

from hopscope.engine.hooks import rewriting_residual
from hopscope.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

ATTENTION_NAME = "hopscope_shared_prefix"
KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Prefix:
    """Tokens that all rows begin with, and their keys and values.

    Attributes:
        ids: the tokens.
        layers: for each block keys and values, each of shape (1, kv_heads, len(ids), head_dim);
            empty when there is no token.
    """

    ids: tuple[int, ...] = ()
    layers: tuple[KeysValues, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def crop(self, length: int) -> Prefix:
        """Its first `length` tokens; the tensors are views."""
        if not length:
            return Prefix()
        kept = tuple((keys[:, :, :length], values[:, :, :length]) for keys, values in self.layers)
        return Prefix(self.ids[:length], kept)


class StreamCache(Cache):
    """The rows' own keys and values, beside a prefix that they share.

    Args:
        prefix: what all rows have in common.
        n_layers: number of blocks.
        record_patterns: keep the attention weights of the last pass in `patterns`.
        record_scores: keep what they are the softmax of in `scores`, before anything is masked.

    Attributes:
        padding: number of each row's own first tokens that are padding, if any are.
        blocked: by block, the edges of the next pass that are blocked: booleans of shape
            (row, head or 1, query, key), the prefix's keys included.
    """

    def __init__(
        self,
        prefix: Prefix,
        n_layers: int,
        record_patterns: bool = False,
        record_scores: bool = False,
    ) -> None:
        super().__init__(layers=[])
        self.prefix = prefix
        self.own: list[KeysValues | None] = [None] * n_layers
        self.parents: list[Tensor | None] = [None] * n_layers
        self.padding: Tensor | None = None
        self.blocked: Mapping[int, Tensor] = {}
        self.patterns: dict[int, Tensor] | None = {} if record_patterns else None
        self.scores: dict[int, Tensor] | None = {} if record_scores else None
        self.at_layer = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> KeysValues:
        """Append this pass's tokens, after each row has taken over its parent's past."""
        keys, values = key_states, value_states
        past = self.own[layer_idx]
        if past is not None:
            past_keys, past_values = (self._inherited(part, layer_idx) for part in past)
            keys = torch.cat([past_keys, keys], dim=2)
            values = torch.cat([past_values, values], dim=2)
        self.own[layer_idx] = (keys, values)
        self.at_layer = layer_idx
        return keys, values

    def _inherited(self, part: Tensor, layer_idx: int) -> Tensor:
        parents = self.parents[layer_idx]
        return part if parents is None else part.index_select(0, parents.to(part.device))

    def get_seq_length(self, layer_idx: int = 0, *_: Any, **__: Any) -> int:
        """Number of tokens that each row has seen."""
        own = self.own[layer_idx]
        return len(self.prefix) + (0 if own is None else own[0].shape[2])

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the keys, as mask builders ask for them."""
        return self.get_seq_length(layer_idx) + query_length, 0

    def as_prefix(self, ids: Sequence[int]) -> Prefix:
        """The prefix with the tokens of a single row behind it."""
        layers = []
        for layer, own in enumerate(self.own):
            assert own is not None
            before = self.prefix.layers[layer] if len(self.prefix) else None
            parts = [own] if before is None else [before, own]
            layers.append(tuple(torch.cat(both, dim=2) for both in zip(*parts, strict=True)))
        return Prefix((*self.prefix.ids, *ids), tuple(layers))  # type: ignore[arg-type]


class MaskedCache(StreamCache):
    """Keys and values of rows in which any token may see any other, with no shared prefix.

    Args:
        n_layers: number of blocks.
        past: gives for a block the keys and values of what came before, shape (row, kv_head,
            token, head_dim), with room for what is to come.
        n_past: how many tokens came before.
        n_more: how many tokens are to come.
        growing: whether they come in more than one pass, so that what was there must be kept.
        record_patterns: keep the attention weights of the last pass in `patterns`.

    Attributes:
        own: by block, the keys and values of the last pass alone.
        visible: by block, which keys the next pass sees: booleans of shape (row, head or 1, query,
            key); None where each sees itself and what came before, and nothing else was there.
        positions: the position ids of all keys of the next pass, shape (row, key), by which
            `visible` is cut to a sliding window.
    """

    def __init__(
        self,
        n_layers: int,
        past: Callable[[int], KeysValues] | None = None,
        n_past: int = 0,
        n_more: int = 0,
        *,
        growing: bool = False,
        record_patterns: bool = False,
    ) -> None:
        super().__init__(Prefix(), n_layers, record_patterns)
        self.past, self.n_more, self.growing = past, n_more, growing
        self.room: list[KeysValues | None] = [None] * n_layers
        self.length = [n_past] * n_layers
        self.visible: Mapping[int, Tensor | None] = {}
        self.positions = torch.empty(0)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> KeysValues:
        """Put this pass's tokens behind those that are there."""
        self.at_layer = layer_idx
        self.own[layer_idx] = key_states, value_states
        start = self.length[layer_idx]
        stop = self.length[layer_idx] = start + key_states.shape[2]
        room = self.room[layer_idx]
        if room is None and self.past is not None:
            room = self.past(layer_idx)
        if room is None and self.growing:
            shape = (*key_states.shape[:2], self.n_more, key_states.shape[3])
            room = key_states.new_zeros(shape), value_states.new_zeros(shape)
        if room is None:
            return key_states, value_states
        room[0][:, :, start:stop] = key_states
        room[1][:, :, start:stop] = value_states
        if self.growing:
            self.room[layer_idx] = room
        return room[0][:, :, :stop], room[1][:, :, :stop]

    def get_seq_length(self, layer_idx: int = 0, *_: Any, **__: Any) -> int:
        """Number of tokens that each row has seen."""
        return self.length[layer_idx]

    def sees(self, n_queries: int, window: int | None, device: torch.device) -> Tensor | None:
        """What the pass sees in the block it is in, cut to the window; None if that is causal."""
        visible = self.visible[self.at_layer]
        if window is None:
            return None if visible is None else visible.to(device)
        if visible is None:
            visible = torch.ones(1, 1, n_queries, n_queries, dtype=torch.bool).tril()
        positions = self.positions.to(device)
        distance = positions[:, -n_queries:, None] - positions[:, None, :]
        return visible.to(device) & (distance.abs() < window)[:, None]


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


@dataclass
class PrefixStore:
    """Keys and values of the prefixes that prompts share, each computed once.

    Attributes:
        model: the model.
        most: how many prefixes are kept; the oldest goes first.
    """

    model: LanguageModel
    most: int = 4
    _kept: dict[tuple[int, ...], Prefix] = field(default_factory=dict)

    def get(self, ids: tuple[int, ...]) -> Prefix:
        """The prefix of these tokens."""
        if not ids or not self.model.shares_prefixes:
            return Prefix()
        if ids not in self._kept:
            if len(self._kept) >= self.most:
                del self._kept[next(iter(self._kept))]
            self._kept[ids] = extend(self.model, Prefix(), ids)
        return self._kept[ids]


@torch.no_grad()
def extend(model: LanguageModel, prefix: Prefix, ids: Sequence[int]) -> Prefix:
    """The prefix with more tokens behind it."""
    cache = StreamCache(prefix, model.n_layers)
    row = torch.tensor([list(ids)], device=model.device)
    forward_streams(model, cache, row, len(prefix))
    return cache.as_prefix(ids)


PROBE_TOKENS = 24


def _doubled_after_first(boundary: int, hidden: Tensor) -> Tensor | None:
    """Rows must be allowed to become more on their way through the blocks."""
    return hidden.repeat(2, 1, 1) if boundary == 1 else None


@torch.no_grad()
def agrees_with_plain(model: LanguageModel) -> bool:
    """Whether rows over a shared prefix give the model's own logits, told by a short probe.

    Args:
        model: the model; `shares_prefixes` asks this once.

    Returns:
        False if they differ by more than rounding, or the family cannot be run so.
    """
    n_tokens = min(PROBE_TOKENS, model.max_context or PROBE_TOKENS)
    ids = [1 + 7 * index % (model.vocab_size - 1) for index in range(n_tokens)]  # 0 may be padding
    half = n_tokens // 2
    row = torch.tensor([ids[half:]], device=model.device)
    plain = model.hf(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].float()
    try:
        prefix = extend(model, Prefix(), ids[:half])
        cache = StreamCache(prefix, model.n_layers)
        with rewriting_residual(model, _doubled_after_first):
            shared = forward_streams(model, cache, row, half).float()
    except (
        AttributeError,
        AssertionError,
        IndexError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ):
        logger.warning("%s cannot share prefixes: its cells run one by one", model.name)
        return False
    tolerance = plain.std() * (0.01 if model.dtype == torch.float32 else 0.5)
    if bool((shared - plain).abs().max() > tolerance):
        logger.warning("%s has attention of its own: its cells run one by one", model.name)
        return False
    return True
