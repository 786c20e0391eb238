"""Provides `world-docs`: two-hop questions over short documents, made from the facts of `world`."""

from __future__ import annotations

import csv
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources

from hopscope.documents.question_set import Document, Hop, MultiDocQuestion, QuestionSet
from hopscope.errors import QueryError
from hopscope.queries.load import load_queries
from hopscope.queries.two_hop_query import TwoHopQuery, lowered

_NAMES = """
Aaron Adam Agnes Albert Alice Amber Amy Andrew Angela Anna Arthur Ashley Audrey Barry Becky
Bella Ben Betty Blake Brad Brenda Brian Bruce Caleb Carl Carol Chad Charlie Chloe Claire Colin
Cora Craig Daisy Dale Daniel Daphne Darren David Dean Debbie Derek Diana Donna Doris Edgar Edith
Eileen Elaine Eli Ellen Elsie Emily Eric Erin Ethan Eva Faith Fiona Floyd Frank Fred Gail Gavin
Gina Glen Gloria Grace Greg Harold Harry Hazel Helen Holly Howard Irene Iris Ivan Ivy Jack Jake
Jane Jason Jean Jenny Jerry Jesse Jill Joan Joel Judy Julia Karen Karl Kate Keith Kelly Kevin
Kyle Lance Laura Lena Leo Leslie Liam Linda Lisa Lois Louis Lucy Luke Lydia Mabel Marcus Maria
Mark Martha Mason Max Megan Mia Mike Molly Nancy Naomi Nathan Neil Nick Nina Noah Nora Norman
Olive Oscar Owen Pam Patty Paul Peggy Percy Peter Phil Polly Rachel Ralph Rita Robin Roger Rosa
Roy Ruby Ruth Ryan Sally Sam Sandra Sara Scott Sean Sheila Simon Stella Steve Susan Sylvia Tara
Ted Terry Tim Tina Todd Toby Tracy Trevor Tyler Vera Victor Violet Walter Wanda Wayne Wendy
Zach Zoe
"""
NAMES = tuple(_NAMES.split())
"""Made-up names: common given names, of few tokens in any vocabulary. None is that of an entity of
`world`, and none is part of another, so that an answer names one of them or not."""
_NAME = re.compile(rf"\b(?:{'|'.join(NAMES)})\b")
FEW_SHOT = 2
"""Demonstrations in a prompt; a small model needs them to know what is asked for."""
WHO = ("creator", "family")
"""Types of relations whose object is a person."""


@cache
def _sentences() -> Mapping[str, str]:
    """The sentence that states a fact of each relation."""
    path = resources.files("hopscope.data") / "facts" / "relations.csv"
    with path.open(encoding="utf-8") as file:
        return {row["id"]: row["sentence"] for row in csv.DictReader(file)}


