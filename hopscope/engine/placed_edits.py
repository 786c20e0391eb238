"""Provides the edits of many cells, gathered by the place where the engine makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from hopscope.engine.editing import SiteRewrite, rewriting
from hopscope.engine.edits import RESIDUAL, Cell, Knockout, Patch
from hopscope.engine.hooks import rewriting_residual
from hopscope.engine.rows import RowLayout
from hopscope.interrupts import interrupt_safe
from hopscope.models.language_model import LanguageModel


@dataclass(frozen=True)
class PlacedEdits:
    """The edits of a chunk's cells, gathered by where they are made.

    Attributes:
        patches: by place: rows, tokens, heads and vectors; the rows are counted from the first
            own one, and those of `base`, which are made in every row, come first.
        blocked: by block, the edges that are blocked, of shape (row, head or 1, query, key).
    """

    patches: Mapping[tuple[str, int], list[GatheredPatches]] = field(default_factory=dict)
    blocked: Mapping[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        cells: Sequence[Cell],
        base: Cell,
        layout: RowLayout,
        seen: int,
        n_tokens: int,
    ) -> PlacedEdits:
        """Gather the edits of cells whose rows hold `n_tokens` tokens after `seen` ones."""
        everywhere = [(None, each) for each in base]
        own = [(index, each) for index, cell in enumerate(cells) for each in cell]
        patches: dict[tuple[str, int], list[GatheredPatches]] = {}
        for group in (everywhere, own):
            places: dict[tuple[str, int], dict[Any, tuple[int | None, Patch]]] = {}
            for index, each in group:
                if isinstance(each, Patch):
                    one = (index, each.position, each.head)
                    places.setdefault(each.place, {})[one] = (index, each)
            for place, found in places.items():
                gathered = GatheredPatches.of(list(found.values()), seen, model.device)
                patches.setdefault(place, []).append(gathered)
        knockouts = [(i, each) for i, each in [*everywhere, *own] if isinstance(each, Knockout)]
        blocked = {
            layer: _blocked(model, layer, knockouts, layout, seen, n_tokens)
            for layer in sorted({layer for _, each in knockouts for layer in each.layers})
        }
        return cls(patches, blocked)

    def make(
        self, place: tuple[str, int], hidden: Tensor, first_own: int, scale: float = 1.0
    ) -> Tensor:
        """Put the vectors of one place into `hidden` (row, token, width); own rows come last.

        `scale` is by what the states are multiplied behind the place.
        """
        for gathered in self.patches[place]:
            gathered.put(hidden, first_own, scale)
        return hidden


@dataclass(frozen=True)
class GatheredPatches:
    """Patches that are made in one place; `rows` is None if each is made in every row."""

    rows: Tensor | None
    tokens: Tensor
    heads: Tensor | None
    vectors: Tensor

    @classmethod
    def of(
        cls, found: Sequence[tuple[int | None, Patch]], seen: int, device: torch.device
    ) -> GatheredPatches:
        rows = [index for index, _ in found if index is not None]
        heads = [patch.head for _, patch in found if patch.head is not None]
        return cls(
            torch.tensor(rows, device=device) if rows else None,
            torch.tensor([patch.position - seen for _, patch in found], device=device),
            torch.tensor(heads, device=device) if heads else None,
            torch.stack([patch.vector.to(device) for _, patch in found]),
        )

    def put(self, hidden: Tensor, first_own: int, scale: float = 1.0) -> None:
        tokens, vectors = self.tokens.to(hidden.device), self.vectors.to(hidden) / scale
        rows: Tensor | slice = slice(None)
        if self.rows is not None:
            rows = self.rows.to(hidden.device) + first_own
        if self.heads is None:
            hidden[rows, tokens] = vectors
        else:
            width = vectors.shape[-1]
            by_head = rearrange(hidden, "row token (head d) -> row token head d", d=width)
            by_head[rows, tokens, self.heads.to(hidden.device)] = vectors


def _blocked(
    model: LanguageModel,
    layer: int,
    knockouts: Sequence[tuple[int | None, Knockout]],
    layout: RowLayout,
    seen: int,
    n_tokens: int,
) -> Tensor:
    """The edges that are blocked in one block, of shape (row, head or 1, query, key)."""
    here = [(index, each) for index, each in knockouts if layer in each.layers]
    n_heads = model.n_heads if any(each.heads is not None for _, each in here) else 1
    n_rows = layout.shared[layer] + layout.own[layer]
    blocked = np.zeros((n_rows, n_heads, n_tokens, seen + n_tokens), dtype=bool)
    for index, each in here:
        rows = slice(None) if index is None else layout.shared[layer] + index
        heads = slice(None) if each.heads is None or n_heads == 1 else list(each.heads)
        edges = np.zeros(blocked.shape[2:], dtype=bool)
        edges[np.ix_(np.array(each.queries) - seen, np.array(each.keys))] = True
        earlier = np.tri(n_tokens, seen + n_tokens, k=seen - 1, dtype=bool)
        blocked[rows, heads] |= edges & earlier
    return torch.as_tensor(blocked).to(model.device)


@interrupt_safe
def regathering(
    model: LanguageModel,
    layout: RowLayout,
    entries: Sequence[Tensor | None],
    edits: PlacedEdits,
) -> Iterator[None]:
    """Regather the rows at each boundary of the next pass, and make the edits.

    Args:
        model: the model.
        layout: the rows of the pass.
        entries: its entries on the model's device; see `RowLayout.on`.
        edits: of its cells.
    """

    def at_boundary(boundary: int, hidden: Tensor) -> Tensor | None:
        entry, edited = entries[boundary], (RESIDUAL, boundary) in edits.patches
        if entry is not None:
            hidden = hidden.index_select(0, entry.to(hidden.device))
        if not edited:
            return None if entry is None else hidden
        hidden = hidden if entry is not None else hidden.clone()
        return edits.make((RESIDUAL, boundary), hidden, layout.shared[boundary])

    def in_sublayer(place: tuple[str, int]) -> SiteRewrite:
        return lambda hidden, scale: edits.make(
            place, hidden.clone(), layout.shared[place[1]], scale
        )

    with ExitStack() as stack:
        stack.enter_context(rewriting_residual(model, at_boundary))
        for site, layer in edits.patches:
            if site != RESIDUAL:
                stack.enter_context(rewriting(model, site, layer, in_sublayer((site, layer))))
        yield
