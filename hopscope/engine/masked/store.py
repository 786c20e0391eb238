"""Provides the keys and values of units, each computed once, and the passes that compute them."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from hopscope.engine.attention import forward_streams
from hopscope.engine.cache import KeysValues, MaskedCache, PassPlan
from hopscope.engine.masked.rotary import rotary_of
from hopscope.engine.masked.units import _Plan, _Unit
from hopscope.models.language_model import LanguageModel

RATHER_ALIKE = 0.85
"""Rows of a batch are padded to the longest; shorter ones than this share of it wait."""


@dataclass
class _Pass:
    """Units that one row computes at once, one after the other in one version."""

    plan: _Plan
    units: list[_Unit]

    @cached_property
    def tokens(self) -> np.ndarray:
        """The row's own tokens."""
        return np.concatenate([unit.tokens for unit in self.units])

    @cached_property
    def before(self) -> list[_Unit]:
        """The units that they see and that are not among them."""
        return _outside(self.units, self.units)

    @cached_property
    def places(self) -> np.ndarray:
        """The places of what comes before."""
        return _places(self.before)


@dataclass
class _Answer:
    """A row that is decoded, for all versions that cannot differ.

    Attributes:
        plan: of one of them.
        versions: their numbers.
        tail: the units that nobody else needs, which run in one pass with the last token.
    """

    plan: _Plan
    versions: list[int]
    tail: _Pass | None = None

    @cached_property
    def tokens(self) -> np.ndarray:
        """What is run: the tail, and the prompt's last token."""
        last = len(self.plan.layout) - 1
        tail = np.empty(0, dtype=np.int64) if self.tail is None else self.tail.tokens
        return tail if last in tail else np.append(tail, last)

    @cached_property
    def before(self) -> tuple[list[_Unit], int]:
        """The units that come before, and how many of their last tokens do not."""
        last, tail = self.plan.last, [] if self.tail is None else self.tail.units
        outside = _outside([*tail, last], [*tail, last])
        if len(last.tokens) > 1 and not any(unit is last for unit in tail):
            return [*outside, last], 1
        return outside, 0

    @cached_property
    def places(self) -> np.ndarray:
        """The places of what comes before."""
        units, less = self.before
        places = _places(units)
        return places[: len(places) - less]


def _outside(units: Sequence[_Unit], own: Sequence[_Unit]) -> list[_Unit]:
    """The units that some see, without `own`, each once."""
    seen = {id(each): each for unit in units for each in unit.seen}
    return [each for key, each in seen.items() if key not in {id(unit) for unit in own}]


class _Row(Protocol):
    """Tokens of one version that are run after others of it: `tokens` after `places`."""

    @property
    def plan(self) -> _Plan: ...
    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def places(self) -> np.ndarray: ...


R = TypeVar("R", bound=_Row)


@dataclass
class _Stored:
    """The keys and values of a unit by block, each of shape (kv_head, token, head_dim)."""

    base: int
    layers: list[KeysValues]


@dataclass
class Openings:
    """The keys and values of what prompts begin with: instructions, demonstrations.

    Attributes:
        most: how many are kept; the oldest goes first.
    """

    most: int = 16
    kept: dict[bytes, _Stored] = field(default_factory=dict)

    def take(self, plans: Sequence[_Plan], computed: Mapping[bytes, _Stored]) -> None:
        """Keep the opening of each plan."""
        for plan in plans:
            n_first = plan.layout.segments[0][1]
            first = next((unit for unit in plan.needed if unit.tokens[0] == 0), None)
            if first is None or first.seen or len(first.tokens) != n_first:
                continue
            if first.key in computed and first.key not in self.kept:
                own = computed[first.key]
                layers = [(keys.clone(), values.clone()) for keys, values in own.layers]
                self.kept[first.key] = _Stored(own.base, layers)
        while len(self.kept) > self.most:
            del self.kept[next(iter(self.kept))]


