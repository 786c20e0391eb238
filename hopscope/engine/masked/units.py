"""Provides the units of a prompt under a mask: tokens that are computed together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from hopscope.engine.masked.prompt import MaskedPrompt
from hopscope.engine.masked.rotary import rotary_of
from hopscope.engine.read_out import Version
from hopscope.models.language_model import LanguageModel


@dataclass(frozen=True)
class Unit:
    """Tokens that are computed together, as they stand in one version.

    Attributes:
        key: the same for all that compute the same.
        tokens: their places in the row.
        base: the position id of the first.
        seen: the other units that they see, in an order that does not depend on the version.
    """

    key: bytes
    tokens: np.ndarray
    base: int
    seen: tuple[Unit, ...]


class DividedPrompt(MaskedPrompt):
    """One version, divided into units in an order in which each sees only earlier ones.

    Attributes:
        relative: whether keys can be turned, so that units are the same wherever they stand.
        units: all of them.
        last: the one that holds the prompt's last token.
    """

    def __init__(self, model: LanguageModel, version: Version) -> None:
        super().__init__(version, model.n_layers, model.n_heads)
        self.relative = rotary_of(model) is not None
        self.units = self._divided()
        self.last = next(unit for unit in self.units if unit.tokens[-1] == len(self.layout) - 1)

    @cached_property
    def needed(self) -> list[Unit]:
        """The units that the last token sees, or they see; itself only with others in its unit."""
        reached = {id(self.last): self.last}
        for unit in reversed(self.units):
            if id(unit) in reached:
                reached |= {id(each): each for each in unit.seen}
        alone = len(self.last.tokens) == 1
        return [
            each for each in self.units if id(each) in reached and not (alone and each is self.last)
        ]

    def _divided(self) -> list[Unit]:
        segments = [range(*segment) for segment in self.layout.segments]
        whole = [tokens for tokens in segments if len(tokens)]
        parts = [*whole[:-1], whole[-1][:-1], whole[-1][-1:]]
        parts = [tokens for tokens in parts if len(tokens)]
        member = torch.zeros(len(self.layout), len(parts))
        for index, tokens in enumerate(parts):
            member[tokens.start : tokens.stop, index] = 1
        seen = torch.stack([keep.any(dim=0) for keep in self.masks.keeps]).any(dim=0)
        sees = ((member.T @ seen.float() @ member) > 0).numpy()
        n, label = connected_components(sees, directed=True, connection="strong")
        members = [np.flatnonzero(label == each) for each in range(n)]
        graph = {
            group: sorted(
                {int(other) for other in label[sees[members[group]].any(axis=0)]} - {group}
            )
            for group in np.argsort([parts_of[0] for parts_of in members]).tolist()
        }
        made: dict[int, Unit] = {}
        for group in TopologicalSorter(graph).static_order():
            places = np.concatenate([np.array(parts[each]) for each in members[group]])
            made[group] = self._unit(np.sort(places), [made[other] for other in graph[group]])
        return list(made.values())

    def _unit(self, tokens: np.ndarray, seen: list[Unit]) -> Unit:
        base = int(self.positions[tokens[0]])
        seen = sorted(seen, key=lambda unit: (unit.base - base, unit.key))
        digest = hashlib.blake2b(digest_size=16)
        digest.update(self.ids[tokens].tobytes())
        digest.update((self.positions[tokens] - (base if self.relative else 0)).tobytes())
        for unit in seen:
            digest.update(unit.key + (unit.base - base).to_bytes(8, "big", signed=True))
        keys = np.concatenate([*(unit.tokens for unit in seen), tokens])
        patterns = [_digest(keep[:, tokens][:, :, keys]) for keep in self.masks.keeps]
        for which in self.masks.of_layer:
            digest.update(patterns[which])
        return Unit(digest.digest(), tokens, base, tuple(seen))


def _digest(seen: Tensor) -> bytes:
    if bool((seen == seen[:1]).all()):
        seen = seen[:1]
    packed = np.packbits(seen.numpy()).tobytes()
    return hashlib.blake2b(packed, digest_size=16, key=str(tuple(seen.shape)).encode()).digest()
