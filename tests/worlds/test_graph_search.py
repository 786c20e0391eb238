"""Searches in a graph: every prompt against a search of its own."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from hopscope.errors import UsageError
from hopscope.queries.graph_paths import reachable
from hopscope.training.fit import IGNORED
from hopscope.worlds.tasks.graph_search import GraphSearch

TASK = GraphSearch(n_vertices=10, n_edges=7, n_branches=2, farthest=3, seed=1)
VOCABULARY = {word: 3 + n for n, word in enumerate(TASK.words)}
WORDS = {number: word for word, number in VOCABULARY.items()}


def parsed(words: list[str]) -> tuple[list[tuple[str, str]], str, str]:
    """The edges, start and goal of a prompt, told from its marks alone."""
    ask = words.index("Q")
    edges = [(words[at + 1], words[at + 2]) for at in range(0, ask, 3)]
    assert [words[at] for at in range(0, ask, 3)] == ["E"] * len(edges)
    start, goal, mark, again = words[ask + 1 : ask + 5]
    assert (mark, again) == ("P", start)
    return edges, start, goal


def steps_that_tell(edges: list[tuple[str, str]], start: str, goal: str) -> int:
    """How many steps a search from every neighbour must take until one of them is at the goal."""
    return min(
        reachable(edges, v)[goal] + 1
        for u, v in edges
        if u == start and goal in reachable(edges, v)
    )


def test_the_answer_is_the_only_neighbour_from_which_the_goal_can_be_reached():
    for step in range(4):
        batch = TASK.batches(VOCABULARY, 1, 16)(step)
        for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
            words = [WORDS[each] for each in ids]
            edges, start, goal = parsed(words[:-1])
            assert len(edges) == len(set(edges)) == 7
            neighbours = [v for u, v in edges if u == start]
            assert len(neighbours) == 2
            assert [v for v in neighbours if goal in reachable(edges, v)] == [words[-1]]
            assert targets[-2] == ids[-1]
            assert [each for each in targets if each != IGNORED] == [ids[-1]]


def test_no_cycle_and_no_branch_ends_before_the_goal_is_met():
    for graph in TASK.graphs():
        for a, b in graph.edges:
            assert a not in reachable(graph.edges, b)
        for branch in (v for u, v in graph.edges if u == graph.start):
            assert max(reachable(graph.edges, branch).values()) >= graph.lookahead - 1


def test_tests_are_balanced_by_the_lookahead_that_a_search_finds():
    tests = TASK.tests()
    assert Counter(graph.lookahead for graph in TASK.graphs()) == {1: 334, 2: 333, 3: 333}
    for lookahead in (1, 2, 3):
        for written in tests[f"lookahead_{lookahead}"][:50]:
            edges, start, goal = parsed(list(written.prompt))
            assert steps_that_tell(edges, start, goal) == lookahead
    assert len(tests["in_distribution"]) == 1000


def test_batches_depend_on_seed_and_step_alone():
    again = GraphSearch(**TASK.__dict__)
    first = TASK.batches(VOCABULARY, 1, 8)
    random.seed(5)
    assert first(3).ids.equal(again.batches(VOCABULARY, 1, 8)(3).ids)
    assert not first(3).ids.equal(first(4).ids)


def test_path_prompts_point_at_the_words_they_mean():
    graphs = list(TASK.graphs())
    for prompt, graph in zip(TASK.path_prompts()[:20], graphs, strict=False):
        words = prompt.text.split()
        assert [(words[a], words[b]) for a, b in prompt.edges] == list(graph.edges)
        assert (words[prompt.start], words[prompt.goal]) == (graph.start, graph.goal)
        assert (prompt.answer, prompt.group) == (graph.answer, graph.lookahead)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_branches": 1},
        {"farthest": 0},
        {"n_vertices": 6},
        {"n_edges": 5},
        {"n_edges": 60},
    ],
)
def test_graphs_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        GraphSearch(**{**TASK.__dict__, **wrong})
