"""Composed tables and the cutoffs of their inputs: against brute force and cases made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hopscope.errors import UsageError
from hopscope.experiments.worlds.coverage_cutoffs import cutoffs, exact_cutoffs
from hopscope.worlds.tasks.composed_tables import LENGTHS, ComposedTables

SMALL = ComposedTables(n_tokens=4, n_examples=40, seed=3)


@pytest.mark.parametrize("structure", LENGTHS)
def test_answers_are_the_composed_tables(structure):
    task = replace(SMALL, structure=structure)
    grid = np.indices((4, 4))
    f1, f3 = task.table("f1", *grid), task.table("f3", *grid)
    f2 = task.table("f2", *(np.indices((4, 4, 4)) if structure == "path_ambiguity" else grid))
    for x, b, t in zip(task.inputs, task.bridges, task.answers, strict=True):
        assert b == f1[x[0], x[1]]
        if structure == "two_hop":
            assert t == f2[b, x[2]]
        elif structure == "path_ambiguity":
            assert t == f2[b, x[1], x[2]]
        elif structure == "three_hop":
            assert t == f3[f2[b, x[2]], x[3]]
        else:
            assert t == f3[b, f2[x[2], x[3]]]
    assert len(task.inputs) == 4 ** LENGTHS[structure] == len({tuple(x) for x in task.inputs})


@pytest.mark.parametrize("structure", LENGTHS)
def test_bridges_can_be_fewer_than_answers(structure):
    task = ComposedTables(structure, n_tokens=6, n_examples=60, n_bridges=2)
    assert set(task.bridges) == {0, 1}
    assert task.answers.max() > 1
    second = task.table("f2", *np.indices((6, 6)))
    assert (second.max() == 1) == (structure in ("three_hop", "parallel"))


def test_as_many_bridges_as_tokens_are_meant_if_no_number_is_given():
    as_many = replace(SMALL, n_bridges=SMALL.n_tokens)
    assert (as_many.answers == SMALL.answers).all()
    assert set(SMALL.bridges) == set(range(4))


def test_examples_and_held_out_inputs_are_apart_and_written_in_words():
    assert not set(SMALL.examples) & set(SMALL.held_out)
    assert len(SMALL.examples) == 40
    assert len(SMALL.held_out) == 24
    prompt, answer, _ = SMALL.written(SMALL.examples)[0]
    first = SMALL.examples[0]
    assert prompt == tuple(f"x{token}" for token in SMALL.inputs[first])
    assert answer == (f"t{SMALL.answers[first]}",)
    assert set(SMALL.tests()) == {"trained", "in_distribution"}


@pytest.mark.parametrize("structure", ["two_hop", "parallel"])
def test_queries_ask_in_the_words_of_the_training(structure):
    task = replace(SMALL, structure=structure)
    for split, indices in (("trained", task.examples), ("in_distribution", task.held_out)):
        queries = task.queries(split)
        assert [q.two_hop() for q in queries] == [" ".join(w.prompt) for w in task.written(indices)]
        assert [q.e3_label for q in queries] == [w.answer[0] for w in task.written(indices)]
        assert queries[0].e2_label == f"b{task.bridges[indices[0]]}"
        assert queries[0].first_hop() == " ".join(task.written(indices)[0].prompt[:2])


def test_seeds_draw_other_tables():
    other = replace(SMALL, seed=4)
    assert (other.answers != SMALL.answers).any()
    assert (replace(SMALL).answers == SMALL.answers).all()


@pytest.mark.parametrize("structure", ["two_hop", "path_ambiguity"])
@pytest.mark.parametrize("n_examples", [6, 20, 40, 60])
@pytest.mark.parametrize("same_answer", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_fast_cutoffs_equal_exact_ones(structure, n_examples, same_answer, seed):
    task = ComposedTables(structure, n_tokens=4, n_examples=n_examples, seed=seed)
    asked = task.inputs, task.answers, task.examples, same_answer
    fast, exact = cutoffs(*asked), exact_cutoffs(*asked)
    np.testing.assert_array_equal(fast, exact)
    assert (fast[task.examples] >= 1).all()


def test_longer_inputs_too():
    task = ComposedTables("three_hop", n_tokens=3, n_examples=20, seed=0)
    fast = cutoffs(task.inputs, task.answers, task.examples)
    np.testing.assert_array_equal(fast, exact_cutoffs(task.inputs, task.answers, task.examples))
    assert len(set(fast)) > 1


def by_hand(seen: dict[tuple[int, int, int], int]) -> dict[tuple[int, int, int], int]:
    """Cutoffs where only these examples are seen; the others' answers are never looked at."""
    inputs = np.array(list(np.ndindex(2, 2, 4)))
    examples = np.array([i for i, x in enumerate(inputs) if tuple(x) in seen])
    answers = np.array([seen.get(tuple(x), 9) for x in inputs])
    found = cutoffs(inputs, answers, examples)
    return {tuple(int(n) for n in x): int(k) for x, k in zip(inputs, found, strict=True)}


def test_the_cutoff_counts_the_contexts_that_agree():
    # (0, 0) and (1, 1) agree in two contexts; (0, 0) was seen in a third one.
    two = by_hand({(0, 0, 0): 5, (1, 1, 0): 5, (0, 0, 1): 6, (1, 1, 1): 6, (0, 0, 2): 7})
    assert two[1, 1, 2] == 2
    assert two[1, 1, 3] == 0
    one = by_hand({(0, 0, 0): 5, (1, 1, 0): 5, (0, 0, 2): 7})
    assert one[1, 1, 2] == 1


def test_answers_that_were_not_seen_decide_nothing_unless_they_are_asked_for():
    # (0, 0) and (1, 1) agree in context 0; in context 1, where (0, 0) was seen, (1, 1) has another.
    inputs = np.array(list(np.ndindex(2, 2, 2)))
    place = {tuple(int(n) for n in each): index for index, each in enumerate(inputs)}
    answers = np.arange(10, 10 + len(inputs))
    answers[[place[0, 0, 0], place[1, 1, 0]]] = 5
    examples = np.array([place[0, 0, 0], place[1, 1, 0], place[0, 0, 1]])
    for same_answer, wanted in ((False, 1), (True, 0)):
        found = cutoffs(inputs, answers, examples, same_answer)
        assert found[place[1, 1, 1]] == wanted
        assert (found[examples] == 1).all()


def test_one_contradiction_is_enough():
    found = by_hand({(0, 0, 0): 5, (1, 1, 0): 5, (0, 0, 1): 6, (1, 1, 1): 8, (0, 0, 2): 7})
    assert found[1, 1, 2] == 0


def test_the_weakest_link_of_a_chain_counts():
    # (0, 0) ~ (0, 1) by two contexts, (0, 1) ~ (1, 1) by one; only (0, 0) was seen in context 3.
    found = by_hand(
        {
            (0, 0, 0): 5, (0, 1, 0): 5, (0, 0, 1): 6, (0, 1, 1): 6,
            (0, 1, 2): 7, (1, 1, 2): 7, (0, 0, 3): 8,
        }
    )  # fmt: skip
    assert found[0, 1, 3] == 2
    assert found[1, 1, 3] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"structure": "four_hop"}, {"n_tokens": 1}, {"n_examples": 64}, {"n_examples": 0},
        {"n_bridges": 1}, {"n_bridges": 5},
    ],
)  # fmt: skip
def test_tasks_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        replace(SMALL, **wrong)
