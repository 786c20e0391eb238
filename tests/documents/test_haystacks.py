"""Tests of haystack(): what is in a haystack, in which order, and how much of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from multidoc import OTHER, QUESTION

import hopscope as hs
from hopscope.documents.corpus import Corpus, corpus_of, load_corpus
from hopscope.documents.haystack import haystack
from hopscope.documents.lay_out import lay_out
from hopscope.documents.orders import arrange, that_allow
from hopscope.documents.question_set import Document, Hop, MultiDocQuestion, QuestionSet
from hopscope.documents.retrieval import RETRIEVERS
from hopscope.documents.world_docs import world_docs
from hopscope.errors import QueryError, UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.queries.answers import matches
from hopscope.queries.load import load_queries

QUESTIONS = QuestionSet((QUESTION, OTHER), "made")
POOL = [
    Document("Kyoto", "The country of Japan."),
    Document("Lyon", "A city of the country France."),
    Document("Paris Hilton", "She was born in New York."),
    Document("Louvre", "A museum in Paris."),
    Document("Rome", "The capital of Italy."),
    Document("Imagine", "A song of 1971."),
]


def by_place(question: str, passages: Sequence[Document]) -> list[float]:
    """Earlier passages are nearer."""
    return [float(-place) for place in range(len(passages))]


def some_of(names: str) -> QuestionSet:
    """The questions of a part of the facts, so that all takes little time."""
    part = load_queries("world", few_shot=0)[::20]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hopscope.documents.world_docs.load_queries", lambda *_, **__: part)
        return world_docs(names, name=f"world-docs-{names}")


@cache
def shared() -> QuestionSet:
    return some_of("shared").sample(6, seed=2)


def test_in_world_docs_shared_an_entity_has_one_name() -> None:
    questions, real = shared(), some_of("real")
    names: dict[str, str] = {}
    by_id = {each.id: each for each in real}
    for question in questions.pool:
        before = by_id[question.id]
        pairs = zip(question.documents, before.documents, strict=True)
        for now, then in (
            *((a.title, b.title) for a, b in pairs),
            *zip(
                (hop.answer for hop in question.hops),
                (hop.answer for hop in before.hops),
                strict=True,
            ),
        ):
            assert names.setdefault(then, now) == now
            assert len(now.split()) == 2
    assert len(set(names.values())) == len(names) > 100


@pytest.mark.parametrize("retriever", RETRIEVERS)
def test_gold_and_passages_that_name_the_answer_are_no_distractors(
    retriever: str, llama: LanguageModel
) -> None:
    questions = shared()
    corpus = corpus_of(replace(questions, pool=questions.pool[::2]))
    found = haystack(questions, retriever, size=12, model=llama, corpus=corpus)
    for question, before in zip(found, questions, strict=True):
        gold = [before.documents[index] for index in before.gold]
        assert [question.documents[index] for index in question.gold] == gold
        assert [hop.answer for hop in question.hops] == [hop.answer for hop in before.hops]
        assert len(question.documents) == len(set(question.documents)) == 14
        for index in question.distractors:
            document = question.documents[index]
            assert document in corpus.passages
            assert not matches(f"{document.title} {document.text}", question.names)


def test_the_nearest_passages_are_taken_and_the_answers_left_out() -> None:
    (found,) = haystack(QUESTIONS[:1], by_place, size=3, corpus=POOL)
    titles = [each.title for each in found.documents]
    assert titles == ["Kyoto", "Lyon", "Rome", "the Tower", "France"], "Paris is the answer"
    assert found.gold == (3, 4)
    assert found.extra["retriever"] == "by_place"
    assert found.extra["scores"] == (0.0, -1.0, -4.0, -6.0, -7.0)


def test_gold_documents_stand_by_their_scores() -> None:
    def by_title(question: str, passages: Sequence[Document]) -> list[float]:
        return [float(ord(each.title[0])) for each in passages]

    (found,) = haystack(QUESTIONS[:1], by_title, size=4, corpus=POOL)
    initials = [each.title[0] for each in found.documents]
    assert initials == ["t", "R", "L", "K", "I", "F"]


def test_gold_that_is_not_found_comes_last_and_ties_are_drawn() -> None:
    def some(question: str, passages: Sequence[Document]) -> list[float]:
        return [1.0 if each.title == "Rome" else math.nan for each in passages]

    orders = set()
    for seed in range(12):
        (found,) = haystack(QUESTIONS[:1], some, size=4, corpus=POOL, seed=seed)
        titles = [each.title for each in found.documents]
        assert titles[0] == "Rome"
        assert set(titles[-2:]) == {"France", "the Tower"}
        orders.add(tuple(titles[1:4]))
        assert haystack(QUESTIONS[:1], some, size=4, corpus=POOL, seed=seed)[0] == found
    assert len(orders) > 4


def test_random_documents_are_drawn_evenly_and_gold_stands_anywhere() -> None:
    pool = [Document(f"T{n}", f"text {n}") for n in range(40)]
    drawn: dict[str, int] = {}
    places = []
    for seed in range(300):
        (found,) = haystack(QUESTIONS[:1], "random", size=4, corpus=pool, seed=seed)
        places.append(found.gold)
        for index in found.distractors:
            title = found.documents[index].title
            drawn[title] = drawn.get(title, 0) + 1
    assert len(drawn) == 40
    assert max(drawn.values()) < 60, "30 on average"
    for hop in (0, 1):
        counts = [[gold[hop] for gold in places].count(place) for place in range(6)]
        assert min(counts) > 25, "50 on average"


def test_a_yes_does_not_leave_out_passages_with_a_yes() -> None:
    asked = replace(QUESTION, answer="No", aliases=())
    pool = [Document("A", "No, it is not."), Document("B", "x")]
    (found,) = haystack(QuestionSet((asked,)), by_place, size=2, corpus=pool)
    assert {each.title for each in found.documents} >= {"A", "B"}


def test_the_pool_is_all_documents_of_the_set_it_was_taken_from() -> None:
    corpus = corpus_of(QUESTIONS[:1])
    assert set(corpus.passages) == {*QUESTION.documents, *OTHER.documents}
    assert len(corpus) == 6
    (found,) = haystack(QUESTIONS[:1], "random", size=4)
    assert set(found.documents) == {*QUESTION.documents, *OTHER.documents}


@pytest.mark.parametrize("retriever", ["bm25", "random", by_place])
@pytest.mark.parametrize("template", ["plain", "answer_only"])
@pytest.mark.parametrize("tokens", [40, 97])
def test_a_budget_of_tokens_is_used_up(
    retriever: Any, template: str, tokens: int, llama: LanguageModel
) -> None:
    found = haystack(
        shared(), retriever, tokens=tokens, model=llama, template=template, corpus=shared_corpus()
    )

    def encode(text: str) -> tuple[Sequence[int], Sequence[tuple[int, int]]]:
        encoded = llama.tokenize(text)
        return encoded.ids, encoded.offsets

    for question in found:
        layout = lay_out(encode, question, template=template, label="position")
        used = len(layout.tokens("distractors"))
        # Of a document that is cut there must be left something; a label may have a token more.
        spare = 16 if template == "answer_only" else 2
        assert tokens - spare <= used <= tokens + len(question.distractors)
        passages = shared_corpus().passages
        distractors = [question.documents[index] for index in question.distractors]
        cut = [each for each in distractors if each not in passages]
        assert len(cut) <= 1
        for last in cut:
            assert any(p.title == last.title and p.text.startswith(last.text) for p in passages)


@cache
def shared_corpus() -> Corpus:
    return corpus_of(replace(shared(), pool=shared().pool[::3]))


def test_size_and_tokens_both_bind(llama: LanguageModel) -> None:
    given = {"model": llama, "corpus": POOL}
    (few,) = haystack(QUESTIONS[:1], by_place, 1, 500, **given)
    (short,) = haystack(QUESTIONS[:1], by_place, 4, 40, **given)
    assert len(few.distractors) == 1
    assert 0 < len(short.distractors) < 4


def test_orders_of_a_haystack() -> None:
    (found,) = haystack(QUESTIONS[:1], by_place, size=3, corpus=POOL)
    assert arrange(found, "retrieved") == arrange(found, "original") == (0, 1, 2, 3, 4)
    assert arrange(found, "retrieved_reversed") == (4, 3, 2, 1, 0)
    assert arrange(found, "backward") == (0, 1, 2, 4, 3)
    assert sorted(arrange(found, "shuffle_2")) == [0, 1, 2, 3, 4]
    left = found.without([1])
    assert arrange(left, "retrieved_reversed") == (3, 2, 1, 0)
    layout = lay_out(lambda text: (range(len(text)), [(n, n + 1) for n in range(len(text))]), found)
    assert layout.tokens("distractor 2") == layout.tokens("document 1")
    with pytest.raises(QueryError, match="no distractor 4: the question has distractors 1 to 3"):
        layout.tokens("distractor 4")


def test_a_question_may_have_orders_of_its_own() -> None:
    asked = replace(QUESTION, orders={"by_year": (2, 0, 3, 1)})
    assert arrange(asked, "by_year") == (2, 0, 3, 1)
    assert arrange(asked.without([0]), "by_year") == (1, 2, 0)
    with pytest.raises(QueryError, match=r"unknown order 'by_age': give one of .*, by_year, or"):
        arrange(asked, "by_age")
    with pytest.raises(QueryError, match="'retrieved': its documents were not retrieved; make the"):
        arrange(asked, "retrieved")
    assert that_allow(QUESTIONS, ["retrieved", "forward"]) == QUESTIONS


def test_fingerprints_of_sets_without_orders_are_as_they_were() -> None:
    import hashlib

    def earlier(questions: QuestionSet) -> str:
        digest = hashlib.sha256()
        for each in questions:
            fields = {**asdict(each), "extra": None}
            del fields["orders"]
            fields["documents"] = [
                {"title": d["title"], "text": d["text"]} for d in fields["documents"]
            ]
            digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
        digest.update(f"{len(questions)} 0 0".encode())
        return digest.hexdigest()

    assert QUESTIONS.fingerprint == earlier(QUESTIONS)
    found = haystack(QUESTIONS[:1], by_place, size=3, corpus=POOL)
    turned = replace(found, questions=(replace(found[0], orders={}),))
    assert found.fingerprint != turned.fingerprint


def test_demonstrations_and_name_of_the_set() -> None:
    questions = shared()
    found = hs.haystack(questions, "ppr", size=3)
    assert found.few_shot == questions.few_shot == 2
    assert found.pool == questions.pool
    assert found.name == "world-docs-shared.ppr"
    assert len(found.demonstrations(found[0])) == 2


ROWS = [{"title": each.title, "text": each.text, "links": ["Rome"]} for each in POOL]


def sources(folder: Path) -> dict[str, Any]:
    """The same corpus in all forms."""
    path = folder / "pool.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    pd.DataFrame(ROWS).to_parquet(folder / "pool.parquet")
    return {
        "file": path,
        "parquet": str(folder / "pool.parquet"),
        "dataset": datasets.Dataset.from_list(ROWS),
        "rows": ROWS,
        "documents": [replace(each, links=("Rome",)) for each in POOL],
    }


@pytest.mark.parametrize("form", ["file", "parquet", "dataset", "rows", "documents"])
def test_a_corpus_may_have_many_forms(form: str, tmp_path: Path) -> None:
    corpus = load_corpus(sources(tmp_path)[form])
    assert list(corpus.passages) == POOL
    assert {each.links for each in corpus.passages} == {("Rome",)}
    assert corpus.fingerprint == load_corpus(ROWS).fingerprint
    assert load_corpus(corpus) is corpus
    assert haystack(QUESTIONS[:1], by_place, size=2, corpus=sources(tmp_path)[form])


def test_a_passage_counts_once() -> None:
    assert len(load_corpus([*ROWS, *ROWS])) == len(POOL)
    assert load_corpus([{"contents": "x"}]).passages == (Document("", "x"),)


def ungold() -> QuestionSet:
    return QuestionSet((MultiDocQuestion("t", "Who?", "", QUESTION.documents, ()),))


NO_TITLE = [{"title": "A", "text": "x"}, {"title": "B", "body": "y"}]
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no size": (lambda: haystack(QUESTIONS), UsageError, "give size= .distractors. or tokens="),
    "size": (lambda: haystack(QUESTIONS, size=0), UsageError, "size must be 1 or more, not 0"),
    "tokens": (
        lambda: haystack(QUESTIONS, tokens=9),
        UsageError,
        "tokens= needs the model whose tokens are counted: give model=",
    ),
    "too few": (
        lambda: haystack(QUESTIONS, size=99),
        QueryError,
        "question 'tower': the corpus has only 4 passages that can be distractors, not the 99 dist",
    ),
    "gold": (
        lambda: haystack(ungold(), size=1),
        QueryError,
        "question 't' does not say which documents are gold",
    ),
    "own names": (
        lambda: haystack(some_of("invented"), size=1),
        QueryError,
        "the names in world-docs-invented are drawn anew for each question, .* load 'world-docs-sh",
    ),
    "retriever": (lambda: haystack(QUESTIONS, "google", 1), UsageError, "unknown retriever 'goog"),
    "template": (
        lambda: haystack(QUESTIONS, size=1, template="plane"),
        UsageError,
        "unknown template 'plane'",
    ),
    "no file": (
        lambda: load_corpus("nothing.jsonl"),
        QueryError,
        "no corpus 'nothing.jsonl': it is neither a file that exists",
    ),
    "no text": (
        lambda: load_corpus(NO_TITLE),
        QueryError,
        "rows, row 2 has no text: put it in one of the fields text, .*; found title, body",
    ),
    "no row": (
        lambda: load_corpus(["text"]),  # type: ignore[list-item]
        QueryError,
        "rows, row 1 must be an object with fields, not 'text'",
    ),
    "empty": (lambda: load_corpus([]), QueryError, "rows contains no passage"),
    "links": (
        lambda: load_corpus([{"text": "x", "links": "Rome"}]),
        QueryError,
        "rows, row 1: links must be a list of titles, not 'Rome'",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_told(what: str) -> None:
    call, kind, message = BAD[what]
    with pytest.raises(kind, match=message):
        call()


def test_hops_that_share_a_document_keep_it() -> None:
    hops = (Hop("", "France", 3), Hop("", "Paris", 1), Hop("", "Paris", 3))
    (found,) = haystack(QuestionSet((replace(QUESTION, hops=hops),)), by_place, 2, corpus=POOL)
    assert [found.documents[hop.document].title for hop in found.hops] == [
        "the Tower",
        "France",
        "the Tower",
    ]
