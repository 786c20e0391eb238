"""Tests of how many queries a subset is expected to have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from known import known_model, known_queries

import hopscope as hs
from hopscope.experiments.two_hop import grading
from hopscope.queries.query_set import QuerySet
from hopscope.study.estimates import GradedSample


def repeated(*ids: str) -> QuerySet:
    """Each of some queries four times."""
    known = known_queries()
    each = [replace(known.by_id(id), id=f"{id} {i}") for id in ids for i in range(4)]
    return replace(known, queries=tuple(each))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "PER_PART", 4)


def sampled(queries: QuerySet, need: dict[str, int], out: Path | None = None) -> GradedSample:
    return GradedSample.of(
        hs.grade, known_model(), queries, need, 1 if need else len(queries), out=out, seconds=0
    )


def test_queries_that_are_graded_already_count(tmp_path: Path) -> None:
    """The first part is done, with nothing but incorrect ones; one is measured of the second."""
    queries = repeated("late-1", "early-1")
    hs.grade(known_model(), queries, out=tmp_path / "run", shard=(1, 2), progress=False)
    sample = sampled(queries, {}, tmp_path / "run")
    expected = sample.expected("incorrect")
    assert (expected.n_found, expected.n_measured) == (4, 5)
    assert expected.n == 4 + round(3 * 4 / 5)
    assert str(expected).startswith("about 6 queries: 4 of 5 that were graded, 80 %")
    assert len(sample.subset("incorrect")) == 6
    assert sample.cost is not None
    assert sample.cost.n == 4
    assert sample.expected("incorrect", most=2).n == 2


def test_what_was_not_found_is_unknown_and_not_one() -> None:
    sample = sampled(repeated("early-1", "early-2"), {})
    expected = sample.expected("incorrect")
    assert (expected.n_found, expected.n_measured) == (0, 1)
    assert expected.n == round(7 * 0.7935)  # the upper end of Wilson's interval of 0 of 1
    assert str(expected).startswith("an unknown number, at most 6, queries: 0 of 1 that were")
    assert len(sample.subset("incorrect")) == 6
    assert sampled(repeated("early-1", "early-2"), {"incorrect": 1}).n == 8, "all may be needed"


def test_what_all_queries_were_graded_for_is_known(tmp_path: Path) -> None:
    queries = repeated("early-1", "early-2")
    hs.grade(known_model(), queries, out=tmp_path / "run", progress=False)
    sample = sampled(queries, {}, tmp_path / "run")
    assert sample.cost is None
    assert sample.expected("incorrect").n == 0
    assert sample.expected("correct").n == 8
