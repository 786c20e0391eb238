"""Provides `world-docs`: two-hop questions over short documents, made from the facts of `world`."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources

from .documents import Document, Hop, MultiDocQuestion, QuestionSet
from .errors import QueryError
from .prompts import TwoHopQuery, lowered
from .queries import load_queries

ONSETS = ("b", "br", "d", "dr", "f", "g", "gl", "h", "j", "k", "kr", "l", "m", "n", "p", "pr")
ONSETS += ("r", "s", "st", "t", "tr", "v", "vl", "w", "z")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "o", "a")
CODAS = ("", "", "l", "n", "r", "s", "m", "th", "x")
WHO = ("creator", "family")
"""Types of relations whose object is a person."""


@cache
def _sentences() -> Mapping[str, str]:
    """The sentence that states a fact of each relation."""
    path = resources.files("hopscope.data") / "facts" / "relations.csv"
    with path.open(encoding="utf-8") as file:
        return {row["id"]: row["sentence"] for row in csv.DictReader(file)}


def world_docs(
    names: str = "invented", distractors: int = 4, seed: int = 0, name: str = "world-docs"
) -> QuestionSet:
    """Two-hop questions, each with two gold documents and distractors.

    A document is one sentence that states one fact, with its subject as the title. Distractors are
    chains of the same two relations about other entities, as far as there are any, so that the
    relations alone do not tell which document is gold. No two documents of a question speak of
    one subject, and no distractor leads to the answer.

    Args:
        names: `invented` gives every entity a made-up name, another one in each question, so that
            no memory can answer; `real` keeps the names.
        distractors: documents beside the gold ones.
        seed: of names, distractors and the original order.
        name: what the set is called.

    Raises:
        QueryError: for other `names`, or a number of distractors that the facts cannot give.
    """
    if names not in ("invented", "real"):
        raise QueryError(f"unknown names {names!r}: choose invented or real")
    if distractors < 0:
        raise QueryError(f"distractors must be 0 or more, not {distractors}")
    queries = load_queries("world", few_shot=0)
    alike: dict[tuple[str, str], list[TwoHopQuery]] = defaultdict(list)
    for query in queries:
        alike[query.r1, query.r2].append(query)
    made = [
        _question(query, alike[query.r1, query.r2], queries, names, distractors, seed)
        for query in queries
    ]
    return QuestionSet(tuple(made), name)


def _question(
    query: TwoHopQuery,
    alike: Sequence[TwoHopQuery],
    everything: Sequence[TwoHopQuery],
    names: str,
    distractors: int,
    seed: int,
) -> MultiDocQuestion:
    rng = random.Random(f"{seed} {query.id}")
    facts = [_first(query), _second(query)]
    for fact in _others(query, alike, everything, rng):
        if len(facts) == distractors + 2:
            break
        facts.append(fact)
    else:
        if len(facts) < distractors + 2:
            raise QueryError(
                f"the facts give question {query.id!r} only {len(facts) - 2} distractors, not "
                f"{distractors}; ask for fewer"
            )
    renamed = _renamed(facts, rng) if names == "invented" else {}
    order = rng.sample(range(len(facts)), len(facts))
    labels = {
        name: renamed.get(getattr(query, name), getattr(query, name))
        for name in ("e1_label", "e2_label", "e3_label")
    }
    asked = replace(query, **labels)
    who = "Who" if query.r2_type in WHO else "What"
    return MultiDocQuestion(
        id=query.id,
        question=_as_question(asked.two_hop(), who),
        answer=asked.e3_label,
        documents=tuple(_document(facts[place], renamed) for place in order),
        hops=(
            Hop(_as_question(asked.first_hop(), "What"), asked.e2_label, order.index(0)),
            Hop(_as_question(asked.second_hop(), who), asked.e3_label, order.index(1)),
        ),
        aliases=() if renamed else query.e3_aliases,
    )


def _as_question(prompt: str, asks: str) -> str:
    """ "The capital of France is" as a question."""
    return f"{asks} is {lowered(prompt.removesuffix(' is'))}?"


Fact = tuple[str, str, str]
"""Relation, subject and object."""


def _first(query: TwoHopQuery) -> Fact:
    return query.r1, query.e1_label, query.e2_label


def _second(query: TwoHopQuery) -> Fact:
    return query.r2, query.e2_label, query.e3_label


def _others(
    query: TwoHopQuery,
    alike: Sequence[TwoHopQuery],
    everything: Sequence[TwoHopQuery],
    rng: random.Random,
) -> Iterator[Fact]:
    """Facts of other chains, those of the same relations first; never about a known subject."""
    named = {query.e1_label, query.e2_label, query.e3_label}
    for pool in (alike, everything):
        for other in rng.sample(pool, len(pool)):
            chain = {other.e1_label, other.e2_label, other.e3_label}
            if chain & named:
                continue
            named |= chain
            yield _first(other)
            yield _second(other)


def _document(fact: Fact, renamed: Mapping[str, str]) -> Document:
    relation, subject, target = fact
    subject, target = renamed.get(subject, subject), renamed.get(target, target)
    sentence = _sentences()[relation].format(subject=subject, object=target)
    return Document(subject, sentence[:1].upper() + sentence[1:])


def _renamed(facts: Sequence[Fact], rng: random.Random) -> Mapping[str, str]:
    """An invented name for each entity of some facts; no two alike."""
    labels = dict.fromkeys(label for fact in facts for label in fact[1:])
    taken: dict[str, None] = {}
    while len(taken) < len(labels):
        taken[_invented(rng)] = None
    return dict(zip(labels, taken, strict=True))


def _invented(rng: random.Random) -> str:
    """A name of two or three syllables."""
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.choice((2, 2, 3)))]
    return ("".join(syllables) + rng.choice(CODAS)).capitalize()
