"""Provides what a world is trained on: prompts and answers in words, and their batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from hopscope.training.fit import IGNORED


class Written(NamedTuple):
    """A prompt and its answer, word by word, and whether the text ends after it."""

    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    ended: bool = True


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, padded on the right.

    Attributes:
        ids: shape (row, token).
        targets: the token to predict after each, or `IGNORED`; shape (row, token).
    """

    ids: Int[Tensor, "row token"]
    targets: Int[Tensor, "row token"]

    def rows(self, chosen: Tensor) -> Batch:
        """Some of the rows."""
        return Batch(self.ids[chosen], self.targets[chosen])

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(self.ids.to(device), self.targets.to(device))


def tabulated(written: Sequence[Written], vocabulary: Mapping[str, int], end: int) -> Batch:
    """Prompts and answers as tokens, ends after them; the loss is on what follows the prompt."""
    longest = max(len(each.prompt) + len(each.answer) for each in written)
    ids = torch.full((len(written), longest), end)
    targets = torch.full_like(ids, IGNORED)
    for row, (prompt, answer, ended) in enumerate(written):
        words = [vocabulary[word] for word in (*prompt, *answer)]
        ids[row, : len(words)] = torch.tensor(words)
        start = len(prompt)
        told = [*words[start:], end] if ended else words[start:]
        targets[row, start - 1 : start - 1 + len(told)] = torch.tensor(told)
    return Batch(ids, targets)


@dataclass(frozen=True)
class Drawn:
    """The batches of a fixed set of examples: all are seen once in each pass, in an order by seed.

    Attributes:
        table: the examples.
        size: of a batch.
        seed: of the orders.
    """

    table: Batch
    size: int
    seed: int

    def __call__(self, step: int) -> Batch:
        n = len(self.table.ids)
        places = torch.arange(step * self.size, (step + 1) * self.size)
        first, last = int(places[0]) // n, int(places[-1]) // n
        orders = torch.cat([self._order(turn) for turn in range(first, last + 1)])
        return self.table.rows(orders[places - first * n])

    def _order(self, turn: int) -> Tensor:
        """The order of one pass."""
        if turn not in self._orders:
            self._orders.pop(turn - 2, None)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
            self._orders[turn] = torch.randperm(len(self.table.ids), generator=generator)
        return self._orders[turn]

    @cached_property
    def _orders(self) -> dict[int, Tensor]:
        return {}
