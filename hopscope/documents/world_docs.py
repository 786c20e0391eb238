"""Provides `world-docs`: two-hop questions over short documents, built from facts of `world`."""

from __future__ import annotations

import csv
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import cast

from hopscope.documents.question_set import Document, Hop, MultiDocQuestion, QuestionSet
from hopscope.errors import QueryError, one_of
from hopscope.queries.load import load_queries
from hopscope.queries.query import lowered
from hopscope.queries.two_hop_query import TwoHopQuery

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
"""Invented names: common given names, which are a few tokens in any vocabulary. None belongs to an
entity of `world`, and none is part of another, so that whether a text names one is unambiguous."""
_NAME = re.compile(rf"\b(?:{'|'.join(NAMES)})\b")
FEW_SHOT = 2
"""Number of demonstrations in a prompt; a small model needs them to infer the task."""
WHO = ("creator", "family")
"""Types of relations whose object is a person, so that the question begins with "Who"."""


@cache
def _sentences() -> Mapping[str, str]:
    """Return, for each relation, the sentence template that states a fact."""
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
    """Build two-hop questions, each with two gold documents and some distractors.

    A document is one sentence that states one fact; its title is the subject of the fact. Where
    possible, distractors are chains of the same two relations about other entities, so that the
    relations do not give away the gold documents. All documents of a question have different
    subjects, and no distractor leads to the answer. A document links to those about the object of
    its fact. `extra["others"]` of a question holds, for each complete chain of distractors, the
    two-hop question and both single hops about it, with answers; `extra["own_names"]` says whether
    its names mean something else in other questions.

    Args:
        names: `invented` gives each entity an invented name, drawn anew for each question, so that
            questions cannot be answered from memory; `shared` gives it one for the whole set, so
            that the documents of all questions are about one world; `real` keeps the names.
        distractors: number of documents besides the two gold ones.
        seed: seed of names, distractors and the original order.
        name: name of the set.
        terse: whether to reduce a document to two names, subject and object, and a question to the
            number of hops and a name ("two Ann"). Models that are trained here then need not learn
            a language.

    Raises:
        QueryError: for other `names`, or if the facts do not give enough distractors.
    """
    one_of("names", names, ("invented", "shared", "real"), QueryError)
    if distractors < 0:
        raise QueryError(f"distractors must be 0 or more, not {distractors}")
    queries = load_queries("world", few_shot=0)
    by_relations: dict[tuple[str, str], list[TwoHopQuery]] = defaultdict(list)
    asked = cast("Sequence[TwoHopQuery]", queries)
    for query in asked:
        by_relations[query.r1, query.r2].append(query)
    given: Mapping[str, str] | None = None if names == "invented" else {}
    if names == "shared":
        facts = [fact for query in asked for fact in (_first(query), _second(query))]
        given = _renamed(facts, random.Random(seed))
    questions = [
        _question(query, by_relations[query.r1, query.r2], asked, given, distractors, seed, terse)
        for query in asked
    ]
    return QuestionSet(tuple(questions), name, few_shot=FEW_SHOT)


def _question(
    query: TwoHopQuery,
    same_relations: Sequence[TwoHopQuery],
    all_queries: Sequence[TwoHopQuery],
    given: Mapping[str, str] | None,
    distractors: int,
    seed: int,
    terse: bool,
) -> MultiDocQuestion:
    """Build the question over documents of one query.

    Args:
        query: the query.
        same_relations, all_queries: where distractors come from.
        given: other names for entities; None to draw them for this question.
        distractors, seed, terse: as for `world_docs`.
    """
    rng = random.Random(f"{seed} {query.id}")
    facts, others = [_first(query), _second(query)], list[TwoHopQuery]()
    for other, fact in _distractor_facts(query, same_relations, all_queries, rng):
        if len(facts) == distractors + 2:
            break
        facts.append(fact)
        if fact == _second(other):
            others.append(other)
    else:
        if len(facts) < distractors + 2:
            raise QueryError(
                f"the facts give question {query.id!r} only {len(facts) - 2} distractors, not "
                f"{distractors}; take fewer"
            )
    renamed = _renamed(facts, rng) if given is None else given
    order = rng.sample(range(len(facts)), len(facts))
    write_document, write_questions = (
        (_terse_document, _terse_questions) if terse else (_document, _questions)
    )
    two_hop, first, second = write_questions(query, renamed)
    return MultiDocQuestion(
        id=query.id,
        question=two_hop[0],
        answer=two_hop[1],
        documents=tuple(write_document(facts[place], renamed) for place in order),
        hops=(Hop(*first, order.index(0)), Hop(*second, order.index(1))),
        aliases=() if renamed else query.e3_aliases,
        extra={
            "others": tuple(write_questions(other, renamed) for other in others),
            "own_names": given is None,
        },
    )


