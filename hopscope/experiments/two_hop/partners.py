"""Provides the partner of a query: the same question about another source entity."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hopscope.errors import QueryError
from hopscope.experiments.two_hop import controls
from hopscope.models.language_model import LanguageModel
from hopscope.queries.answers import normalise
from hopscope.queries.prompts import Prompt
from hopscope.queries.query import Query
from hopscope.queries.query_set import QuerySet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A query and its partner, such as one that asks the same relations of another source entity.

    Nothing of the partner stands in the query's demonstrations, with which both are asked.

    Attributes:
        query: the query.
        partner: its partner, with another answer.
        tokens: the first token of each one's answer; they differ.
    """

    query: Query
    partner: Query
    tokens: tuple[int, int]


@dataclass(frozen=True)
class Alike:
    """What a query and its partner have in common, and in what they differ.

    Attributes:
        common: what both have.
        apart: names of which they share none.
        told: the partner in words, for messages.
    """

    common: Callable[[Query], tuple[str, ...]]
    apart: Callable[[Query], set[str]]
    told: str


def _answer(query: Query) -> set[str]:
    return {normalise(name) for name in query.names(query.answer)}


def relations_of(query: Query) -> tuple[str, ...]:
    """The relations that a query composes, as its prompt has them."""
    return *query.templates, query.endings[-1]


OTHER_SOURCE = Alike(
    relations_of,
    lambda query: {*controls.names_of(query), f"source {normalise(query.labels[0])}"},
    "with the same two relations, another bridge and another answer",
)
"""Another source entity: r2(r1(e1′))."""
OTHER_FIRST_RELATION = Alike(
    lambda query: (normalise(query.label("e1")), query.template("r2"), query.endings[-1]),
    lambda query: {*_answer(query), f"relation {query.templates[0]}"},
    "with the same source entity and second relation, another first relation and another answer",
)
"""Another first relation: r2(r1′(e1))."""
OTHER_SECOND_RELATION = Alike(
    lambda query: (normalise(query.label("e2")),),
    lambda query: {*_answer(query), f"relation {query.templates[-1]}"},
    "with the same bridge, another second relation and another answer",
)
"""Another second relation of the same bridge: r2′(e2)."""


def pair_up(
    model: LanguageModel, queries: QuerySet, seed: int, alike: Alike = OTHER_SOURCE
) -> dict[str, Pair]:
    """For each query a partner from the set, or the set's pool, drawn by seed.

    Args:
        model: the model, whose tokens must tell both answers apart.
        queries: the queries.
        seed: of the draw.
        alike: what a query and its partner have in common.

    Returns:
        Pairs by query id; a query to which none fits is left out, and a warning says so.

    Raises:
        QueryError: if no query has a partner.
    """
    groups: dict[tuple[str, ...], list[Query]] = {}
    candidates = controls.all_candidates(queries)
    for query in candidates:
        groups.setdefault(alike.common(query), []).append(query)
    names = {query.id: alike.apart(query) for query in candidates}
    shown = controls.demonstrations_of(queries)
    asked = {prompt.query_id: prompt.end for prompt in queries.prompts()}
    pairs: dict[str, Pair] = {}
    for query in queries:
        pool = [
            other
            for other in groups[alike.common(query)]
            if names[other.id].isdisjoint(names[query.id])
        ]
        pair = _partner(model, query, pool, seed, shown[query.id], asked[query.id])
        if pair is not None:
            pairs[query.id] = pair
    if not pairs and len(queries):
        raise QueryError(
            f"no query of {queries.name} has a partner: another one {alike.told}; give a larger set"
        )
    if len(pairs) < len(queries):
        logger.warning(
            "%d of %d queries have no partner %s: they are left out",
            len(queries) - len(pairs),
            len(queries),
            alike.told,
        )
    return pairs


def _partner(
    model: LanguageModel,
    query: Query,
    pool: list[Query],
    seed: int,
    shown: str,
    asked: str,
) -> Pair | None:
    """A partner from the pool of which nothing stands in the query's demonstrations, `shown`.

    Both answers are told by the tokens that continue the query's question, `asked`.
    """
    token = model.first_tokens([query.labels[-1]], required=False, after=asked)
    random.Random(f"{seed} {query.id}").shuffle(pool)
    for other in pool if token else ():
        theirs = model.first_tokens([other.labels[-1]], required=False, after=asked)
        labels = other.labels
        tells = theirs and theirs[0] != token[0]
        if tells and not any(normalise(label) in shown for label in labels):
            return Pair(query, other, (token[0], theirs[0]))
    return None


def fingerprint(pairs: Mapping[str, Pair]) -> str:
    """sha256 of who is whose partner: a run's settings hold it, since the pool is not the set."""
    return controls.fingerprint({id: pair.partner for id, pair in pairs.items()})


def with_substitution(prompt: Prompt, query: Query, **changes: str) -> Prompt:
    """A query's prompt with other labels or templates, after the same demonstrations."""
    return prompt.with_question(replace(query, **changes))
