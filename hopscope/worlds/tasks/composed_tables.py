"""Provides ComposedTables: functions of tokens that are composed, and what examples cover.

The task of The Coverage Principle (Chang et al. 2025): `x1 x2 x3 -> t` with t = f2(f1(x1, x2), x3)
for random tables f1 and f2. Many pairs (x1, x2) have the same bridge, so that what was seen of one
pair could be used for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, get_args

import numpy as np

from hopscope.errors import UsageError
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery
from hopscope.worlds.tasks.examples import Batch, Drawn, Written, tabulated
from hopscope.worlds.tasks.two_hop_facts import names

Structure = Literal["two_hop", "path_ambiguity", "three_hop", "parallel"]
LENGTHS: Mapping[str, int] = {"two_hop": 3, "path_ambiguity": 3, "three_hop": 4, "parallel": 4}
TESTED = 2000


@dataclass(frozen=True)
class ComposedTables:
    """Random tables, composed: every input is some tokens, its answer is one.

    Attributes:
        structure: `two_hop`: f2(f1(x1, x2), x3). `path_ambiguity`: f2(f1(x1, x2), x2, x3), where
            x2 takes a way of its own. `three_hop`: f3(f2(f1(x1, x2), x3), x4). `parallel`:
            f3(f1(x1, x2), f2(x3, x4)).
        n_tokens: of each place, and of answers.
        n_examples: inputs that are trained on, drawn from all.
        seed: of the tables and the examples.
        n_bridges: values of the tables before the last; as many as tokens if not given.

    Raises:
        UsageError: for an unknown structure, fewer than two tokens, no examples or none left to
            test, or bridges that are fewer than two or more than tokens.
    """

    kind: ClassVar[str] = "composed_tables"
    splits: ClassVar[tuple[str, ...]] = ("in_distribution",)

    structure: Structure = "two_hop"
    n_tokens: int = 20
    n_examples: int = 5000
    seed: int = 0
    n_bridges: int | None = None

    def __post_init__(self) -> None:
        if self.structure not in get_args(Structure):
            known = ", ".join(get_args(Structure))
            raise UsageError(f"unknown structure {self.structure!r}: choose one of {known}")
        if self.n_tokens < 2 or not 0 < self.n_examples < self.n_tokens**self.n_places:
            raise UsageError(
                f"{self.n_tokens} tokens make {self.n_tokens**self.n_places} inputs, of which "
                f"some must be left to test; {self.n_examples} examples do not fit"
            )
        if self.n_bridges is not None and not 2 <= self.n_bridges <= self.n_tokens:
            raise UsageError(f"n_bridges is from 2 to n_tokens, not {self.n_bridges}")

    @property
    def n_places(self) -> int:
        """How many tokens an input has."""
        return LENGTHS[self.structure]

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The tokens of inputs, and those of answers."""
        return (*names("x", self.n_tokens), *names("t", self.n_tokens))

    @property
    def longest(self) -> int:
        """Tokens of an input, with its answer."""
        return self.n_places + 1

    def table(self, name: str, *arguments: np.ndarray) -> np.ndarray:
        """A random table, `f1`, `f2` or `f3`, at some arguments; the last one gives answers."""
        rng = np.random.default_rng([self.seed, *name.encode()])
        is_last = name == f"f{self.n_places - 1}"
        n_values = self.n_tokens if is_last else self.n_bridges or self.n_tokens
        whole = rng.integers(n_values, size=(self.n_tokens,) * len(arguments))
        found: np.ndarray = whole[arguments]
        return found

    @cached_property
    def inputs(self) -> np.ndarray:
        """All inputs, shape (input, place)."""
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
    def _mixed(self) -> np.ndarray:
        return np.random.default_rng([self.seed, 1]).permutation(len(self.inputs))

    @property
    def examples(self) -> np.ndarray:
        """The indices of the inputs that are trained on."""
        return self._mixed[: self.n_examples]

    @property
    def held_out(self) -> np.ndarray:
        """The indices of inputs that are not; 2,000 at most."""
        return self._mixed[self.n_examples :][:TESTED]

    def written(self, indices: np.ndarray) -> list[Written]:
        """Some inputs and their answers in words."""
        x, t = self.words[: self.n_tokens], self.words[self.n_tokens :]
        return [
            Written(tuple(x[token] for token in self.inputs[index]), (t[self.answers[index]],))
            for index in indices.tolist()
        ]

    def batches(self, vocabulary: Mapping[str, int], end: int, size: int) -> Callable[[int], Batch]:
        """Batches of the examples."""
        return Drawn(tabulated(self.written(self.examples), vocabulary, end), size, self.seed)

    def tests(self) -> Mapping[str, Sequence[Written]]:
        """What accuracy is measured on."""
        return {
            "trained": self.written(self.examples),
            "in_distribution": self.written(self.held_out),
        }

    def queries(self, split: str = "in_distribution") -> QuerySet:
        """Inputs as two-hop queries: of x1, which x2 leads to a bridge, and the rest to an answer.

        The bridge is no word of the world: no text ever names it, and analyses that read its name
        off a state, such as `project`, have nothing to read. See `coverage` for those by IICG.

        Args:
            split: `in_distribution` (held out), or `trained`.
        """
        indices = self.examples if split == "trained" else self.held_out
        return QuerySet(tuple(self._query(index) for index in indices.tolist()), split)

    def _query(self, index: int) -> TwoHopQuery:
        told = self.written(np.array([index]))[0]
        x1, x2, *rest = told.prompt
        return TwoHopQuery(
            id=".".join((x1, x2, *rest)),
            e1_label=x1,
            e2_label=f"b{self.bridges[index]}",
            e3_label=told.answer[0],
            r1_template=f"{{}} {x2}",
            r2_template=f"{{}} {' '.join(rest)}",
            r1_ending="",
            r2_ending="",
        )
