"""Provides list questions, which have several right answers, and those of the bundled facts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from hopscope.queries.build_bundled import (
    DATA,
    Entity,
    Facts,
    Relation,
    chain_of,
    load_facts,
    read_rows,
)
from hopscope.queries.formats import to_frame
from hopscope.queries.multi_hop_query import MultiHopQuery
from hopscope.queries.query import Query
from hopscope.queries.query_set import QuerySet

ANSWERS = "answers"
"""The column of `Query.extra` that holds the names of each right answer."""
LEAST = 5
"""Right answers of a question of `world-lists`, at least."""


def one_of_each_prompt(queries: QuerySet) -> QuerySet:
    """Put queries that ask the same into one, of which all their answers are right.

    It is the first of them, with the names of the other answers among its aliases, so that no
    demonstration gives one away; `right_answers` tells them apart. A query that is alone stays.

    Example:
        >>> asked = load_queries("world-lists")                          # doctest: +SKIP
        >>> right_answers(one_of_each_prompt(asked)[0])                  # doctest: +SKIP
        (('Esbjerg',), ('Odense',), ...)
    """
    same: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        same[query.compose()[0]].append(query)
    return replace(queries, queries=tuple(map(_joined, same.values())))


def _joined(same: list[Query]) -> Query:
    """One query with the answers of all."""
    first, *others = same
    answers = tuple(dict.fromkeys(names for query in same for names in right_answers(query)))
    if not others:
        return first
    names = dict.fromkeys(name for each in answers for name in each)
    aliases = tuple(name for name in names if name != first.label("e3"))
    return replace(first, e3_aliases=aliases, extra={**first.extra, ANSWERS: answers})


def right_answers(query: Query) -> tuple[tuple[str, ...], ...]:
    """The names of each right answer of a query; of one that is no list question, of e3 alone."""
    return query.extra.get(ANSWERS, (query.names("e3"),))  # type: ignore[return-value]


def world_lists() -> pd.DataFrame:
    """The list questions of the bundled facts, a row for each right answer.

    They ask the inverse of a relation, such as "A city in the country containing the Eiffel Tower
    is": the right answers are all that the facts have, and not all that there are.
    """
    facts = load_facts()
    return to_frame(query for same in _questions(facts) for query in same)


def _questions(facts: Facts) -> Iterator[list[MultiHopQuery]]:
    """The queries of each question, one for each answer.

    They have an inverse relation, a bridge, and the first e1 that fits.
    """
    subjects: dict[tuple[str, str, str], list[Entity]] = defaultdict(list)
    leading: dict[str, list[tuple[Entity, Relation]]] = defaultdict(list)
    for (subject, relation), target in sorted(facts.objects.items()):
        entity = facts.entities[subject]
        subjects[entity.type, relation, target].append(entity)
        leading[target].append((entity, facts.relations[relation]))
    for inverse in read_rows(DATA / "facts" / "lists.csv"):
        kind, relation = inverse["subject_type"], inverse["relation"]
        r2 = Relation(f"{kind}-of-{relation}", "list", inverse["template"])
        for bridge in sorted(facts.entities):
            e2, answers = facts.entities[bridge], subjects.get((kind, relation, bridge), [])
            found = (
                [query for e3 in answers if (query := chain_of((e1, e2, e3), (r1, r2)))]
                for e1, r1 in leading[bridge]
            )
            same = next((queries for queries in found if len(queries) >= LEAST), [])
            yield [replace(each, id=f"{each.id}.{each.entity_ids[-1]}") for each in same]
