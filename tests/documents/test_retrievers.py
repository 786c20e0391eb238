"""Tests of retrievers, each beside a small implementation of its own, and of links by hand."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import networkx
import numpy as np
import pytest
import torch
from conftest import loaded
from hypothesis import given, settings
from hypothesis import strategies as st

from hopscope.documents.question_set import Document
from hopscope.documents.retrieval import (
    BM25,
    RETRIEVERS,
    Dense,
    PageRank,
    link_matrix,
    retriever_of,
)
from hopscope.errors import UsageError
from hopscope.models.embedding import mean_states
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_encoder_decoder

PASSAGES = [
    Document("Paris", "Paris river Seine tower tower"),
    Document("", "river bridge"),
    Document("Rome", "bridge tower river river sun moon stars night"),
    Document("Oslo", "snow"),
]


def bm25_by_hand(query: str, k1: float, b: float) -> list[float]:
    """The formula of Lucene, written out."""
    bags = [f"{each.title} {each.text}".lower().split() for each in PASSAGES]
    mean = sum(map(len, bags)) / len(bags)
    scores = []
    for bag in bags:
        score = 0.0
        for word in query.lower().split():
            n_with = sum(word in each for each in bags)
            idf = math.log(1 + (len(bags) - n_with + 0.5) / (n_with + 0.5))
            count = bag.count(word)
            score += idf * count / (count + k1 * (1 - b + b * len(bag) / mean))
        scores.append(score or math.nan)
    return scores


@pytest.mark.parametrize("query", ["tower", "river bridge", "Rome sun snow", "tower tower river"])
@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75)])
def test_bm25_is_its_formula(query: str, k1: float, b: float) -> None:
    found = BM25(k1, b).index(PASSAGES)(query)
    np.testing.assert_allclose(found, bm25_by_hand(query, k1, b), rtol=1e-5)
    assert (BM25().k1, BM25().b) == (0.9, 0.4)


def test_a_passage_without_a_word_of_the_question_is_not_found() -> None:
    scores = BM25().index(PASSAGES)
    assert np.isnan(scores("snow")).tolist() == [True, True, True, False]
    assert np.isnan(scores("the of is, ?")).all()
    assert np.isnan(scores("volcano")).all()
    assert np.isnan(BM25().index([Document("", "a"), Document("", "!")])("tower")).all()


def letters(texts: Sequence[str]) -> np.ndarray:
    """Vectors of three numbers: of a, of e, and of all characters."""
    return np.array([[text.count("a"), text.count("e"), len(text)] for text in texts])


def test_dense_is_the_cosine_of_vectors() -> None:
    found = Dense(letters).index(PASSAGES)("a tale")
    (query,) = letters(["a tale"])
    for score, each in zip(found, PASSAGES, strict=True):
        (vector,) = letters([f"{each.title} {each.text}".strip()])
        assert score == pytest.approx(query @ vector / math.hypot(*query) / math.hypot(*vector))


def test_mean_states_are_those_of_each_text_alone(tiny_model: LanguageModel) -> None:
    own = copy.deepcopy(tiny_model.hf)  # transformers leaves hooks where it tells states
    texts = ["The capital of France", "Paris", "a b c d e f g the river and the tower", "Rome is"]
    found = mean_states(tiny_model, texts)
    for vector, text in zip(found, texts, strict=True):
        ids = torch.tensor([tiny_model.encode(text).ids])
        with torch.no_grad():
            states = own(ids, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(vector, states[0].mean(dim=0), atol=1e-4, rtol=1e-4)


def test_mean_states_of_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_encoder_decoder("tiny-random-t5", device="cpu")
    monkeypatch.setattr("hopscope.models.embedding.TOKENS_PER_BATCH", 12)
    texts = ["The capital of France", "Paris", "Rome is a city of Italy"]
    found = mean_states(model, texts)
    for vector, text in zip(found, texts, strict=True):
        ids = torch.tensor([model.encode(text).ids])
        with torch.no_grad():
            states = model.encoder(input_ids=ids).last_hidden_state
        torch.testing.assert_close(vector, states[0].mean(dim=0), atol=1e-4, rtol=1e-4)


def test_dense_by_the_loaded_model(llama: LanguageModel) -> None:
    found = retriever_of("dense", llama).index(PASSAGES)("the tower of Rome")
    texts = ["the tower of Rome", *(f"{each.title} {each.text}".strip() for each in PASSAGES)]
    states = mean_states(llama, texts).double()
    cosines = torch.nn.functional.cosine_similarity(states[:1], states[1:])
    np.testing.assert_allclose(found, cosines, atol=1e-6)
    assert repr(Dense(llama)) == "Dense(mean states of tiny-random-llama)"
    assert (repr(Dense(letters)), repr(Dense("a/b"))) == ("Dense(letters)", "Dense(a/b)")


def test_dense_by_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions are encoded as queries, passages as documents."""

    class SentenceTransformer:
        def __init__(self, name: str) -> None:
            assert name == "me/embedder"

        def encode_query(self, texts: list[str]) -> np.ndarray:
            return np.array([[1.0, 0.0]] * len(texts))

        def encode_document(self, texts: list[str]) -> np.ndarray:
            return np.array([[1.0, float(len(text))] for text in texts])

    monkeypatch.setitem(
        sys.modules,
        "sentence_transformers",
        SimpleNamespace(SentenceTransformer=SentenceTransformer),  # type: ignore[arg-type]
    )
    found = Dense("me/embedder").index(PASSAGES)("?")
    lengths = [len(f"{each.title} {each.text}".strip()) for each in PASSAGES]
    np.testing.assert_allclose(found, [1 / math.hypot(1, n) for n in lengths])


