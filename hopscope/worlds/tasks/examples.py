"""Provides the training examples of a world, prompts and answers in words, and their batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from hopscope.training.fit import IGNORED


class Example(NamedTuple):
    """The words of a prompt and of its answer, and whether an end token follows the answer."""

    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    ended: bool = True


@dataclass(frozen=True)
class TaskBatch:
    """Token ids of several texts, padded on the right.

    Attributes:
        ids: token ids, shape (row, token).
        targets: the token to predict after each token, or `IGNORED`, shape (row, token).
    """

    ids: Int[Tensor, "row token"]
    targets: Int[Tensor, "row token"]

    def rows(self, chosen: Tensor) -> TaskBatch:
        """Return some of the rows, given by their indices."""
        return TaskBatch(self.ids[chosen], self.targets[chosen])

    def to(self, device: torch.device) -> TaskBatch:
        """Return the batch on a device."""
        return TaskBatch(self.ids.to(device), self.targets.to(device))


def as_batch(examples: Sequence[Example], vocabulary: Mapping[str, int], end: int) -> TaskBatch:
    """Convert examples to a batch whose targets are the answers and the end tokens after them.

    Args:
        examples: the examples.
        vocabulary: the id of each word.
        end: the id of the end token, which also serves as padding.
    """
    longest = max(len(each.prompt) + len(each.answer) for each in examples)
    ids = torch.full((len(examples), longest), end)
    targets = torch.full_like(ids, IGNORED)
    for row, (prompt, answer, ended) in enumerate(examples):
        words = [vocabulary[word] for word in (*prompt, *answer)]
        ids[row, : len(words)] = torch.tensor(words)
        start = len(prompt)
        expected = [*words[start:], end] if ended else words[start:]
        targets[row, start - 1 : start - 1 + len(expected)] = torch.tensor(expected)
    return TaskBatch(ids, targets)


@dataclass(frozen=True)
class EpochBatches:
    """The batches of a fixed set of examples, each used once per epoch, in a seeded order.

    Attributes:
        table: all examples.
        size: examples per batch.
        seed: seed of the orders.
    """

    table: TaskBatch
    size: int
    seed: int

    def __call__(self, step: int) -> TaskBatch:
        n = len(self.table.ids)
        places = torch.arange(step * self.size, (step + 1) * self.size)
        first, last = int(places[0]) // n, int(places[-1]) // n
        orders = torch.cat([self._order(epoch) for epoch in range(first, last + 1)])
        return self.table.rows(orders[places - first * n])

    def _order(self, epoch: int) -> Tensor:
        """Return the order of the examples in one epoch."""
        if epoch not in self._orders:
            self._orders.pop(epoch - 2, None)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._orders[epoch] = torch.randperm(len(self.table.ids), generator=generator)
        return self._orders[epoch]

    @cached_property
    def _orders(self) -> dict[int, Tensor]:
        return {}
