"""Provides the keys and values that rows share and those that they have to themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

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
