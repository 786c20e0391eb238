"""Provides the controls of a patching experiment: another query's vectors, and random ones."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass

from hopscope.queries.answers import normalise
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Donor:
    """The query that lends its states to another one.

    Attributes:
        query: the donor; its answer shares no name with that of the query it lends to.
        same_relation: whether it asks the same second relation, too.
    """

    query: TwoHopQuery
    same_relation: bool


def all_candidates(queries: QuerySet) -> list[TwoHopQuery]:
    """A set and the one that it was chosen from, by id."""
    return sorted({q.id: q for q in (*queries.pool, *queries)}.values(), key=lambda q: q.id)


def names_of(query: TwoHopQuery) -> set[str]:
    """The normalised names of a query's bridge and answer."""
    return {normalise(name) for name in (*query.names("e2"), *query.names("e3"))}


def demonstrations_of(queries: QuerySet) -> dict[str, str]:
    """The normalised demonstrations of each query's two-hop prompt, by query id."""
    return {p.query_id: normalise(p.text[: p.few_shot]) for p in queries.prompts()}


def choose_others(queries: QuerySet, seed: int) -> dict[str, TwoHopQuery]:
    """For each query another one whose names of e2 and e3 it does not share: a chance level.

    It comes from the set that the queries were chosen from, asks the same second relation if
    possible, and its bridge and answer stand in no demonstration of the query.

    Returns:
        Queries by id of the query that they stand beside; one to which none fits is left out.
    """
    pool = all_candidates(queries)
    names = {query.id: names_of(query) for query in pool}
    shown = demonstrations_of(queries)
    others: dict[str, TwoHopQuery] = {}
    for query in queries:
        candidates = list(pool)
        random.Random(f"{seed} {query.id}").shuffle(candidates)
        candidates.sort(key=lambda other: other.r2_template != query.r2_template)
        for other in candidates:
            labels = (normalise(other.e2_label), normalise(other.e3_label))
            leaked = any(label in shown[query.id] for label in labels)
            if not leaked and not names[other.id] & names[query.id]:
                others[query.id] = other
                break
    return others


def fingerprint(others: Mapping[str, TwoHopQuery]) -> str:
    """sha256 of which query stands beside which: for a run's settings."""
    listed = [
        [id, *(getattr(other, f"{entity}_label") for entity in ("e1", "e2", "e3"))]
        for id, other in sorted(others.items())
    ]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def choose_donors(queries: QuerySet, seed: int) -> dict[str, Donor]:
    """For each query another one with another answer, of the same second relation if possible.

    Returns:
        Donors by query id; a query to which none fits is left out, and a warning says so.
    """
    answers = {query.id: {normalise(name) for name in query.names("e3")} for query in queries}
    donors: dict[str, Donor] = {}
    for query in queries:
        others = [
            o for o in sorted(queries, key=lambda q: q.id) if not answers[o.id] & answers[query.id]
        ]
        same = [o for o in others if (o.r2, o.r2_template) == (query.r2, query.r2_template)]
        pool = same or others
        if pool:
            chosen = random.Random(f"{seed} {query.id}").choice(pool)
            donors[query.id] = Donor(chosen, same_relation=bool(same))
    missing = len(queries) - len(donors)
    strange = sum(not donor.same_relation for donor in donors.values())
    if missing:
        logger.warning(
            "%d of %d queries have no row with control 'other': no query in the set has another "
            "answer; give more queries",
            missing,
            len(queries),
        )
    if strange:
        logger.warning(
            "%d of %d queries borrow the vectors of control 'other' from a query with another "
            "second relation, since no other query in the set asks theirs",
            strange,
            len(queries),
        )
    return donors
