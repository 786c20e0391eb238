"""Provides the keys and values of units, each computed once, and the passes that compute them."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hopscope.display.progress import divided
from hopscope.engine.attention import forward_streams
from hopscope.engine.cache import KeysValues, MaskedCache
from hopscope.engine.masked.batch import PaddedBatch, in_batches
from hopscope.engine.masked.prompt import PromptRow
from hopscope.engine.masked.rotary import rotary_of
from hopscope.engine.masked.units import DividedPrompt, Unit
from hopscope.models.language_model import LanguageModel


@dataclass
class UnitPass:
    """Units that one row computes at once, one after the other in one version."""

    prompt: DividedPrompt
    units: list[Unit]

    @cached_property
    def tokens(self) -> np.ndarray:
        """The row's own tokens."""
        return np.concatenate([unit.tokens for unit in self.units])

    @cached_property
    def before(self) -> list[Unit]:
        """The units that they see and that are not among them."""
        return _outside(self.units, self.units)

    @cached_property
    def places(self) -> np.ndarray:
        """The places of what comes before."""
        return _places(self.before)


@dataclass
class AnswerRow:
    """A row that is decoded, for all versions that cannot differ.

    Attributes:
        prompt: of one of them.
        versions: their numbers.
        tail: the units that nobody else needs, which run in one pass with the last token.
    """

    prompt: DividedPrompt
    versions: list[int]
    tail: UnitPass | None = None

    @cached_property
    def tokens(self) -> np.ndarray:
        """What is run: the tail, and the prompt's last token."""
        last = len(self.prompt.layout) - 1
        tail = np.empty(0, dtype=np.int64) if self.tail is None else self.tail.tokens
        return tail if last in tail else np.append(tail, last)

    @cached_property
    def before(self) -> list[Unit]:
        """The units that come before; of the last one only the tokens that are not run."""
        last, tail = self.prompt.last, [] if self.tail is None else self.tail.units
        outside = _outside([*tail, last], [*tail, last])
        whole = len(last.tokens) == 1 or any(unit is last for unit in tail)
        return outside if whole else [*outside, last]

    @cached_property
    def places(self) -> np.ndarray:
        """The places of what comes before."""
        places = _places(self.before)
        return places[~np.isin(places, self.tokens)]


class UnitRow(PromptRow, Protocol):
    """A row that runs after units whose keys and values are stored."""

    @property
    def before(self) -> list[Unit]: ...


def _outside(units: Sequence[Unit], own: Sequence[Unit]) -> list[Unit]:
    """The units that some see, without `own`, each once."""
    seen = {id(each): each for unit in units for each in unit.seen}
    return [each for key, each in seen.items() if key not in {id(unit) for unit in own}]


@dataclass
class StoredUnit:
    """The keys and values of a unit by block, each of shape (kv_head, token, head_dim)."""

    base: int
    layers: list[KeysValues]


@dataclass
class PrefixCache:
    """The keys and values of what prompts begin with: instructions, demonstrations.

    Each is computed in a pass of its own, so that its numbers, to the last bit, do not depend on
    which other prompts were read, or are read with it.

    Attributes:
        most: how many are kept from call to call; the oldest goes first.
    """

    most: int = 16
    kept: dict[bytes, StoredUnit] = field(default_factory=dict)

    def give(self, store: UnitStore, prompts: Sequence[DividedPrompt]) -> None:
        """Put what each prompt begins with into a store; what is not kept is computed."""
        for prompt in prompts:
            first = _opening(prompt)
            if first is None or first.key in store.kept:
                continue
            if first.key not in self.kept:
                alone = UnitStore(store.model, store.budget)
                alone.fill([UnitPass(prompt, [first])])
                self.kept |= alone.kept
            store.kept[first.key] = self.kept[first.key]
        while len(self.kept) > self.most:
            del self.kept[next(iter(self.kept))]


def _opening(prompt: DividedPrompt) -> Unit | None:
    """The first segment of a prompt, if it is needed and sees nothing else."""
    first = next((unit for unit in prompt.needed if unit.tokens[0] == 0), None)
    if first is None or first.seen or first.base:
        return None
    return first if len(first.tokens) == prompt.layout.segments[0][1] else None


