"""Provides the keys and values of rows, what a pass over them does, and what its tokens see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether a query sees a key: of row, head, query and key (positions) that broadcast, booleans."""


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


@dataclass(frozen=True, eq=False)
class PassPlan:
    """What one pass over a cache does besides running each row's next tokens.

    Attributes:
        parents: for each block the row of the pass before whose past each row takes over, shape
            (row,), or None where rows stay as they are; empty if they do in all blocks.
        padding: how many of each row's own first tokens are padding, shape (row,); None if none.
        blocked: by block, the attention edges that are cut: booleans of shape (row, head or 1,
            query, key), the keys of the shared prefix included.
        visible: for each block the keys that each query sees: booleans of shape (row, head or 1,
            query, key), or None where it is causal. Only for a `MaskedCache`.
        positions: the position ids of the tokens, shape (row, token); for a `MaskedCache` those
            of all keys, by which windows are measured. None where they just follow.
        weights: by block, attention weights that are put in place of what the softmax gives; the
            others stay, so that a row may sum to more than 1. Shape (row, head, query, key), NaN
            where a weight stays. Not for a `MaskedCache`.
    """

    parents: Sequence[Tensor | None] = ()
    padding: Tensor | None = None
    blocked: Mapping[int, Tensor] = field(default_factory=dict)
    visible: Sequence[Tensor | None] = ()
    positions: Tensor | None = None
    weights: Mapping[int, Tensor] = field(default_factory=dict)


class StreamCache:
    """The keys and values of rows, beside a prefix that they share and that is stored once.

    Args:
        prefix: what all rows have in common.
        n_layers: number of blocks.
        record_patterns: keep the attention weights of the last pass in `patterns`.
        record_scores: keep what they are the softmax of in `scores`, before anything is masked.

    Attributes:
        own: by block, each row's own keys and values, shape (row, kv_head, token, head_dim).
        fuses: whether all keys lie in one tensor, so that torch's own attention can read them.
    """

    fuses = False

    def __init__(
        self,
        prefix: Prefix,
        n_layers: int,
        record_patterns: bool = False,
        record_scores: bool = False,
    ) -> None:
        self.prefix = prefix
        self.own: list[KeysValues | None] = [None] * n_layers
        self.patterns: dict[int, Tensor] | None = {} if record_patterns else None
        self.scores: dict[int, Tensor] | None = {} if record_scores else None

    def n_seen(self, layer: int = 0) -> int:
        """Number of tokens that each row has seen, padding included."""
        own = self.own[layer]
        return len(self.prefix) + (0 if own is None else own[0].shape[2])

    def append(self, new: KeysValues, layer: int, plan: PassPlan) -> KeysValues:
        """Put a pass's keys and values behind the past of each row's parent; all own ones."""
        past = self.own[layer]
        if past is not None:
            parents = plan.parents[layer] if plan.parents else None
            new = _behind(past[0], new[0], parents), _behind(past[1], new[1], parents)
        self.own[layer] = new
        return new

    def positions(self, n_tokens: int, plan: PassPlan, device: torch.device) -> Tensor:
        """The position ids of a pass's tokens, shape (row or 1, token)."""
        if plan.positions is not None:
            return plan.positions[:, -n_tokens:]
        seen = self.n_seen()
        positions = torch.arange(seen, seen + n_tokens, device=device)[None]
        return positions if plan.padding is None else (positions - plan.padding[:, None]).clamp(0)

    def key_positions(self, plan: PassPlan, n_keys: int, device: torch.device) -> Tensor:
        """The position ids of all keys that a pass reads, shape (row or 1, key)."""
        keys = torch.arange(n_keys, device=device)[None]
        if plan.padding is None:
            return keys
        # Padding lies between a row and the prefix.
        return keys - plan.padding.to(device)[:, None] * (keys >= len(self.prefix))

    def visible(
        self, layer: int, plan: PassPlan, query: Tensor, n_keys: int, allowed: Tensor | None
    ) -> Tensor | None:
        """Which keys the queries of a pass see.

        Args:
            layer: the block.
            plan: of the pass.
            query: shape (row, head, query, head_dim).
            n_keys: number of keys, the prefix's included.
            allowed: what the layer's own mask lets queries see (see `by_rule`); None where that
                is everything.

        Returns:
            Booleans of shape (row or 1, head or 1, query, key), or None where each query sees
            itself and all keys before it.
        """
        blocked, device = plan.blocked.get(layer), query.device
        if blocked is None and plan.padding is None and allowed is None:
            return None
        seen = all_before(query, n_keys)
        if plan.padding is not None:
            keys, padding = torch.arange(n_keys, device=device), plan.padding.to(device)[:, None]
            padded = (keys >= len(self.prefix)) & (keys < len(self.prefix) + padding)
            seen = seen & ~padded[:, None, None]
        if allowed is not None:
            seen = seen & allowed
        return seen if blocked is None else seen & ~blocked.to(device)

    def as_prefix(self, ids: Sequence[int]) -> Prefix:
        """The prefix with the tokens of a single row behind it."""
        layers = []
        for layer, own in enumerate(self.own):
            assert own is not None
            before = self.prefix.layers[layer] if len(self.prefix) else None
            parts = [own] if before is None else [before, own]
            layers.append(tuple(torch.cat(both, dim=2) for both in zip(*parts, strict=True)))
        return Prefix((*self.prefix.ids, *ids), tuple(layers))  # type: ignore[arg-type]


