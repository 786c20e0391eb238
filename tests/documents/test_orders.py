"""Orders of documents, by hand and by what must hold of all of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidoc import question_of

from hopscope.documents.orders import arrange, order_name, shuffles
from hopscope.documents.question_set import MultiDocQuestion
from hopscope.errors import QueryError

TWO = question_of(6, [4, 1])
THREE = question_of(8, [5, 0, 3])
ONE = question_of(3, [1])
REPEATED = question_of(5, [3, 0, 3])

CASES = [
    (TWO, "original", (0, 1, 2, 3, 4, 5)),
    (TWO, "forward", (0, 4, 2, 3, 1, 5)),
    (TWO, "backward", (0, 1, 2, 3, 4, 5)),
    (TWO, "gold", (4, 1)),
    (TWO, "rm_first", (0, 1, 2, 3, 5)),
    (TWO, "forward_0", (0, 2, 3, 5, 4, 1)),
    (TWO, "forward_1", (0, 2, 3, 4, 5, 1)),
    (TWO, "forward_2", (0, 2, 4, 3, 5, 1)),
    (TWO, "forward_4", (4, 0, 2, 3, 5, 1)),
    (TWO, "backward_0", (0, 2, 3, 5, 1, 4)),
    (TWO, "backward_3", (0, 1, 2, 3, 5, 4)),
    (THREE, "forward", (5, 1, 2, 0, 4, 3, 6, 7)),
    (THREE, "backward", (3, 1, 2, 0, 4, 5, 6, 7)),
    (THREE, "gold", (5, 0, 3)),
    (THREE, "rm_first", (0, 1, 2, 3, 4, 6, 7)),
    (THREE, "forward_0", (1, 2, 4, 6, 7, 5, 0, 3)),
    (THREE, "forward_1", (1, 2, 4, 5, 6, 0, 7, 3)),
    (THREE, "forward_2", (1, 5, 2, 4, 0, 6, 7, 3)),
    (THREE, "backward_2", (1, 3, 2, 4, 0, 6, 7, 5)),
    (ONE, "forward", (0, 1, 2)),
    (ONE, "forward_2", (0, 2, 1)),
    (ONE, "rm_first", (0, 2)),
    (ONE, "gold", (1,)),
    (REPEATED, "gold", (3, 0)),
    (REPEATED, "forward", (3, 1, 2, 0, 4)),
    (REPEATED, "forward_1", (1, 2, 3, 4, 0)),
    (TWO, [5, 0, 4], (5, 0, 4)),
    (TWO, np.array([2, 1]), (2, 1)),
    (TWO, range(6), (0, 1, 2, 3, 4, 5)),
]


@pytest.mark.parametrize(("question", "order", "expected"), CASES)
def test_orders_by_hand(
    question: MultiDocQuestion, order: str | list[int], expected: tuple[int, ...]
) -> None:
    assert arrange(question, order) == expected
    assert all(type(each) is int for each in arrange(question, order))


def test_an_order_is_called_by_its_name_or_its_indices() -> None:
    assert order_name("forward_3") == "forward_3"
    assert order_name([3, 0, 12]) == "3-0-12"
    assert order_name(np.array([1, 0])) == "1-0"


@pytest.mark.parametrize(
    ("question", "order", "message"),
    [
        (TWO, "forwards", "unknown order 'forwards'"),
        (TWO, "forward_", "unknown order"),
        (TWO, "forward_-1", "unknown order"),
        (TWO, "rm_first_1", "unknown order"),
        (TWO, "gold_1", "unknown order"),
        (TWO, "shuffle", "unknown order"),
        (TWO, " original", "unknown order"),
        (TWO, "", "unknown order"),
        (TWO, "forward_5", "needs 5 distractors and has 4"),
        (TWO, "backward_5", "needs 5 distractors and has 4"),
        (THREE, "forward_3", "needs 6 distractors and has 5"),
        (TWO, [0, 6], "there is no document 6; its documents are 0, 1, 2, 3, 4, 5"),
        (TWO, [-1], "there is no document -1"),
        (TWO, [1, 1], "it must name documents once each"),
        (TWO, [], "it must name documents once each"),
        (ONE, "shuffle_6", "only 6 orders, but 7 different"),
    ],
)
def test_impossible_orders_are_errors(
    question: MultiDocQuestion, order: str | list[int], message: str
) -> None:
    with pytest.raises(QueryError, match=message):
        arrange(question, order)


@pytest.mark.parametrize("order", ["forward", "backward", "forward_0", "backward_1", "rm_first"])
def test_without_a_known_chain_there_is_no_order_by_chain(order: str) -> None:
    unordered = question_of(6, [4, 1], ordered=False)
    for each in (order, "gold"):
        with pytest.raises(QueryError, match="the order of its hops is not known"):
            arrange(unordered, each)


def test_an_unknown_chain_leaves_the_other_orders() -> None:
    unordered = question_of(6, [4, 1], ordered=False)
    assert arrange(unordered, "original") == (0, 1, 2, 3, 4, 5)
    assert sorted(arrange(unordered, "shuffle_3")) == [0, 1, 2, 3, 4, 5]
    assert arrange(unordered, [2, 0]) == (2, 0)
    assert arrange(question_of(3, [1], ordered=False), "gold") == (1,)


@st.composite
def some_question(draw: st.DrawFn) -> MultiDocQuestion:
    n = draw(st.integers(1, 12))
    gold = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4, unique=True))
    return question_of(n, gold)


def placed(arranged: tuple[int, ...], gold: tuple[int, ...]) -> list[int]:
    return [arranged.index(each) for each in gold]


@given(some_question(), st.sampled_from(["forward", "backward"]))
def test_gold_documents_change_places_among_themselves(
    question: MultiDocQuestion, order: str
) -> None:
    arranged = arrange(question, order)
    assert sorted(arranged) == list(range(len(question.documents)))
    assert all(arranged[each] == each for each in question.distractors)
    places = placed(arranged, question.gold)
    assert places == sorted(question.gold, reverse=order == "backward")


@given(some_question(), st.sampled_from(["forward", "backward"]), st.integers(0, 6))
def test_gaps_are_exact_or_an_error(question: MultiDocQuestion, way: str, gap: int) -> None:
    order, needed = f"{way}_{gap}", gap * (len(question.gold) - 1)
    if needed > len(question.distractors):
        with pytest.raises(QueryError, match=f"needs {needed} distractors"):
            arrange(question, order)
        return
    arranged = arrange(question, order)
    assert sorted(arranged) == list(range(len(question.documents)))
    chain = question.gold if way == "forward" else question.gold[::-1]
    assert arranged[-1] == chain[-1]
    places = placed(arranged, chain)
    steps = [b - a for a, b in pairwise(places)]
    assert steps == [gap + 1] * (len(chain) - 1)
    noise = tuple(each for each in arranged if each not in question.gold)
    assert noise == question.distractors, "distractors keep their order"


@given(some_question())
def test_the_first_hop_alone_is_left_out(question: MultiDocQuestion) -> None:
    kept = arrange(question, "rm_first")
    everything = list(range(len(question.documents)))
    assert list(kept) == [each for each in everything if each != question.gold[0]]


@given(some_question(), st.integers(0, 3), st.integers(1, 12))
def test_shuffles_differ_and_more_begin_with_the_same(
    question: MultiDocQuestion, seed: int, k: int
) -> None:
    k = min(k, factorial(len(question.documents)))
    found = shuffles(question, k, seed)
    assert len(set(found)) == len(found) == k
    assert all(sorted(each) == list(range(len(question.documents))) for each in found)
    assert shuffles(question, max(1, k - 3), seed) == found[: max(1, k - 3)]
    assert arrange(question, f"shuffle_{k - 1}", seed) == found[-1]


def test_all_orders_are_found_and_no_more() -> None:
    assert len(set(shuffles(ONE, 6))) == 6
    with pytest.raises(QueryError, match="has 3 documents, which have only 6 orders"):
        shuffles(ONE, 7)


def test_shuffles_depend_on_the_seed_and_the_question() -> None:
    assert shuffles(THREE, 4) == shuffles(THREE, 4)
    assert shuffles(THREE, 4, seed=1) != shuffles(THREE, 4)
    assert shuffles(replace(THREE, id="other"), 4) != shuffles(THREE, 4)