@dataclass
class _Store:
    """The keys and values of units, each computed once."""

    model: LanguageModel
    budget: int
    kept: dict[bytes, _Stored] = field(default_factory=dict)

    def fill(self, passes: Sequence[_Pass]) -> None:
        """Compute units, those of a level at once."""
        for level in _levels(passes):
            for chunk in self.chunks(level):
                self._compute(chunk)

    def chunks(self, rows: Sequence[R], more: int = 0) -> Iterator[list[R]]:
        """Rows that are about as long, as many as memory allows.

        Args:
            rows: what is to run.
            more: how many tokens are to come after each.
        """
        chunk: list[R] = []
        n_keys = 0
        for row in sorted(rows, key=lambda one: (-len(one.tokens), -len(one.places))):
            longest = len((chunk or [row])[0].tokens)
            n_keys = max(n_keys, len(row.places) + longest + more)
            needed = (len(chunk) + 1) * self.bytes_of(longest, n_keys)
            if chunk and (needed > self.budget or len(row.tokens) < RATHER_ALIKE * longest):
                yield chunk
                chunk, n_keys = [], len(row.places) + len(row.tokens) + more
            chunk.append(row)
        if chunk:
            yield chunk

    def bytes_of(self, n_queries: int, n_keys: int) -> int:
        """What a row takes: keys and values, the widest block, and its mask as numbers."""
        config, width = self.model.config, torch.finfo(self.model.dtype).bits // 8
        kv_heads = getattr(config, "num_key_value_heads", None) or self.model.n_heads
        states = 2 * self.model.n_layers * kv_heads * self.model.head_dim * n_keys
        inner = getattr(config, "intermediate_size", None) or 4 * self.model.d_model
        block = n_queries * (4 * inner + 8 * self.model.d_model)
        return (states + block) * width + 4 * self.model.n_heads * n_queries * n_keys

    def cache(
        self,
        rows: Sequence[tuple[Sequence[_Unit], int]],
        more: int,
        *,
        growing: bool = False,
        record_patterns: bool = False,
    ) -> MaskedCache:
        """A cache that holds the keys and values of the units of each row, padded on the left.

        Args:
            rows: for each row its units, and how many of their last tokens to leave out.
            more: how many tokens are to come.
            growing: whether they come in more than one pass.
            record_patterns: keep the attention weights of each pass.
        """
        lengths = [len(_places(units)) - less for units, less in rows]
        longest = max(lengths)
        moved = torch.zeros(len(rows), longest, dtype=torch.long)
        for row, ((units, _), length) in enumerate(zip(rows, lengths, strict=True)):
            by = [unit.base - self.kept[unit.key].base for unit in units]
            each = np.repeat(by, [len(unit.tokens) for unit in units])[:length]
            moved[row, longest - length :] = torch.as_tensor(each, dtype=torch.long)
        rotary = rotary_of(self.model) if bool(moved.any()) else None
        angles = None if rotary is None else rotary.angles(moved)

        def past(layer: int) -> KeysValues:
            keys, values = (self._filled(rows, lengths, layer, part, more) for part in (0, 1))
            if rotary is not None and angles is not None:
                rotary.turn(keys[:, :, :longest], *angles(layer))
            return keys, values

        return MaskedCache(
            self.model.n_layers,
            past if longest else None,
            longest,
            more,
            growing=growing,
            record_patterns=record_patterns,
        )

    def _filled(
        self,
        rows: Sequence[tuple[Sequence[_Unit], int]],
        lengths: Sequence[int],
        layer: int,
        part: int,
        more: int,
    ) -> Tensor:
        """The keys (0) or values (1) of one block, with room for more."""
        like, longest = next(iter(self.kept.values())).layers[layer][part], max(lengths)
        filled = like.new_zeros(len(rows), like.shape[0], longest + more, like.shape[2])
        for row, ((units, _), length) in enumerate(zip(rows, lengths, strict=True)):
            start = longest - length
            for unit in units:
                stop = min(longest, start + len(unit.tokens))
                piece = self.kept[unit.key].layers[layer][part]
                filled[row, :, start:stop] = piece[:, : stop - start]
                start = stop
        return filled

    def _compute(self, chunk: Sequence[_Pass]) -> None:
        """Run some passes as the rows of one batch, padded on the left, and keep their units."""
        longest = max(len(each.tokens) for each in chunk)
        cache = self.cache([(each.before, 0) for each in chunk], longest)
        n_before = cache.n_seen()
        batch = _Batch.of(self.model, chunk, n_before)
        forward_streams(self.model, cache, batch.ids, batch.plan)
        for row, each in enumerate(chunk):
            start = longest - len(each.tokens)
            for unit in each.units:
                stop = start + len(unit.tokens)
                layers = [
                    (keys[row, :, start:stop], values[row, :, start:stop])
                    for keys, values in filter(None, cache.own)
                ]
                self.kept[unit.key] = _Stored(unit.base, layers)
                start = stop


def _places(units: Sequence[_Unit]) -> np.ndarray:
    """The places of the tokens of some units, one unit after the other."""
    nothing = np.empty(0, dtype=np.int64)
    return np.concatenate([nothing, *(unit.tokens for unit in units)])