def world_docs(
    names: str = "invented",
    distractors: int = 4,
    seed: int = 0,
    name: str = "world-docs",
    *,
    terse: bool = False,
) -> QuestionSet:
    """Two-hop questions, each with two gold documents and distractors.

    A document is one sentence that states one fact, with its subject as the title. Distractors are
    chains of the same two relations about other entities, as far as there are any, so that the
    relations alone do not tell which document is gold. No two documents of a question speak of
    one subject, and no distractor leads to the answer. A question's `extra["others"]` has, for each
    chain of distractors, what could be asked of it: the whole and its two hops, with answers.

    Args:
        names: `invented` gives every entity a made-up name, drawn anew for each question, so that
            no memory can answer; `real` keeps the names.
        distractors: documents beside the gold ones.
        seed: of names, distractors and the original order.
        name: what the set is called.
        terse: documents of two names, subject and object, and questions of a number of hops and a
            name ("two Ann"), for models that are trained here: they have no language to learn.

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
        _question(query, alike[query.r1, query.r2], queries, names, distractors, seed, terse)
        for query in queries
    ]
    return QuestionSet(tuple(made), name, few_shot=FEW_SHOT)


def _question(
    query: TwoHopQuery,
    alike: Sequence[TwoHopQuery],
    everything: Sequence[TwoHopQuery],
    names: str,
    distractors: int,
    seed: int,
    terse: bool,
) -> MultiDocQuestion:
    rng = random.Random(f"{seed} {query.id}")
    facts, others = [_first(query), _second(query)], list[TwoHopQuery]()
    for other, fact in _others(query, alike, everything, rng):
        if len(facts) == distractors + 2:
            break
        facts.append(fact)
        if fact == _second(other):
            others.append(other)
    else:
        if len(facts) < distractors + 2:
            raise QueryError(
                f"the facts give question {query.id!r} only {len(facts) - 2} distractors, not "
                f"{distractors}; ask for fewer"
            )
    renamed = _renamed(facts, rng) if names == "invented" else {}
    order = rng.sample(range(len(facts)), len(facts))
    write, ask = (_pair, _asked_tersely) if terse else (_document, _asked)
    whole, first, second = ask(query, renamed)
    return MultiDocQuestion(
        id=query.id,
        question=whole[0],
        answer=whole[1],
        documents=tuple(write(facts[place], renamed) for place in order),
        hops=(Hop(*first, order.index(0)), Hop(*second, order.index(1))),
        aliases=() if renamed else query.e3_aliases,
        extra={"others": tuple(ask(other, renamed) for other in others)},
    )


def _named(query: TwoHopQuery, renamed: Mapping[str, str]) -> TwoHopQuery:
    """A query about entities with other names."""
    labels = {
        name: renamed.get(getattr(query, name), getattr(query, name))
        for name in ("e1_label", "e2_label", "e3_label")
    }
    return replace(query, **labels)


def _asked_tersely(query: TwoHopQuery, renamed: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """As `_asked`, in as few words as can be."""
    asked = _named(query, renamed)
    return (
        (f"two {asked.e1_label}", asked.e3_label),
        (f"one {asked.e1_label}", asked.e2_label),
        (f"one {asked.e2_label}", asked.e3_label),
    )


def _asked(query: TwoHopQuery, renamed: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """A query and its two hops, each a question and its answer."""
    asked = _named(query, renamed)
    who = "Who" if query.r2_type in WHO else "What"
    return (
        (_as_question(asked.two_hop(), who), asked.e3_label),
        (_as_question(asked.first_hop(), "What"), asked.e2_label),
        (_as_question(asked.second_hop(), who), asked.e3_label),
    )


def with_names(
    question: MultiDocQuestion, names: Sequence[str], rng: random.Random
) -> MultiDocQuestion:
    """A question of `world-docs` with its invented names replaced by others, drawn without repeats.

    Args:
        question: what is asked; words that are none of `NAMES` stay.
        names: what is drawn from.
        rng: by which.

    Raises:
        QueryError: if the question has more names than there are to draw.
    """
    texts = (question.question, question.answer, *(each.text for each in question.documents))
    old = list(dict.fromkeys(name for text in texts for name in _NAME.findall(text)))
    if len(old) > len(names):
        raise QueryError(
            f"question {question.id!r} has {len(old)} names, but only {len(names)} are there"
        )
    new = dict(zip(old, rng.sample(names, len(old)), strict=True))

    def said(text: str) -> str:
        return _NAME.sub(lambda found: new.get(found[0], found[0]), text)

    return replace(
        question,
        question=said(question.question),
        answer=said(question.answer),
        documents=tuple(Document(said(each.title), said(each.text)) for each in question.documents),
        hops=tuple(
            replace(hop, question=said(hop.question), answer=said(hop.answer))
            for hop in question.hops
        ),
        extra={
            "others": tuple(
                tuple((said(asked), said(told)) for asked, told in other)
                for other in question.extra.get("others", ())
            )
        },
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
) -> Iterator[tuple[TwoHopQuery, Fact]]:
    """Facts of other chains, those of the same relations first; never about a known subject."""
    named = {query.e1_label, query.e2_label, query.e3_label}
    for pool in (alike, everything):
        for other in rng.sample(pool, len(pool)):
            chain = {other.e1_label, other.e2_label, other.e3_label}
            if chain & named:
                continue
            named |= chain
            yield other, _first(other)
            yield other, _second(other)


def _pair(fact: Fact, renamed: Mapping[str, str]) -> Document:
    _, subject, target = fact
    subject, target = renamed.get(subject, subject), renamed.get(target, target)
    return Document(subject, f"{subject} {target}")


def _document(fact: Fact, renamed: Mapping[str, str]) -> Document:
    relation, subject, target = fact
    subject, target = renamed.get(subject, subject), renamed.get(target, target)
    sentence = _sentences()[relation].format(subject=subject, object=target)
    return Document(subject, sentence[:1].upper() + sentence[1:])


def _renamed(facts: Sequence[Fact], rng: random.Random) -> Mapping[str, str]:
    """A made-up name for each entity of some facts; no two alike."""
    labels = list(dict.fromkeys(label for fact in facts for label in fact[1:]))
    if len(labels) <= len(NAMES):
        return dict(zip(labels, rng.sample(NAMES, len(labels)), strict=True))
    pairs = [f"{first} {last}" for first in NAMES for last in NAMES]
    return dict(zip(labels, rng.sample(pairs, len(labels)), strict=True))
