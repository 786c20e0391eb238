"""Provides what analyses of chains of two to four hops share: positions, bridges, their names."""

from __future__ import annotations

from collections.abc import Sequence

from hopscope.experiments.arguments import ListOf
from hopscope.queries.query import POSITIONS, Query
from hopscope.queries.query_set import QuerySet

ENDS = (*POSITIONS, "e1")
"""Where a state may be read: the ends of the phrases and of the prompt, and of the source."""


def positions_of(
    queries: QuerySet, given: Sequence[str] | None, known: Sequence[str] = ENDS
) -> list[str]:
    """The positions that are asked for; those of the queries' hops if None.

    Args:
        queries: the queries.
        given: what was asked for.
        known: the positions of queries of any number of hops.

    Raises:
        UsageError: for one that these queries do not have.
    """
    if given is None:
        return list(queries.positions)
    missing = set(POSITIONS) - set(queries.positions)
    there = [position for position in known if missing.isdisjoint(position.split("->"))]
    found: list[str] = ListOf(there).checked("positions", given, None)
    return found


def bridge_at(query: Query, position: str) -> str:
    """The bridge that belongs to a position: that of its hop; at the end, and at e1, see below.

    At t1 that is e2, at t2 of three hops e3; the end of the prompt has the last bridge, and the
    source entity the first.
    """
    hop = query.positions.index(position) if position in query.positions else 0
    return query.bridges[min(hop, len(query.bridges) - 1)]


def bridges_of(query: Query) -> str:
    """The labels of a query's bridges, in their order."""
    return " → ".join(query.labels[1:-1])
