"""Provides ComposedTables: inputs of a few tokens, whose answer is a composition of random tables.

The task of The Coverage Principle (Chang et al. 2025): `x1 x2 x3 -> t` with t = f2(f1(x1, x2), x3)
for random tables f1 and f2. Many pairs (x1, x2) have the same bridge, so that examples of one
pair can inform predictions for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, get_args

import numpy as np

from hopscope.errors import UsageError, one_of
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery
from hopscope.worlds.tasks.examples import EpochBatches, Example, TaskBatch, as_batch
from hopscope.worlds.tasks.two_hop_facts import names

Structure = Literal["two_hop", "path_ambiguity", "three_hop", "parallel"]
LENGTHS: Mapping[str, int] = {"two_hop": 3, "path_ambiguity": 3, "three_hop": 4, "parallel": 4}
TESTED = 2000
"""The most inputs that are held out for testing."""


@dataclass(frozen=True)
class ComposedTables:
    """Compositions of random tables, which map an input of three or four tokens to one token.

    Attributes:
        structure: `two_hop`: f2(f1(x1, x2), x3). `path_ambiguity`: f2(f1(x1, x2), x2, x3), where
            x2 also reaches the answer directly. `three_hop`: f3(f2(f1(x1, x2), x3), x4).
            `parallel`: f3(f1(x1, x2), f2(x3, x4)).
        n_tokens: number of different tokens at each input position, and of different answers.
        n_examples: number of training inputs, drawn from all inputs.
        seed: seed of the tables and the training inputs.
        n_bridges: number of values of all tables but the last; None for `n_tokens`.

    Raises:
        UsageError: for an unknown structure, for fewer than two tokens, if there are no training
            inputs or none left to test, or if `n_bridges` is not between 2 and `n_tokens`.
    """

    kind: ClassVar[str] = "composed_tables"
    splits: ClassVar[tuple[str, ...]] = ("in_distribution",)

    structure: Structure = "two_hop"
    n_tokens: int = 20
    n_examples: int = 5000
    seed: int = 0
    n_bridges: int | None = None

    def __post_init__(self) -> None:
        one_of("structure", self.structure, get_args(Structure))
        if self.n_tokens < 2 or not 0 < self.n_examples < self.n_tokens**self.n_places:
            raise UsageError(
                f"{self.n_tokens} tokens give {self.n_tokens**self.n_places} inputs, of which "
                f"some must be left to test; {self.n_examples} examples do not fit"
            )
        if self.n_bridges is not None and not 2 <= self.n_bridges <= self.n_tokens:
            raise UsageError(
                f"n_bridges must lie between 2 and n_tokens = {self.n_tokens}, not {self.n_bridges}"
            )

    @property
    def n_places(self) -> int:
        """Number of tokens of an input."""
        return LENGTHS[self.structure]

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary: tokens of inputs, followed by tokens of answers."""
        return (*names("x", self.n_tokens), *names("t", self.n_tokens))

    @property
    def longest(self) -> int:
        """Number of tokens of an input with its answer."""
        return self.n_places + 1

    def table(self, name: str, *arguments: np.ndarray) -> np.ndarray:
        """Look up a random table, `f1`, `f2` or `f3`.

        Args:
            name: name of the table.
            arguments: token indices, all of the same shape.

        Returns:
            Indices of that shape: answers for the last table of the structure, or else bridges.
        """
        rng = np.random.default_rng([self.seed, *name.encode()])
        is_last = name == f"f{self.n_places - 1}"
        n_values = self.n_tokens if is_last else self.n_bridges or self.n_tokens
        table = rng.integers(n_values, size=(self.n_tokens,) * len(arguments))
        values: np.ndarray = table[arguments]
        return values

    @cached_property
    def inputs(self) -> np.ndarray:
        """Token indices of all inputs, shape (input, position)."""
        grid = np.indices((self.n_tokens,) * self.n_places)
        return grid.reshape(self.n_places, -1).T

    @cached_property
    def bridges(self) -> np.ndarray:
        """The bridge f1(x1, x2) of each input, shape (input,)."""
        return self.table("f1", self.inputs[:, 0], self.inputs[:, 1])

    @cached_property
    def answers(self) -> np.ndarray:
        """The answer of each input, shape (input,)."""
        x, b = self.inputs.T, self.bridges
        if self.structure == "two_hop":
            return self.table("f2", b, x[2])
        if self.structure == "path_ambiguity":
            return self.table("f2", b, x[1], x[2])
        if self.structure == "three_hop":
            return self.table("f3", self.table("f2", b, x[2]), x[3])
        return self.table("f3", b, self.table("f2", x[2], x[3]))

    @cached_property
    def _shuffled(self) -> np.ndarray:
        """The indices of all inputs in random order: training inputs first."""
        return np.random.default_rng([self.seed, 1]).permutation(len(self.inputs))

    @property
    def examples(self) -> np.ndarray:
        """Indices of the training inputs."""
        return self._shuffled[: self.n_examples]

    @property
    def held_out(self) -> np.ndarray:
        """Indices of held-out inputs, at most `TESTED`."""
        return self._shuffled[self.n_examples :][:TESTED]

    def written(self, indices: np.ndarray) -> list[Example]:
        """Return inputs, given by their indices, with their answers in words."""
        x, t = self.words[: self.n_tokens], self.words[self.n_tokens :]
        return [
            Example(tuple(x[token] for token in self.inputs[index]), (t[self.answers[index]],))
            for index in indices.tolist()
        ]

    def batches(
        self, vocabulary: Mapping[str, int], end: int, size: int
    ) -> Callable[[int], TaskBatch]:
        """Return a function that gives the batch of a step; see `Task.batches`."""
        return EpochBatches(as_batch(self.written(self.examples), vocabulary, end), size, self.seed)

    def tests(self) -> Mapping[str, Sequence[Example]]:
        """Return the inputs on which accuracy is measured, by split."""
        return {
            "trained": self.written(self.examples),
            "in_distribution": self.written(self.held_out),
        }

    def queries(self, split: str = "in_distribution") -> QuerySet:
        """Return inputs as two-hop queries about x1, with relations x2 and the remaining tokens.

        No text contains the bridge, which is not in the vocabulary. Analyses that look for its name
        in a state, such as `project`, therefore do not apply; see `coverage`, which uses the IICG.

        Args:
            split: `in_distribution` (held out), or `trained`.
        """
        indices = self.examples if split == "trained" else self.held_out
        return QuerySet(tuple(self._query(index) for index in indices.tolist()), split)

    def _query(self, index: int) -> TwoHopQuery:
        example = self.written(np.array([index]))[0]
        x1, x2, *rest = example.prompt
        return TwoHopQuery(
            id=".".join((x1, x2, *rest)),
            e1_label=x1,
            e2_label=f"b{self.bridges[index]}",
            e3_label=example.answer[0],
            r1_template=f"{{}} {x2}",
            r2_template=f"{{}} {' '.join(rest)}",
            r1_ending="",
            r2_ending="",
        )
