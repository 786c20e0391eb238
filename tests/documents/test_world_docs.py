"""The bundled questions over documents: seeded, answerable, and with nothing that leaks."""

from __future__ import annotations

import csv
import random
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import hopscope.documents.world_docs
from hopscope.documents.load import load_questions
from hopscope.documents.question_set import MultiDocQuestion, QuestionSet
from hopscope.documents.world_docs import NAMES, with_names, world_docs
from hopscope.errors import QueryError
from hopscope.queries.load import load_queries
from hopscope.queries.two_hop_query import TwoHopQuery

FACTS = Path(hopscope.__file__).parent / "data" / "facts" / "relations.csv"
BOTH = pytest.mark.parametrize("source", ["world-docs", "world-docs-real"])


@cache
def asked(source: str, distractors: int = 4, seed: int = 0) -> QuestionSet:
    return load_questions(source, distractors=distractors, seed=seed)


@cache
def queries() -> dict[str, TwoHopQuery]:
    return {query.id: query for query in load_queries("world", few_shot=0)}


def says(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def text_of(question: MultiDocQuestion) -> str:
    documents = (f"{each.title}\n{each.text}" for each in question.documents)
    return "\n".join([question.question, *documents, *(hop.question for hop in question.hops)])


@BOTH
def test_there_is_a_question_for_every_query(source: str) -> None:
    assert [each.id for each in asked(source)] == list(queries())
    assert asked(source).name == source
    assert asked(source).few_shot == 2


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the facts, so that all takes little time."""
    part = load_queries("world", few_shot=0)[::9]
    monkeypatch.setattr(hopscope.documents.world_docs, "load_queries", lambda *_, **__: part)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("names", ["invented", "real"])
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(names: str) -> None:
    first, again, other = (world_docs(names, seed=seed) for seed in (0, 0, 1))
    assert again.questions == first.questions
    assert again.fingerprint == first.fingerprint
    assert other.fingerprint != first.fingerprint
    same = sum(a.documents == b.documents for a, b in zip(other, first, strict=True))
    assert same < 0.05 * len(first)


def test_bytes_do_not_change_from_version_to_version() -> None:
    first = asked("world-docs")[0]
    assert first.question == "What is the capital of the country containing Sam?"
    assert [each.text for each in first.documents][:2] == [
        "Erin is in Percy.",
        "Marcus is the capital of Oscar.",
    ]


@BOTH
def test_every_question_is_answered_by_its_two_gold_documents(source: str) -> None:
    for question in asked(source):
        first, second = (question.documents[hop.document] for hop in question.hops)
        start, bridge = first.title, second.title
        assert says(question.question, start), question
        assert says(first.text, start)
        assert says(first.text, bridge)
        assert says(second.text, bridge)
        assert says(second.text, question.answer)
        assert [hop.answer for hop in question.hops] == [bridge, question.answer]
        assert says(question.hops[0].question, start)
        assert says(question.hops[1].question, bridge)
        assert not says(question.question, bridge)
        assert not says(question.question, question.answer)
        assert question.ordered
        assert len(question.gold) == 2


@cache
def entities() -> dict[str, set[str]]:
    """The ids of the two entities in each sentence with real names."""
    found = {}
    with FACTS.open(encoding="utf-8", newline="") as handle:
        sentences = {row["id"]: row["sentence"] for row in csv.DictReader(handle)}
    for query in queries().values():
        for relation, subject, target in (("r1", "e1", "e2"), ("r2", "e2", "e3")):
            text = sentences[getattr(query, relation)].format(
                subject=getattr(query, f"{subject}_label"), object=getattr(query, f"{target}_label")
            )
            found[text[:1].upper() + text[1:]] = {getattr(query, subject), getattr(query, target)}
    return found


def test_no_distractor_has_the_start_the_bridge_or_the_answer_by_real_names() -> None:
    for question in asked("world-docs-real"):
        query = queries()[question.id]
        for each in question.distractors:
            of = entities()[question.documents[each].text]
            assert not of & {query.e1, query.e2, query.e3}, question


def test_no_distractor_has_the_start_the_bridge_or_the_answer_by_invented_names() -> None:
    for question in asked("world-docs"):
        named = {question.documents[question.gold[0]].title, *(h.answer for h in question.hops)}
        for each in question.distractors:
            words = set(re.findall(r"\w+", question.documents[each].text))
            assert not words & named, question


@BOTH
def test_no_two_documents_speak_of_one_subject(source: str) -> None:
    for question in asked(source):
        subjects = [document.title for document in question.documents]
        assert len(set(subjects)) == len(subjects) == 6


@BOTH
def test_most_distractors_are_chains_of_the_same_relations(source: str) -> None:
    def shape(question: MultiDocQuestion, each: int) -> str:
        document = question.documents[each]
        return re.sub(re.escape(document.title), "{}", document.text)[:12]

    alike = 0
    for question in asked(source):
        gold = {shape(question, each) for each in question.gold}
        alike += any(shape(question, each) in gold for each in question.distractors)
    assert alike > 0.5 * len(asked(source))


def test_invented_names_are_the_only_ones() -> None:
    parts = {*NAMES}
    for question in asked("world-docs"):
        query = queries()[question.id]
        titles = {document.title for document in question.documents}
        assert {question.answer, *(hop.answer for hop in question.hops), *titles} <= parts
        real = {query.e1_label, query.e2_label, query.e3_label} - parts
        assert not [name for name in real if says(text_of(question), name)], question
        assert question.aliases == ()


def test_no_invented_name_is_that_of_an_entity() -> None:
    """Else a memory of the facts prefers one of the documents."""
    real = {
        name
        for query in queries().values()
        for entity in ("e1", "e2", "e3")
        for name in (getattr(query, f"{entity}_label"), *getattr(query, f"{entity}_aliases"))
    }
    assert sorted(real & {*NAMES}) == []


def test_invented_names_are_drawn_anew_for_each_question() -> None:
    answers = [question.answer for question in asked("world-docs")]
    assert len(set(answers)) > 0.9 * len(NAMES)
    most = max(answers.count(name) for name in set(answers))
    assert most < 0.02 * len(answers)
    capitals = [q.answer for q in asked("world-docs") if q.id.endswith("country.capital")]
    assert len(set(capitals)) > 10


def test_no_invented_name_is_part_of_another() -> None:
    """Answers are found by containment, so "Brian" must not be right where "Ian" is asked for."""
    nested = [(a, b) for a in NAMES for b in NAMES if a != b and a.lower() in b.lower()]
    assert len(set(NAMES)) == len(NAMES)
    assert nested == []


def test_real_names_are_those_of_the_query() -> None:
    for question in asked("world-docs-real"):
        query = queries()[question.id]
        assert question.names == (query.e3_label, *query.e3_aliases)
        assert [hop.answer for hop in question.hops] == [query.e2_label, query.e3_label]
        assert question.documents[question.gold[0]].title == query.e1_label


def test_gold_documents_may_stand_anywhere() -> None:
    places = [question.gold for question in asked("world-docs")]
    share = 1 / 30
    for first in range(6):
        for second in range(6):
            if first != second:
                count = places.count((first, second)) / len(places)
                assert share / 2 < count < 2 * share


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("names", ["invented", "real"])
@pytest.mark.parametrize("distractors", [0, 1, 4, 40])
def test_there_are_as_many_distractors_as_were_asked_for(names: str, distractors: int) -> None:
    for question in world_docs(names, distractors):
        assert len(question.documents) == distractors + 2
        assert len(question.distractors) == distractors
        assert len({document.title for document in question.documents}) == distractors + 2
        assert len(question.gold) == 2


@pytest.mark.usefixtures("few")
def test_where_names_run_out_pairs_of_them_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopscope.documents.world_docs, "NAMES", NAMES[:12])
    for distractors, words in ((6, 1), (8, 2)):
        for question in world_docs("invented", distractors)[:20]:
            titles = [document.title for document in question.documents]
            assert len(set(titles)) == len(titles) == distractors + 2
            assert {len(title.split()) for title in titles} == {words}


@pytest.mark.usefixtures("few")
def test_more_distractors_than_there_are_facts_is_an_error() -> None:
    with pytest.raises(QueryError, match=r"only \d+ distractors, not 5000; take fewer"):
        world_docs("real", 5000)


def test_other_names_and_negative_numbers_are_errors() -> None:
    with pytest.raises(
        QueryError, match="unknown names 'fake': choose one of invented, shared, re"
    ):
        world_docs("fake")
    with pytest.raises(QueryError, match="0 or more, not -1"):
        load_questions("world-docs", distractors=-1)


@BOTH
def test_demonstrations_share_no_name_with_the_question(source: str) -> None:
    questions = asked(source)
    for question in questions[::50]:
        shown = questions.demonstrations(question)
        assert len(shown) == 2
        groups = [question.mentioned, *(each.mentioned for each in shown)]
        for a, b in pairwise([*groups, groups[0]]):
            assert not a & b
        assert all(len(each.documents) == 4 for each in shown)


# Other names


def words(question: MultiDocQuestion) -> list[str]:
    """All that a question says, word by word."""
    told = [question.question, question.answer]
    told += [text for each in question.documents for text in (each.title, each.text)]
    told += [text for hop in question.hops for text in (hop.question, hop.answer)]
    return re.findall(r"\w+", " | ".join(told))


def test_other_names_say_the_same_of_others():
    for question in world_docs(distractors=2).sample(60):
        other = with_names(question, NAMES[:12], random.Random(question.id))
        pairs = set(zip(words(question), words(other), strict=True))
        changed = {(old, new) for old, new in pairs if old in NAMES}
        assert all(old == new for old, new in pairs - changed)
        assert len({old for old, _ in changed}) == len({new for _, new in changed}) == len(changed)
        assert {new for _, new in changed} <= set(NAMES[:12])
        assert [hop.document for hop in other.hops] == [hop.document for hop in question.hops]


def test_too_few_names_are_refused():
    question = world_docs(distractors=2)[0]
    with pytest.raises(QueryError, match="only 2 were given"):
        with_names(question, NAMES[:2], random.Random(0))


@BOTH
def test_other_chains_are_asked_as_their_documents_tell(source):
    for question in asked(source, 4).sample(80):
        text = " ".join(each.text for each in question.documents)
        others = question.extra["others"]
        assert len(others) == 2
        for whole, first, second in others:
            assert whole[1] == second[1]
            assert whole != (question.question, question.answer)
            assert first[1] in text
            assert second[1] in text
            assert first[1] in second[0]
    renamed = with_names(asked("world-docs", 4)[0], NAMES[:20], random.Random(0))
    names = {name for name in NAMES if re.search(rf"\b{name}\b", str(renamed.extra))}
    assert names <= set(NAMES[:20])
