"""Queries whose names no first token identifies are left out where first tokens are read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
import pytest
from known import known_model, known_queries

import hopscope as hs
from hopscope.errors import QueryError
from hopscope.models.token_model import TokenModel

FIRST = {"criterion": "first_token"}
READING = {
    hs.back_patch: FIRST,
    hs.knockout: FIRST,
    hs.trace: {},
    hs.recall: {},
    hs.rank_neighbours: {"n_clusters": 4, "top": 2, "ranks": 5},
}
"""The analyses that read first tokens, with their arguments."""


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names that the tokenizer begins with a space by itself, as some do with numbers."""
    names: set[str] = set()
    first_tokens = TokenModel.first_tokens

    def without(self: TokenModel, given: Iterable[str], *args: Any, **more: Any) -> tuple[int, ...]:
        return first_tokens(self, [each for each in given if each not in names], *args, **more)

    monkeypatch.setattr(TokenModel, "first_tokens", without)
    return names


@pytest.mark.parametrize("analysis", READING, ids=lambda each: each.__name__)
def test_a_query_that_no_first_token_identifies_is_left_out(
    analysis: Any, untold: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    model, queries = known_model(), known_queries()
    query = queries[1]
    untold |= {*query.names("e2"), *query.names("e3")}
    more: Any = READING[analysis]
    result = analysis(model, queries, progress=False, **more)
    assert query.id not in set(result.details["query"])
    assert len(set(result.details["query"])) >= 4
    assert f"1 of {len(queries)} queries have names that no first token identifies" in caplog.text
    untold |= {name for each in queries for e in ("e2", "e3") for name in each.names(e)}
    with pytest.raises(QueryError, match=r"no first token identifies the names of any query"):
        analysis(model, queries, progress=False, **more)


@pytest.mark.parametrize("analysis", [hs.back_patch, hs.knockout])
def test_generations_are_read_of_such_a_query_too(analysis: Any, untold: set[str]) -> None:
    model, queries = known_model(), known_queries()
    whole = analysis(model, queries, progress=False)
    untold |= {name for each in queries for e in ("e2", "e3") for name in each.names(e)}
    found = analysis(model, queries, progress=False)
    columns = ["query", "hit", "generation"]
    pd.testing.assert_frame_equal(found.frame[columns], whole.frame[columns])
    assert (found.frame["answer_rank"] == model.vocab_size).all()
    assert found.frame["answer_logprob"].isna().all()


def test_a_target_that_no_first_token_identifies_is_not_projected(untold: set[str]) -> None:
    model, queries = known_model(), known_queries()
    untold |= set(queries[1].names("e3"))
    frame = hs.project(model, queries, progress=False).frame
    targets = frame[frame["query"] == queries[1].id]["target"].unique()
    assert {"e2", "prediction"} <= set(targets)
    assert not {"e3", "e3_other"} & set(targets)
    assert len(set(frame["query"])) == len(queries)


def test_stages_are_put_together_where_some_names_are_not_identified(untold: set[str]) -> None:
    model, queries = known_model(), known_queries()
    untold |= {*queries[1].names("e2"), *queries[1].names("e3")}
    staged = hs.stages(model, queries, progress=False)
    assert set(staged.frame["query"]) == {query.id for query in queries}
