"""Prompts with graphs in them, and what can be reached in a graph."""

from __future__ import annotations

import pytest

from hopscope.errors import QueryError
from hopscope.queries.graph_paths import PathPrompt, PathSet, reachable


def prompt(name: str = "a", **changed: object) -> PathPrompt:
    given = {"text": "x y", "answer": "y", "edges": ((0, 1),), "start": 0, "goal": 1}
    return PathPrompt(name, **{**given, **changed})


def test_reachable_counts_the_least_number_of_steps_along_the_edges():
    edges = [("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("e", "a"), ("d", "a")]
    assert reachable(edges, "a") == {"a": 0, "b": 1, "c": 1, "d": 2}
    assert reachable(edges, "z") == {"z": 0}


@pytest.mark.parametrize("wrong", [{"edges": ()}, {"start": -1}, {"edges": ((0, -1),)}])
def test_prompts_without_edges_or_places_are_refused(wrong):
    with pytest.raises(QueryError, match="edges"):
        prompt(**wrong)


def test_sets_have_distinct_ids_slices_and_a_fingerprint():
    both = PathSet((prompt("a"), prompt("b")), "two")
    assert [each.id for each in both[1:]] == ["b"]
    assert both[1:].name == "two"
    assert both.fingerprint != both[:1].fingerprint
    with pytest.raises(QueryError, match="ids must differ"):
        PathSet((prompt("a"), prompt("a")))
