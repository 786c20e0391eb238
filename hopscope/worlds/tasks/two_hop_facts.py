"""Provides TwoHopFacts: atomic facts, and two-hop facts composed of them.

The task of Grokked Transformers (Wang et al. 2024), section 3: `h r -> b` and `h r1 r2 -> t`. Some
atomic facts never occur in a two-hop fact of the training set. A two-hop fact that has one of them
as its first or second hop is out of distribution (OOD). Beside them there may be zero-hop facts
`h -> h`, the Identity Bridge (Lin et al. 2025).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple, get_args

from hopscope.errors import UsageError, one_of
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery
from hopscope.worlds.tasks.examples import EpochBatches, Example, as_batch

ZeroHop = Literal["none", "identity", "shuffled"]


class Composed(NamedTuple):
    """A two-hop fact: source entity, first relation, bridge, second relation, answer."""

    e1: str
    r1: str
    e2: str
    r2: str
    e3: str

    @property
    def query(self) -> TwoHopQuery:
        """The fact as a query, whose prompts are the bare words without an ending."""
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


class AtomicFacts:
    """Random facts about entities: each relation maps each entity to some entity.

    A task of such facts is a frozen dataclass with these fields.
    """

    n_entities: int
    n_relations: int
    seed: int

    @cached_property
    def entities(self) -> tuple[str, ...]:
        """Names of the entities, all of the same length, so that none is a prefix of another."""
        return names("e", self.n_entities)

    @cached_property
    def relations(self) -> tuple[str, ...]:
        """Names of the relations."""
        return names("r", self.n_relations)

    @property
    def words(self) -> tuple[str, ...]:
        """The vocabulary of the task."""
        return (*self.entities, *self.relations)

    @cached_property
    def atoms(self) -> Mapping[tuple[str, str], str]:
        """The atomic facts: (entity, relation) -> entity."""
        rng = random.Random(f"{self.seed} atoms")
        return {(h, r): rng.choice(self.entities) for h in self.entities for r in self.relations}


@dataclass(frozen=True)
class TwoHopFacts(AtomicFacts):
    """Random facts about entities: each relation maps each entity to some entity.

    Attributes:
        n_entities: number of entities.
        n_relations: number of relations.
        unseen: share of the atomic facts that no two-hop training fact uses.
        held_out: number of held-out two-hop facts that are composed of the other atomic facts.
        trained: number of two-hop training facts; None for all that are not held out.
        atom_repeats: frequency of an atomic fact in training, relative to a two-hop fact.
        seed: seed of the facts and of the held-out facts.
        zero_hop: zero-hop training facts, as often as atomic ones: `none`; `identity`, `h -> h` for
            each entity; or, as their control, `shuffled`, `h -> g` with another entity for each.

    Raises:
        UsageError: if a value is out of range or leaves a split empty.
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
    zero_hop: ZeroHop = "none"

    def __post_init__(self) -> None:
        one_of("zero_hop", self.zero_hop, get_args(ZeroHop))
        if min(self.n_entities, self.n_relations, self.atom_repeats, self.held_out) < 1:
            raise UsageError(
                "n_entities, n_relations, atom_repeats and held_out must each be 1 or more"
            )
        n_unseen = round(self.unseen * self.n_entities * self.n_relations)
        if not 0 < n_unseen < self.n_entities * self.n_relations:
            raise UsageError(
                f"unseen must be a share that selects some atoms and leaves some, not {self.unseen}"
            )
        wanted = 1 if self.trained is None else self.trained
        if wanted < 1 or len(self._composed["trained"]) < wanted:
            raise UsageError(
                f"these facts compose to {len(self._composable)} two-hop facts; {self.held_out} "
                f"held out and {wanted} trained on do not fit"
            )
        empty = [split for split in self.splits if not self._composed[split]]
        if empty:
            raise UsageError(
                f"these facts leave {empty[0]} empty: take more facts, or another seed"
            )

    @property
    def longest(self) -> int:
        """Number of tokens of a two-hop fact with its answer."""
        return 4

    @cached_property
    def unseen_atoms(self) -> frozenset[tuple[str, str]]:
        """The atomic facts that no two-hop training fact uses."""
        rng = random.Random(f"{self.seed} unseen")
        return frozenset(rng.sample(list(self.atoms), round(self.unseen * len(self.atoms))))

    @cached_property
    def _composable(self) -> list[Composed]:
        """All two-hop facts that are composed of seen atomic facts."""
        return self._compose(first_unseen=False, second_unseen=False)

    def _compose(self, first_unseen: bool, second_unseen: bool) -> list[Composed]:
        """Return the two-hop facts whose first and second hop are unseen, or are not."""
        return [
            Composed(h, r1, b, r2, self.atoms[b, r2])
            for (h, r1), b in self.atoms.items()
            if ((h, r1) in self.unseen_atoms) == first_unseen
            for r2 in self.relations
            if ((b, r2) in self.unseen_atoms) == second_unseen
        ]

    @cached_property
    def _composed(self) -> Mapping[str, Sequence[Composed]]:
        """The two-hop facts of each split."""
        shuffled = list(self._composable)
        random.Random(f"{self.seed} held out").shuffle(shuffled)
        rest = shuffled[self.held_out :]
        return {
            "trained": rest[: self.trained],
            "in_distribution": shuffled[: self.held_out],
            "first_hop_ood": self._compose(first_unseen=True, second_unseen=False),
            "second_hop_ood": self._compose(first_unseen=False, second_unseen=True),
        }

    def queries(self, split: str = "in_distribution") -> QuerySet:
        """Return the two-hop facts of a split, one of `splits` or `trained`, as queries."""
        facts = self._composed[split]
        return QuerySet(tuple(fact.query for fact in facts), split)

    @cached_property
    def _atom_examples(self) -> list[Example]:
        return [Example((h, r), (b,)) for (h, r), b in self.atoms.items()]

    @cached_property
    def _zero_hop_examples(self) -> list[Example]:
        if self.zero_hop == "none":
            return []
        order = random.Random(f"{self.seed} zero-hop").sample(self.entities, self.n_entities)
        # Each leads to the next one, so that none leads to itself.
        answers = order if self.zero_hop == "identity" else [*order[1:], order[0]]
        return [Example((h,), (g,)) for h, g in zip(order, answers, strict=True)]

    def batches(self, vocabulary: Mapping[str, int], end: int, size: int) -> EpochBatches:
        """Return the batches of repeated zero-hop and atomic facts, and two-hop training facts."""
        two_hop = [Example((e1, r1, r2), (e3,)) for e1, r1, _, r2, e3 in self._composed["trained"]]
        repeated = [*self._zero_hop_examples, *self._atom_examples]
        examples = (*repeated * self.atom_repeats, *two_hop)
        return EpochBatches(as_batch(examples, vocabulary, end), size, self.seed)

    def tests(self) -> Mapping[str, Sequence[Example]]:
        """Return the examples on which accuracy is measured: atoms, training facts, and splits.

        Zero-hop facts are one more, if there are any.
        """
        composed = {
            split: [Example((e1, r1, r2), (e3,)) for e1, r1, _, r2, e3 in facts]
            for split, facts in self._composed.items()
        }
        zero_hop = {"zero_hop": self._zero_hop_examples} if self._zero_hop_examples else {}
        return {"atoms": self._atom_examples, **composed, **zero_hop}


def names(letter: str, n: int) -> tuple[str, ...]:
    """Return `n` numbered names that begin with a letter, all of the same length."""
    width = len(str(n - 1))
    return tuple(f"{letter}{number:0{width}}" for number in range(n))