def _passes(rows: Sequence[_Answer], there: Container[bytes], keep_tails: bool) -> list[_Pass]:
    """What is to be computed for some rows, each unit once.

    A unit goes with the one before it in one pass if it sees it and the same rows need both.

    Args:
        rows: the rows.
        there: keys of units that are computed already.
        keep_tails: give a row its last pass as its `tail`, if no other row needs it.
    """
    users: dict[bytes, set[int]] = {}
    for index, row in enumerate(rows):
        for unit in row.plan.needed:
            users.setdefault(unit.key, set()).add(index)
    passes: list[_Pass] = []
    known: set[bytes] = set()
    for row in rows:
        before: _Unit | None = None
        for unit in row.plan.needed:
            if unit.key in known or unit.key in there:
                before = None
                continue
            known.add(unit.key)
            sees_it = before is not None and any(each is before for each in unit.seen)
            if before is None or not sees_it or users[unit.key] != users[before.key]:
                passes.append(_Pass(row.plan, []))
            passes[-1].units.append(unit)
            before = unit
        if keep_tails and before is not None and len(users[before.key]) == 1:
            row.tail = passes.pop()
    return passes


def _levels(passes: Sequence[_Pass]) -> list[list[_Pass]]:
    """The passes in groups, each of which needs only earlier groups."""
    level: dict[bytes, int] = {}
    groups: list[list[_Pass]] = []
    for each in passes:
        own = max((level.get(unit.key, 0) + 1 for unit in each.before), default=0)
        level |= {unit.key: own for unit in each.units}
        groups += [[] for _ in range(own + 1 - len(groups))]
        groups[own].append(each)
    return groups


@dataclass(frozen=True)
class _Batch:
    """Rows as tensors, padded on the left: what came before, and the rows' own tokens.

    Attributes:
        ids: shape (row, own token).
        positions: shape (row, key), of what came before and of the own tokens.
        visible: by block, shape (row, head or 1, own token, key), or None where it is causal and
            nothing came before. Padding sees itself.
    """

    ids: Tensor
    positions: Tensor
    visible: tuple[Tensor | None, ...]

    @property
    def plan(self) -> PassPlan:
        """The pass over the own tokens."""
        return PassPlan(visible=self.visible, positions=self.positions)

    @classmethod
    def of(cls, model: LanguageModel, rows: Sequence[_Row], n_before: int) -> _Batch:
        n_own = max(len(row.tokens) for row in rows)
        ids = torch.zeros(len(rows), n_own, dtype=torch.long)
        positions = torch.zeros(len(rows), n_before + n_own, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index] = int(row.plan.ids[row.tokens[0]])  # a pad token would raise a warning
            ids[index, n_own - len(row.tokens) :] = torch.as_tensor(row.plan.ids[row.tokens])
            for end, places in ((n_before, row.places), (n_before + n_own, row.tokens)):
                at = torch.as_tensor(row.plan.positions[places])
                positions[index, end - len(places) : end] = at
        made: dict[tuple[int, ...], Tensor | None] = {}
        visible = []
        for layer in range(model.n_layers):
            which = tuple(row.plan.of_layer[layer] for row in rows)
            if which not in made:
                keeps = [row.plan.keeps[each] for row, each in zip(rows, which, strict=True)]
                seen = _padded(keeps, rows, n_before, n_own)
                made[which] = None if _is_causal(seen) else seen.to(model.device)
            visible.append(made[which])
        return cls(ids.to(model.device), positions.to(model.device), tuple(visible))


def _padded(keeps: Sequence[Tensor], rows: Sequence[_Row], n_before: int, n_own: int) -> Tensor:
    """Who sees whom in a batch: booleans of shape (row, head or 1, own token, key)."""
    n_heads = max(len(keep) for keep in keeps)
    seen = torch.zeros(len(rows), n_heads, n_own, n_before + n_own, dtype=torch.bool)
    seen[..., n_before:] = torch.eye(n_own, dtype=torch.bool)
    for index, (keep, row) in enumerate(zip(keeps, rows, strict=True)):
        before, own = torch.as_tensor(row.places), torch.as_tensor(row.tokens)
        here = seen[index, :, n_own - len(own) :]
        here[..., n_before - len(before) : n_before] = keep[:, own][:, :, before]
        here[..., n_before + n_own - len(own) :] = keep[:, own][:, :, own]
    return seen


def _is_causal(seen: Tensor) -> bool:
    n_queries, n_keys = seen.shape[-2:]
    causal = torch.ones(n_queries, n_keys, dtype=torch.bool).tril()
    return 1 < n_queries == n_keys and bool((seen == causal).all())
