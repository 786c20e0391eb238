"""Provides the controls of a patching experiment: another query's vectors, and random ones."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from hopscope.queries.answers import normalise
from hopscope.queries.query import Query
from hopscope.queries.query_set import QuerySet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Donor:
    """The query that lends its states to another one.

    Attributes:
        query: the donor; its answer shares no name with that of the query it lends to.
        same_relation: whether it asks the same relation, too.
    """

    query: Query
    same_relation: bool


def all_candidates(queries: QuerySet) -> list[Query]:
    """A set and the one that it was chosen from, by id."""
    return sorted({q.id: q for q in (*queries.pool, *queries)}.values(), key=lambda q: q.id)


def names_of(query: Query) -> set[str]:
    """The normalised names of a query's bridges and answer."""
    return {normalise(name) for entity in query.entities[1:] for name in query.names(entity)}


def demonstrations_of(queries: QuerySet) -> dict[str, str]:
    """The normalised demonstrations of each query's whole question, by query id."""
    return {p.query_id: normalise(p.before) for p in queries.prompts()}


def choose_others(queries: QuerySet, seed: int) -> dict[str, Query]:
    """For each query another one, of other bridges and another answer: a chance level.

    It comes from the set that the queries were chosen from, asks the same last relation if
    possible, and its bridges and answer stand in no demonstration of the query.

    Returns:
        Queries by id of the query that they stand beside; one to which none fits is left out.
    """
    pool = all_candidates(queries)
    names = {query.id: names_of(query) for query in pool}
    labels = {query.id: tuple(map(normalise, query.labels[1:])) for query in pool}
    shown = demonstrations_of(queries)
    others: dict[str, Query] = {}
    for query in queries:
        candidates = list(pool)
        random.Random(f"{seed} {query.id}").shuffle(candidates)
        alike = [each for each in candidates if each.templates[-1] == query.templates[-1]]
        for other in chain(alike, candidates):
            leaked = any(label in shown[query.id] for label in labels[other.id])
            if not leaked and names[other.id].isdisjoint(names[query.id]):
                others[query.id] = other
                break
    return others


def fingerprint(others: Mapping[str, Query]) -> str:
    """sha256 of which query stands beside which: for a run's settings."""
    listed = [[id, *other.labels] for id, other in sorted(others.items())]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


class _Lenders:
    """Queries by id, of which those are counted and found whose answers share no given name."""

    def __init__(self, queries: Sequence[Query], answers: Mapping[str, frozenset[str]]) -> None:
        self._queries = queries
        self._with_name: dict[str, list[int]] = {}
        for place, query in enumerate(queries):
            for name in answers[query.id]:
                self._with_name.setdefault(name, []).append(place)
        self._sharing: dict[frozenset[str], list[int]] = {}

    def count(self, answer: frozenset[str]) -> int:
        """How many share no name with an answer."""
        return len(self._queries) - len(self._shared(answer))

    def at(self, number: int, answer: frozenset[str]) -> Query:
        """One of those that share no name with an answer, by its number among them."""
        shared = self._shared(answer)
        skipped = bisect_right(range(len(shared)), number, key=lambda i: shared[i] - i)
        return self._queries[number + skipped]

    def _shared(self, answer: frozenset[str]) -> list[int]:
        """The places of those that share a name with an answer, in their order."""
        if answer not in self._sharing:
            places = {place for name in answer for place in self._with_name.get(name, ())}
            self._sharing[answer] = sorted(places)
        return self._sharing[answer]


def last_relation(query: Query) -> tuple[str, str]:
    """What makes two last relations the same."""
    return query.relation_ids[-1], query.templates[-1]


def first_relation(query: Query) -> tuple[str, str]:
    """What makes two first relations the same."""
    return query.relation_ids[0], query.templates[0]


def choose_donors(
    queries: QuerySet,
    seed: int,
    relation: Callable[[Query], tuple[str, str]] = last_relation,
    same: bool = True,
) -> dict[str, Donor]:
    """For each query another one with another answer, of the same last relation if possible.

    Args:
        queries: the queries, which are also the donors.
        seed: of the draw.
        relation: the relation that is compared.
        same: whether a donor shall ask the same relation, or another one.

    Returns:
        Donors by query id; a query to which none fits is left out, and a warning says so.
    """
    ordered = sorted(queries, key=lambda query: query.id)
    answers = {q.id: frozenset(normalise(name) for name in q.names(q.answer)) for q in ordered}
    everyone = _Lenders(ordered, answers)
    asking: dict[tuple[str, str], list[Query]] = {}
    for query in ordered:
        asking.setdefault(relation(query), []).append(query)
    if not same:
        others = {key: [q for q in ordered if relation(q) != key] for key in asking}
    groups = {key: _Lenders(each, answers) for key, each in (asking if same else others).items()}
    donors: dict[str, Donor] = {}
    for query in queries:
        wanted = groups[relation(query)]
        found = wanted.count(answers[query.id]) > 0
        lenders = wanted if found else everyone
        if n := lenders.count(answers[query.id]):
            place = random.Random(f"{seed} {query.id}").choice(range(n))
            donors[query.id] = Donor(lenders.at(place, answers[query.id]), found == same)
    missing = len(queries) - len(donors)
    strange = sum(donor.same_relation != same for donor in donors.values())
    if missing:
        logger.warning(
            "%d of %d queries have no row with control 'other': no query in the set has another "
            "answer; give more queries",
            missing,
            len(queries),
        )
    if strange:
        which = ("another", "theirs") if same else ("the same", "another")
        logger.warning(
            "%d of %d queries borrow the vectors of control 'other' from a query with %s "
            "%s relation, since no other query in the set asks %s",
            strange,
            len(queries),
            which[0],
            "last" if relation is last_relation else "first",
            which[1],
        )
    return donors
