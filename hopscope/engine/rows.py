"""Provides the bookkeeping of a sweep's rows: which cells are one row, at which block.

Cells are kept sorted by `split`, the first boundary at which a cell has a row of its own. Below
it, cells with the same history (suffix and generated tokens) share a row. At boundary ℓ the rows
are first the shared ones, one for each history that has a cell with split > ℓ, then the own
ones, of the cells with split ≤ ℓ. With histories sorted by their latest split, descending, both
groups are prefixes of fixed orders, so a boundary is described by two counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hopscope.engine.decoding import grow
from hopscope.engine.read_out import Stop

Index = np.ndarray


@dataclass(frozen=True)
class RowLayout:
    """The rows of one pass.

    Attributes:
        inputs: number of rows of tokens that go into the model.
        shared: number of shared rows at each boundary 0..n_layers.
        own: number of own rows at each boundary.
        entry: for each boundary, the row of the boundary before that each row comes from; at
            boundary 0 the row of the input.
        parents: for each block, the row of the pass before whose past each row takes over.
        read: for each cell, its row at the end.
        alive: for each cell, its number among all.
    """

    inputs: int
    shared: tuple[int, ...]
    own: tuple[int, ...]
    entry: tuple[Index, ...]
    parents: tuple[Index | None, ...]
    read: Index
    alive: Index

    def on(self, device: torch.device) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Entries and parents on a device, in one transfer; None where rows stay as they are."""
        rows = [s + o for s, o in zip(self.shared, self.own, strict=True)]
        parts = [*self.entry, *(p for p in self.parents if p is not None)]
        everything = torch.as_tensor(np.concatenate(parts)).to(device)
        pieces = iter(torch.split(everything, [len(part) for part in parts]))
        entries = [
            None if _identity(entry, before) else piece
            for before, entry, piece in zip([self.inputs, *rows], self.entry, pieces, strict=False)
        ]
        return entries, [None if p is None else next(pieces) for p in self.parents]


def _identity(index: Index, length: int) -> bool:
    return len(index) == length and bool((index == np.arange(length)).all())


@dataclass(frozen=True)
class Histories:
    """What the cells that still run have generated, and what all cells generated so far.

    Attributes:
        split: for each alive cell, the boundary where it splits off; ascending.
        alive: for each alive cell, its number among all.
        of_cell: for each alive cell, its history.
        suffixes: for each history, the suffix that it began with.
        last: for each history, its last token.
        parent: for each history, the history of the pass before that it goes on from.
        latest: for each history, the latest split of its cells; descending.
        generated: for every cell of the chunk, its tokens.
    """

    split: Index
    alive: Index
    of_cell: Index
    suffixes: Index
    last: Index
    parent: Index
    latest: Index
    generated: list[tuple[int, ...]]

    @classmethod
    def first(cls, start: Index, split: Index) -> Histories:
        """Before anything is generated: a history is a suffix."""
        suffixes, of_cell = np.unique(start, return_inverse=True)
        nothing = np.zeros(len(suffixes), dtype=np.int64)
        everything = np.arange(len(split))
        empty: list[tuple[int, ...]] = [()] * len(split)
        return cls._sorted(split, everything, of_cell, suffixes, nothing, nothing, empty)

    @classmethod
    def _sorted(
        cls,
        split: Index,
        alive: Index,
        of_cell: Index,
        suffixes: Index,
        last: Index,
        parent: Index,
        generated: list[tuple[int, ...]],
    ) -> Histories:
        latest = np.full(len(suffixes), -1)
        np.maximum.at(latest, of_cell, split)
        order = np.argsort(-latest, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return cls(
            split,
            alive,
            rank[of_cell],
            suffixes[order],
            last[order],
            parent[order],
            latest[order],
            generated,
        )

    def grown(
        self,
        chosen: Index,
        end: Iterable[int],
        stop: Stop | None,
    ) -> Histories:
        """After each alive cell has generated the token that was `chosen` for it."""
        generated = list(self.generated)
        cells, tokens = self.alive.tolist(), chosen.tolist()
        keep = np.array(grow(generated, cells, tokens, set(end), stop), dtype=bool)
        pairs = np.stack([self.of_cell[keep], chosen[keep]], axis=1)
        unique, of_cell = np.unique(pairs, axis=0, return_inverse=True)
        parent, last = unique[:, 0], unique[:, 1]
        return Histories._sorted(
            self.split[keep],
            self.alive[keep],
            of_cell.reshape(-1),
            self.suffixes[parent],
            last,
            parent,
            generated,
        )

    def layout(self, n_layers: int, before: RowLayout | None) -> RowLayout:
        """The rows of the next pass, given those of the pass before."""
        boundaries = np.arange(n_layers + 1)
        shared = np.searchsorted(-self.latest, -boundaries, side="left")
        own = np.searchsorted(self.split, boundaries, side="right")
        entry, rows, had = [], len(self.latest), 0
        for boundary in boundaries:
            kept = np.arange(shared[boundary])
            old = (rows if boundary == 0 else shared[boundary - 1]) + np.arange(had)
            new = self.of_cell[had : own[boundary]]
            entry.append(np.concatenate([kept, old, new]))
            had = own[boundary]
        parents: list[Index | None] = [None] * n_layers
        if before is not None:
            place = np.searchsorted(before.alive, self.alive)
            for layer in range(n_layers):
                mine = before.shared[layer] + place[: own[layer]]
                parent = np.concatenate([self.parent[: shared[layer]], mine])
                if not _identity(parent, before.shared[layer] + before.own[layer]):
                    parents[layer] = parent
        read = np.where(
            np.arange(len(self.split)) < own[-1],
            shared[-1] + np.arange(len(self.split)),
            self.of_cell,
        )
        return RowLayout(
            len(self.latest),
            tuple(shared.tolist()),
            tuple(own.tolist()),
            tuple(entry),
            tuple(parents),
            read,
            self.alive,
        )