def all_before(query: Tensor, n_keys: int) -> Tensor:
    """Each query sees itself and all keys before it: booleans of shape (1, 1, query, key)."""
    n_queries = query.shape[2]
    everything = torch.ones(1, 1, n_queries, n_keys, dtype=torch.bool, device=query.device)
    return everything.tril(n_keys - n_queries)


def by_rule(sees: Sees, positions: Tensor, n_queries: int) -> Tensor:
    """Which keys a layer's own mask lets queries see that may lie before or after them.

    Args:
        sees: the rule, of a query and a key that does not come after it.
        positions: of the keys, shape (row, key); the queries are the last of them.
        n_queries: number of queries.

    Returns:
        Booleans of shape (row, 1, query, key).
    """
    keys, queries = positions[:, None, None], positions[:, None, -n_queries:, None]
    nothing = torch.zeros_like(keys[:1, :, :, :1])
    return sees(nothing, nothing, torch.maximum(queries, keys), torch.minimum(queries, keys))


def _behind(past: Tensor, new: Tensor, parents: Tensor | None) -> Tensor:
    """New keys or values behind those of each row's parent."""
    if parents is not None:
        past = past.index_select(0, parents.to(past.device))
    return torch.cat([past, new], dim=2)


class MaskedCache(StreamCache):
    """The keys and values of rows in which any token may see any other, with no shared prefix.

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
    """

    fuses = True

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

    def n_seen(self, layer: int = 0) -> int:
        """Number of tokens that each row has seen, padding included."""
        return self.length[layer]

    def append(self, new: KeysValues, layer: int, plan: PassPlan) -> KeysValues:
        """Put a pass's keys and values behind those that are there."""
        self.own[layer] = new
        start = self.length[layer]
        stop = self.length[layer] = start + new[0].shape[2]
        room = self.room[layer]
        if room is None and self.past is not None:
            room = self.past(layer)
        if room is None and self.growing:
            keys, values = (
                each.new_zeros(*each.shape[:2], self.n_more, each.shape[3]) for each in new
            )
            room = keys, values
        if room is None:
            return new
        for part, own in zip(room, new, strict=True):
            part[:, :, start:stop] = own
        if self.growing:
            self.room[layer] = room
        return room[0][:, :, :stop], room[1][:, :, :stop]

    def key_positions(self, plan: PassPlan, n_keys: int, device: torch.device) -> Tensor:
        """The position ids of all keys that a pass reads, as the plan says, shape (row, key)."""
        assert plan.positions is not None, "a layer's own mask goes by position ids"
        return plan.positions.to(device)

    def visible(
        self, layer: int, plan: PassPlan, query: Tensor, n_keys: int, allowed: Tensor | None
    ) -> Tensor | None:
        """What the plan says is seen, cut by the layer's own mask."""
        visible, device = plan.visible[layer], query.device
        if allowed is None:
            return None if visible is None else visible.to(device)
        if visible is None:
            visible = all_before(query, n_keys)
        return visible.to(device) & allowed
