"""Provides TwoHopFacts: atomic facts, and two-hop facts composed of them.

The task of Grokked Transformers (Wang et al. 2024), section 3: `h r -> b` and `h r1 r2 -> t`. Some
atoms are seen only alone: a two-hop fact with one of them as its first or second hop is out of
distribution.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

from hopscope.errors import UsageError
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery
from hopscope.worlds.tasks.examples import Drawn, Written, tabulated


class Composed(NamedTuple):
    """A two-hop fact: source entity, first relation, bridge, second relation, answer."""

    e1: str
    r1: str
    e2: str
    r2: str
    e3: str

    @property
    def query(self) -> TwoHopQuery:
        """The fact as a question; its prompts are the words themselves, without an ending."""
        return TwoHopQuery(
            id=f"{self.e1}.{self.r1}.{self.r2}",
            e1_label=self.e1,
            e2_label=self.e2,
            e3_label=self.e3,
            r1_template=f"{{}} {self.r1}",
            r2_template=f"{{}} {self.r2}",
            e1=self.e1,
            r1=self.r1,
            e2=self.e2,
            r2=self.r2,
            e3=self.e3,
            r1_type=self.r1,
            r2_type=self.r2,
            r1_ending="",
            r2_ending="",
        )


@dataclass(frozen=True)
class TwoHopFacts:
    """Facts about entities, drawn by seed: every relation of every entity is some entity.

    Attributes:
        n_entities: how many.
        n_relations: how many.
        unseen: share of the atoms that no two-hop fact of the training uses.
        held_out: two-hop facts of the other atoms that are not trained on.
        trained: two-hop facts that are; all the rest if None.
        atom_repeats: how often an atom stands in the training for each time that a two-hop fact
            does.
        seed: of the facts and what is held out.

    Raises:
        UsageError: for numbers that leave a split empty.
    """

    kind: ClassVar[str] = "two_hop_facts"
    splits: ClassVar[tuple[str, ...]] = ("in_distribution", "first_hop_ood", "second_hop_ood")

    n_entities: int = 50
    n_relations: int = 12
    unseen: float = 0.05
    held_out: int = 1000
    trained: int | None = None
    atom_repeats: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_entities, self.n_relations, self.atom_repeats, self.held_out) < 1:
            raise UsageError("a world needs entities, relations, atoms and held-out facts")
        n_unseen = round(self.unseen * self.n_entities * self.n_relations)
        if not 0 < n_unseen < self.n_entities * self.n_relations:
            raise UsageError(f"unseen is a share of the atoms that leaves some, not {self.unseen}")
        wanted = 1 if self.trained is None else self.trained
        if wanted < 1 or len(self._composed["trained"]) < wanted:
            raise UsageError(
                f"these facts compose to {len(self._seen)} two-hop facts; {self.held_out} held "
                f"out and {wanted} trained on do not fit"
            )
        empty = [split for split in self.splits if not self._composed[split]]
        if empty:
            raise UsageError(f"these facts leave {empty[0]} empty: take more, or another seed")

    @cached_property
    def entities(self) -> tuple[str, ...]:
        """The entities' names, all of one length: none begins another."""
        return names("e", self.n_entities)

    @cached_property
    def relations(self) -> tuple[str, ...]:
        """The relations' names."""
        return names("r", self.n_relations)

    @property
    def words(self) -> tuple[str, ...]:
        """All words of the world."""
        return (*self.entities, *self.relations)

    @property
    def longest(self) -> int:
        """Tokens of a two-hop fact, with its answer."""
        return 4

    @cached_property
    def atoms(self) -> Mapping[tuple[str, str], str]:
        """The entity that each relation of each entity is."""
        rng = random.Random(f"{self.seed} atoms")
        return {(h, r): rng.choice(self.entities) for h in self.entities for r in self.relations}

    @cached_property
    def unseen_atoms(self) -> frozenset[tuple[str, str]]:
        """The atoms that no two-hop fact of the training uses."""
        rng = random.Random(f"{self.seed} unseen")
        return frozenset(rng.sample(list(self.atoms), round(self.unseen * len(self.atoms))))

    @cached_property
    def _seen(self) -> list[Composed]:
        return self._compose(first_unseen=False, second_unseen=False)

    def _compose(self, first_unseen: bool, second_unseen: bool) -> list[Composed]:
        return [
            Composed(h, r1, b, r2, self.atoms[b, r2])
            for (h, r1), b in self.atoms.items()
            if ((h, r1) in self.unseen_atoms) == first_unseen
            for r2 in self.relations
            if ((b, r2) in self.unseen_atoms) == second_unseen
        ]

    @cached_property
    def _composed(self) -> Mapping[str, Sequence[Composed]]:
        mixed = list(self._seen)
        random.Random(f"{self.seed} held out").shuffle(mixed)
        rest = mixed[self.held_out :]
        return {
            "trained": rest[: self.trained],
            "in_distribution": mixed[: self.held_out],
            "first_hop_ood": self._compose(first_unseen=True, second_unseen=False),
            "second_hop_ood": self._compose(first_unseen=False, second_unseen=True),
        }

    def queries(self, split: str = "in_distribution") -> QuerySet:
        """The two-hop facts of a split as queries: one of `splits`, or `trained`."""
        facts = self._composed[split]
        return QuerySet(tuple(fact.query for fact in facts), split)

    @cached_property
    def _atoms_written(self) -> list[Written]:
        return [Written((h, r), (b,)) for (h, r), b in self.atoms.items()]

    def batches(self, vocabulary: Mapping[str, int], end: int, size: int) -> Drawn:
        """Batches of all atoms, each so many times, and the two-hop facts to train on."""
        two_hop = [Written((e1, r1, r2), (e3,)) for e1, r1, _, r2, e3 in self._composed["trained"]]
        examples = (*self._atoms_written * self.atom_repeats, *two_hop)
        return Drawn(tabulated(examples, vocabulary, end), size, self.seed)

    def tests(self) -> Mapping[str, Sequence[Written]]:
        """What accuracy is measured on: the atoms, what was trained on, and the splits."""
        return {"atoms": self._atoms_written} | {
            split: [Written((e1, r1, r2), (e3,)) for e1, r1, _, r2, e3 in facts]
            for split, facts in self._composed.items()
        }


def names(letter: str, n: int) -> tuple[str, ...]:
    """`n` names that begin with a letter, all of one length."""
    width = len(str(n - 1))
    return tuple(f"{letter}{number:0{width}}" for number in range(n))
