"""Queries whose names no first token tells are left out, or refused if there is no other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from known import known_model, known_queries

import hopscope as hs
from hopscope.errors import QueryError
from hopscope.models.token_model import TokenModel

ANALYSES = (hs.back_patch, hs.knockout, hs.project, hs.trace, hs.recall, hs.rank_neighbours)


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names that the tokenizer begins with a space by itself, as some do with numbers."""
    names: set[str] = set()
    first_tokens = TokenModel.first_tokens

    def without(self: TokenModel, given: Iterable[str], *args: Any, **more: Any) -> tuple[int, ...]:
        return first_tokens(self, [each for each in given if each not in names], *args, **more)

    monkeypatch.setattr(TokenModel, "first_tokens", without)
    return names


@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda each: each.__name__)
def test_a_query_that_no_first_token_tells_is_left_out(
    analysis: Any, untold: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    model, queries = known_model(), known_queries()
    query = queries[1]
    untold |= {*query.names("e2"), *query.names("e3")}
    more = {"n_clusters": 4, "top": 2, "ranks": 5} if analysis is hs.rank_neighbours else {}
    result = analysis(model, queries, progress=False, **more)
    assert query.id not in set(result.details["query"])
    assert len(set(result.details["query"])) >= 4
    assert f"1 of {len(queries)} queries have names that no first token tells" in caplog.text
    untold |= {name for each in queries for e in ("e2", "e3") for name in each.names(e)}
    with pytest.raises(QueryError, match=r"tells no query of .* by first tokens"):
        analysis(model, queries, progress=False, **more)
