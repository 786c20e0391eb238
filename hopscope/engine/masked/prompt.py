"""Provides MaskedPrompt: a prompt and its masks in each block, and rows that run parts of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from torch import Tensor

from hopscope.engine.read_out import Version

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LayerMasks:
    """Which tokens of a prompt see which in each block.

    Attributes:
        keeps: the masks that differ: booleans of shape (head or 1, query, key).
        of_layer: for each block the index of its mask in `keeps`.
    """

    keeps: tuple[Tensor, ...]
    of_layer: tuple[int, ...]

    @classmethod
    def of(cls, version: Version, n_layers: int, n_heads: int) -> LayerMasks:
        """The masks of a version, of which blocks that cannot differ share one.

        Raises:
            UsageError: if a token sees nothing, or the mask names a head that is not there.
        """
        mask, index = version.mask, dict[int | None, int]()
        kinds = [layer if layer in mask.layers else None for layer in range(n_layers)]
        of_layer = tuple(index.setdefault(kind, len(index)) for kind in kinds)
        firsts = [kinds.index(kind) for kind in index]
        keeps = tuple(mask.keep(version.layout, layer, n_heads) for layer in firsts)
        return cls(keeps, of_layer)


def by_layer(masks: Sequence[LayerMasks], join: Callable[[Sequence[Tensor]], T]) -> tuple[T, ...]:
    """What is made of the masks of all rows in each block; the same where blocks do not differ."""
    made: dict[tuple[int, ...], T] = {}
    layers = list(zip(*(each.of_layer for each in masks), strict=True))
    for which in layers:
        if which not in made:
            made[which] = join([each.keeps[i] for each, i in zip(masks, which, strict=True)])
    return tuple(made[which] for which in layers)


class MaskedPrompt:
    """One version of a prompt, as arrays.

    Attributes:
        layout: its tokens and segments.
        ids, positions: the id and the position id of each token, shape (token,).
        masks: which tokens see which, block by block.
    """

    def __init__(self, version: Version, n_layers: int, n_heads: int) -> None:
        self.layout = version.layout
        self.ids, self.positions = np.array(self.layout.ids), np.array(self.layout.positions)
        self.masks = LayerMasks.of(version, n_layers, n_heads)


class PromptRow(Protocol):
    """Some tokens of a prompt, that are run after others of it.

    Attributes:
        prompt: the prompt.
        tokens: the places of the tokens that are run, shape (token,).
        places: the places of those that come before, and are not run.
    """

    @property
    def prompt(self) -> MaskedPrompt: ...
    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def places(self) -> np.ndarray: ...


class DecodedRow(PromptRow, Protocol):
    """A row that is decoded, for all versions that cannot differ.

    Attributes:
        versions: their numbers.
    """

    @property
    def versions(self) -> list[int]: ...
