"""Provides MultiHopFacts: atomic facts, and chains of them of every length up to three or four.

As in TwoHopFacts (Grokked Transformers, Wang et al. 2024), `h r -> b`, and further `h r1 r2 -> t`
and `h r1 r2 r3 -> u`: the answer of each hop is the bridge to the next, and is due at the next
relation's token.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import ClassVar

from hopscope.errors import UsageError
from hopscope.queries.multi_hop_query import MultiHopQuery
from hopscope.queries.query import MAX_HOPS
from hopscope.queries.query_set import QuerySet
from hopscope.worlds.tasks.examples import EpochBatches, Example, as_batch
from hopscope.worlds.tasks.two_hop_facts import AtomicFacts

Chain = tuple[str, tuple[str, ...]]
"""A source entity, and the relations that lead on from it."""


@dataclass(frozen=True)
class MultiHopFacts(AtomicFacts):
    """Random facts about entities, and their compositions.

    Attributes:
        n_entities: number of entities.
        n_relations: number of relations; each maps each entity to some entity.
        n_hops: length of the longest chains, 3 or 4.
        held_out: number of the longest chains that are tested and not trained on.
        trained: number of the longest chains that are trained on, of those that are left.
        atom_repeats: frequency of an atomic fact in training, relative to a chain.
        seed: seed of the facts and of the held-out chains.

    Raises:
        UsageError: if a value is out of range, or there are too few chains.
    """

    kind: ClassVar[str] = "multi_hop_facts"
    splits: ClassVar[tuple[str, ...]] = ("in_distribution",)

    n_entities: int = 30
    n_relations: int = 8
    n_hops: int = 3
    held_out: int = 500
    trained: int = 8000
    atom_repeats: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        least = min(self.n_entities, self.n_relations, self.atom_repeats, self.held_out)
        if min(least, self.trained) < 1 or not 3 <= self.n_hops <= MAX_HOPS:
            raise UsageError(
                "n_entities, n_relations, atom_repeats, held_out and trained must each be 1 or "
                f"more, and n_hops 3 or {MAX_HOPS}"
            )
        chains = self.n_entities * self.n_relations**self.n_hops
        if self.held_out + self.trained > chains:
            raise UsageError(
                f"there are {chains} chains of {self.n_hops} hops; {self.held_out} held out and "
                f"{self.trained} trained on do not fit"
            )

    @property
    def longest(self) -> int:
        """Number of tokens of the longest chain with its answer."""
        return self.n_hops + 2

    def entities_of(self, chain: Chain) -> tuple[str, ...]:
        """The entities of a chain, from its source to its answer."""
        found = [chain[0]]
        for relation in chain[1]:
            found.append(self.atoms[found[-1], relation])
        return tuple(found)

    def _chains(self, length: int) -> list[Chain]:
        """All chains of so many hops."""
        relations = product(self.relations, repeat=length)
        return list(product(self.entities, relations))

    @cached_property
    def _composed(self) -> Mapping[str, Sequence[Chain]]:
        """The longest chains of each split."""
        chains = self._chains(self.n_hops)
        random.Random(f"{self.seed} held out").shuffle(chains)
        return {
            "trained": chains[self.held_out : self.held_out + self.trained],
            "in_distribution": chains[: self.held_out],
        }

    def queries(self, split: str = "in_distribution") -> QuerySet:
        """Return the longest chains of a split, `in_distribution` or `trained`, as queries."""
        return QuerySet(tuple(self._query(chain) for chain in self._composed[split]), split)

    def _query(self, chain: Chain) -> MultiHopQuery:
        """A chain as a query, whose prompts are the bare words without an ending."""
        source, relations = chain
        entities = self.entities_of(chain)
        return MultiHopQuery(
            ".".join((source, *relations)),
            entities,
            tuple(f"{{}} {relation}" for relation in relations),
            entity_ids=entities,
            relation_ids=relations,
            relation_types=relations,
            endings=("",) * self.n_hops,
        )

    def _examples(self, chains: Sequence[Chain]) -> list[Example]:
        return [Example((h, *path), self.entities_of((h, path))[-1:]) for h, path in chains]

    def batches(self, vocabulary: Mapping[str, int], end: int, size: int) -> EpochBatches:
        """Return the batches of repeated atomic facts and of all chains that are trained on."""
        shorter = [chain for length in range(2, self.n_hops) for chain in self._chains(length)]
        atoms = self._examples(self._chains(1))
        chains = self._examples([*shorter, *self._composed["trained"]])
        examples = (*atoms * self.atom_repeats, *chains)
        return EpochBatches(as_batch(examples, vocabulary, end), size, self.seed)

    def tests(self) -> Mapping[str, Sequence[Example]]:
        """Return the examples on which accuracy is measured: atoms and the splits."""
        splits = {split: self._examples(chains) for split, chains in self._composed.items()}
        return {"atoms": self._examples(self._chains(1))} | splits