def _with_labels(query: TwoHopQuery, renamed: Mapping[str, str]) -> TwoHopQuery:
    """Return the query with other names for its entities."""
    labels = {
        name: renamed.get(getattr(query, name), getattr(query, name))
        for name in ("e1_label", "e2_label", "e3_label")
    }
    return replace(query, **labels)


def _terse_questions(query: TwoHopQuery, renamed: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the same as `_questions`, each question as a number of hops and a name."""
    query = _with_labels(query, renamed)
    return (
        (f"two {query.e1_label}", query.e3_label),
        (f"one {query.e1_label}", query.e2_label),
        (f"one {query.e2_label}", query.e3_label),
    )


def _questions(query: TwoHopQuery, renamed: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the two-hop question and the two single hops, each with its answer."""
    query = _with_labels(query, renamed)
    who = "Who" if query.r2_type in WHO else "What"
    return (
        (_as_question(query.two_hop(), who), query.e3_label),
        (_as_question(query.first_hop(), "What"), query.e2_label),
        (_as_question(query.second_hop(), who), query.e3_label),
    )


def with_names(
    question: MultiDocQuestion, names: Sequence[str], rng: random.Random
) -> MultiDocQuestion:
    """Replace the invented names of a `world-docs` question by others, drawn without repeats.

    Args:
        question: the question; words that are not in `NAMES` stay.
        names: the names to draw from.
        rng: source of randomness.

    Raises:
        QueryError: if the question contains more names than `names`.
    """
    texts = (question.question, question.answer, *(each.text for each in question.documents))
    old = list(dict.fromkeys(name for text in texts for name in _NAME.findall(text)))
    if len(old) > len(names):
        raise QueryError(
            f"question {question.id!r} has {len(old)} names, but only {len(names)} were given; "
            "give more"
        )
    new = dict(zip(old, rng.sample(names, len(old)), strict=True))

    def renamed(text: str) -> str:
        return _NAME.sub(lambda match: new.get(match[0], match[0]), text)

    return replace(
        question,
        question=renamed(question.question),
        answer=renamed(question.answer),
        documents=tuple(
            Document(renamed(each.title), renamed(each.text)) for each in question.documents
        ),
        hops=tuple(
            replace(hop, question=renamed(hop.question), answer=renamed(hop.answer))
            for hop in question.hops
        ),
        extra={
            "others": tuple(
                tuple((renamed(text), renamed(answer)) for text, answer in other)
                for other in question.extra.get("others", ())
            )
        },
    )


def _as_question(prompt: str, interrogative: str) -> str:
    """Turn a prompt such as "The capital of France is" into a question."""
    return f"{interrogative} is {lowered(prompt.removesuffix(' is'))}?"


Fact = tuple[str, str, str]
"""A relation, its subject and its object."""


def _first(query: TwoHopQuery) -> Fact:
    """Return the fact of the first hop."""
    return query.r1, query.e1_label, query.e2_label


def _second(query: TwoHopQuery) -> Fact:
    """Return the fact of the second hop."""
    return query.r2, query.e2_label, query.e3_label


def _distractor_facts(
    query: TwoHopQuery,
    same_relations: Sequence[TwoHopQuery],
    all_queries: Sequence[TwoHopQuery],
    rng: random.Random,
) -> Iterator[tuple[TwoHopQuery, Fact]]:
    """Yield facts of other chains, those of the same relations first, with the chain's query.

    No chain shares an entity with the query or with an earlier chain.
    """
    named = {query.e1_label, query.e2_label, query.e3_label}
    for pool in (same_relations, all_queries):
        for other in rng.sample(pool, len(pool)):
            chain = {other.e1_label, other.e2_label, other.e3_label}
            if chain & named:
                continue
            named |= chain
            yield other, _first(other)
            yield other, _second(other)


def _terse_document(fact: Fact, renamed: Mapping[str, str]) -> Document:
    """Write a fact as its subject and object alone."""
    _, subject, target = fact
    subject, target = renamed.get(subject, subject), renamed.get(target, target)
    return Document(subject, f"{subject} {target}", (target,))


def _document(fact: Fact, renamed: Mapping[str, str]) -> Document:
    """Write a fact as a sentence."""
    relation, subject, target = fact
    subject, target = renamed.get(subject, subject), renamed.get(target, target)
    sentence = _sentences()[relation].format(subject=subject, object=target)
    return Document(subject, sentence[:1].upper() + sentence[1:], (target,))


def _renamed(facts: Sequence[Fact], rng: random.Random) -> Mapping[str, str]:
    """Draw a different invented name for each entity of the given facts."""
    labels = list(dict.fromkeys(label for fact in facts for label in fact[1:]))
    if len(labels) <= len(NAMES):
        return dict(zip(labels, rng.sample(NAMES, len(labels)), strict=True))
    pairs = [f"{first} {last}" for first in NAMES for last in NAMES]
    return dict(zip(labels, rng.sample(pairs, len(labels)), strict=True))