@dataclass
class UnitStore:
    """The keys and values of units, each computed once."""

    model: LanguageModel
    budget: int
    kept: dict[bytes, StoredUnit] = field(default_factory=dict)

    def fill(self, passes: Sequence[UnitPass]) -> None:
        """Compute units, those of a level at once."""
        for level in divided(_levels(passes)):
            in_batches(self.model, level, self._compute, self.budget)

    def cache(
        self,
        rows: Sequence[UnitRow],
        more: int,
        *,
        growing: bool = False,
        record_patterns: bool = False,
    ) -> MaskedCache:
        """A cache that holds the keys and values of what comes before, padded on the left.

        Args:
            rows: the rows that are to run.
            more: how many tokens are to come.
            growing: whether they come in more than one pass.
            record_patterns: keep the attention weights of each pass.
        """
        longest = max(len(row.places) for row in rows)
        moved = torch.zeros(len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            by = [unit.base - self.kept[unit.key].base for unit in row.before]
            each = np.repeat(by, [len(unit.tokens) for unit in row.before])[: len(row.places)]
            moved[index, longest - len(each) :] = torch.as_tensor(each, dtype=torch.long)
        rotary = rotary_of(self.model) if bool(moved.any()) else None
        angles = None if rotary is None else rotary.angles(moved)

        units = list({unit.key: unit for row in rows for unit in row.before}.values())
        places = _places_among(units, rows, longest, more).to(self.model.device)

        def past(layer: int) -> KeysValues:
            keys, values = (self._gathered(units, places, layer, part) for part in (0, 1))
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

    def _gathered(self, units: Sequence[Unit], places: Tensor, layer: int, part: int) -> Tensor:
        """The keys (0) or values (1) of one block, shape (row, kv_head, token, head_dim)."""
        stored = torch.cat([self.kept[unit.key].layers[layer][part] for unit in units], dim=1)
        n_heads, n_stored, width = stored.shape
        heads = n_stored * torch.arange(n_heads, device=stored.device)
        index = places.to(stored.device)[:, None] + heads[:, None]
        gathered = stored.reshape(-1, width).index_select(0, index.flatten())
        return gathered.view(*index.shape, width)

    def _compute(self, passes: Sequence[UnitPass]) -> None:
        """Run some passes as the rows of one batch, padded on the left, and keep their units."""
        longest = max(len(each.tokens) for each in passes)
        cache = self.cache(passes, longest)
        batch = PaddedBatch.of(self.model, passes, cache.n_seen())
        forward_streams(self.model, cache, batch.ids, batch.plan)
        for row, each in enumerate(passes):
            start = longest - len(each.tokens)
            for unit in each.units:
                stop = start + len(unit.tokens)
                layers = [
                    (keys[row, :, start:stop], values[row, :, start:stop])
                    for keys, values in filter(None, cache.own)
                ]
                self.kept[unit.key] = StoredUnit(unit.base, layers)
                start = stop


def _places(units: Sequence[Unit]) -> np.ndarray:
    """The places of the tokens of some units, one unit after the other."""
    nothing = np.empty(0, dtype=np.int64)
    return np.concatenate([nothing, *(unit.tokens for unit in units)])


def _places_among(
    units: Sequence[Unit], rows: Sequence[UnitRow], longest: int, more: int
) -> Tensor:
    """Where what comes before each row lies among the tokens of all units, shape (row, token).

    Padding in front, and the room for `more` behind, are any of them.
    """
    ends = np.cumsum([len(unit.tokens) for unit in units])
    among = {
        unit.key: np.arange(end - len(unit.tokens), end)
        for unit, end in zip(units, ends, strict=True)
    }
    places = np.zeros((len(rows), longest + more), dtype=np.int64)
    for row, into in zip(rows, places, strict=True):
        own = np.concatenate([among[unit.key] for unit in row.before] or [places[0, :0]])
        into[longest - len(row.places) : longest] = own[: len(row.places)]
    return torch.as_tensor(places)


def unit_passes(
    rows: Sequence[AnswerRow], there: Container[bytes], keep_tails: bool
) -> list[UnitPass]:
    """What is to be computed for some rows, each unit once.

    A unit goes with the one before it in one pass if it sees it and the same rows need both.

    Args:
        rows: the rows.
        there: keys of units that are computed already.
        keep_tails: give a row its last pass as its `tail`, if no other row needs it.
    """
    users: dict[bytes, set[int]] = {}
    for index, row in enumerate(rows):
        for unit in row.prompt.needed:
            users.setdefault(unit.key, set()).add(index)
    passes: list[UnitPass] = []
    known: set[bytes] = set()
    for row in rows:
        before: Unit | None = None
        for unit in row.prompt.needed:
            if unit.key in known or unit.key in there:
                before = None
                continue
            known.add(unit.key)
            sees_it = before is not None and any(each is before for each in unit.seen)
            if before is None or not sees_it or users[unit.key] != users[before.key]:
                passes.append(UnitPass(row.prompt, []))
            passes[-1].units.append(unit)
            before = unit
        if keep_tails and before is not None and len(users[before.key]) == 1:
            row.tail = passes.pop()
    return passes


def _levels(passes: Sequence[UnitPass]) -> list[list[UnitPass]]:
    """The passes in groups, each of which needs only earlier groups."""
    level: dict[bytes, int] = {}
    groups: list[list[UnitPass]] = []
    for each in passes:
        own = max((level.get(unit.key, 0) + 1 for unit in each.before), default=0)
        level |= {unit.key: own for unit in each.units}
        groups += [[] for _ in range(own + 1 - len(groups))]
        groups[own].append(each)
    return groups


"""What `PrefixCache` was called in version 0.1."""