def test_sentence_transformers_is_asked_for_where_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UsageError, match=r"not installed: pip install \"hopscope\[retrieval\]\""):
        Dense("me/embedder").index(PASSAGES)


LINKED = [
    Document("Seine", "It flows through Paris.", ("Paris",)),
    Document("Paris", "A city.", ()),
    Document("France", "Paris (here) and Seine are in it."),
    Document("Rome (city)", "paris is elsewhere; Nouveau Rome too, and New York"),
    Document("New York", "A city, unlike York or Rome."),
    Document("York", "Nothing.", ("Rome", "nowhere")),
    Document("Paris", "Another of the name."),
]


def test_links_by_hand() -> None:
    edges = {(0, 1), (0, 6), (2, 1), (2, 6), (2, 0), (3, 4), (3, 5), (4, 5), (4, 3), (5, 3)}
    expected = np.zeros((7, 7))
    for a, b in edges:
        expected[a, b] = expected[b, a] = 1
    np.testing.assert_array_equal(link_matrix(LINKED).toarray(), expected)
    assert link_matrix([Document("", "a")]).toarray().tolist() == [[0]]


def scored(*scores: float) -> SimpleNamespace:
    """A retriever with these scores."""
    return SimpleNamespace(name="made", index=lambda _: lambda _: np.array(scores))


def test_page_rank_of_two_linked_passages() -> None:
    """p0 = a + (1 - a) p1 and p1 = (1 - a) p0."""
    two = [Document("A", "", ("B",)), Document("B", "", ())]
    for a in (0.15, 0.5, 0.9):
        found = PageRank(scored(3.0, math.nan), restart=a).index(two)("?")
        first = a / (1 - (1 - a) ** 2)
        np.testing.assert_allclose(found, [first, (1 - a) * first], rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12),
    st.lists(st.sampled_from([math.nan, 0.0, 0.5, 1.0, 2.0, 4.0]), min_size=6, max_size=6),
    st.integers(1, 6),
    st.sampled_from([0.15, 0.5]),
)
def test_page_rank_is_that_of_networkx(
    edges: list[tuple[int, int]], scores: list[float], seeds: int, restart: float
) -> None:
    passages = [Document(f"T{n}", "", tuple(f"T{b}" for a, b in edges if a == n)) for n in range(6)]
    found = PageRank(scored(*scores), seeds, restart).index(passages)("?")
    first = sorted(range(6), key=lambda n: -np.nan_to_num(scores[n], nan=-1.0))[:seeds]
    mass = {n: float(np.nan_to_num(scores[n])) for n in first}
    if not any(mass.values()):
        np.testing.assert_array_equal(found, scores)
        return
    graph = networkx.Graph()
    graph.add_nodes_from(range(6))
    graph.add_edges_from((a, b) for a, b in edges if a != b)
    start = {n: mass.get(n, 0.0) for n in range(6)}
    expected = networkx.pagerank(
        graph, 1 - restart, start, max_iter=1000, tol=1e-13, dangling=start
    )
    for n in range(6):
        if expected[n] > 1e-9:
            assert found[n] == pytest.approx(expected[n], abs=1e-8)
        elif math.isnan(scores[n]):
            assert math.isnan(found[n])
        else:
            assert found[n] < 0, "behind all that the walk reaches"


def test_what_the_walk_does_not_reach_follows_in_the_order_of_the_seeds() -> None:
    passages = [Document(name, "", ("B",) * (name == "A")) for name in "ABCDE"]
    found = PageRank(scored(9.0, math.nan, 5.0, 7.0, math.nan), seeds=1).index(passages)("?")
    assert np.argsort(-np.nan_to_num(found, nan=-99)).tolist()[:4] == [0, 1, 3, 2]
    assert np.isnan(found[4])


def test_a_function_is_a_retriever() -> None:
    def longest(question: str, passages: Sequence[Document]) -> list[int]:
        return [len(each.text) * len(question) for each in passages]

    retriever = retriever_of(longest)
    assert (retriever.name, repr(retriever)) == ("longest", "longest")
    assert retriever.index(PASSAGES)("ab").tolist() == [2 * len(each.text) for each in PASSAGES]
    assert [retriever_of(name, loaded("tiny-random-llama")).name for name in RETRIEVERS] == [
        "bm25",
        "dense",
        "ppr",
        "random",
    ]
    assert retriever_of(BM25(k1=2.0)) == BM25(k1=2.0)


BAD = {
    "name": (lambda: retriever_of("bm52"), "unknown retriever 'bm52': choose one of bm25, .*mean"),
    "dense": (lambda: retriever_of("dense"), "'dense' needs vectors: give model=, .* or Dense"),
    "number": (lambda: retriever_of(3), r"a retriever is one of bm25, .* not 3"),  # type: ignore[arg-type]
    "seeds": (lambda: PageRank(seeds=0), "seeds must be 1 or more, not 0"),
    "restart": (lambda: PageRank(restart=1.5), "restart must be above 0 and at most 1, not 1.5"),
    "shape": (
        lambda: retriever_of(lambda question, passages: [1.0]).index(PASSAGES)("?"),
        r"gave an array of shape \(1,\): it must give one score a passage, shape \(4,\)",
    ),
    "vectors": (
        lambda: Dense(lambda texts: np.ones(len(texts))).index(PASSAGES),
        r"gave an array of shape \(4,\) for 4 texts: it must give one vector a text",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_retrievers_are_told(what: str) -> None:
    call, message = BAD[what]
    with pytest.raises(UsageError, match=message):
        call()
