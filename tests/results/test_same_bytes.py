"""Tests that a part's bytes depend on its queries alone: whole, in shards, or after a stop."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from known import parts

import hopscope as hs
from hopscope.results import runs

ANALYSES: dict[str, Callable[..., Any]] = {
    "attention": hs.attention_to_documents,
    "permute": hs.permute_documents,
    "best-order": lambda *given, **more: hs.best_order(*given, k=2, **more),
    "masked-paths": hs.masked_paths,
}
OF_QUERIES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "grade": (hs.grade, {"max_new_tokens": 2}),
    "back_patch": (hs.back_patch, {"max_new_tokens": 2}),
    "knockout": (hs.knockout, {"max_new_tokens": 2}),
    "describe": (hs.describe, {"max_new_tokens": 2, "samples": 2}),
    "project": (hs.project, {}),
    "cross_patch": (hs.cross_patch, {"max_new_tokens": 1, "source_layers": [1]}),
    "activation_patch": (hs.activation_patch, {}),
    "attribution_patch": (hs.attribution_patch, {"exact": 2}),
    "path_patch": (hs.path_patch, {}),
    "trace": (hs.trace, {"draws": 2}),
    "recall": (hs.recall, {}),
    "classify_heads": (hs.classify_heads, {}),
    "rank_neighbours": (hs.rank_neighbours, {"n_clusters": 8}),
}
CASES = [(analysis, "tiny-random-qwen2") for analysis in ANALYSES] + [
    ("attention", "tiny-random-t5")
]


@pytest.mark.parametrize(("analysis", "name"), CASES)
def test_analyses_over_documents_give_equal_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, analysis: str, name: str
) -> None:
    """Each question has demonstrations of its own, so prompts begin alike only now and then."""
    model = hs.load_any(name, device="cpu")
    n = 6 if analysis == "masked-paths" else 12
    questions = hs.load_questions("world-docs", distractors=2).with_few_shot(2, 0)[:n]

    def run(folder: str, **more: Any) -> None:
        given = {"max_new_tokens": 4, "progress": False, "out": tmp_path / folder, **more}
        ANALYSES[analysis](model, questions, **given)

    compare_ways(run, tmp_path, monkeypatch)


@cache
def some_queries() -> hs.QuerySet:
    return hs.load_queries("world", few_shot=2).sample(9)


@pytest.mark.parametrize("name", OF_QUERIES)
def test_analyses_of_queries_give_equal_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = hs.load_any("tiny-random-qwen2", device="cpu")
    function, settings = OF_QUERIES[name]
    queries = some_queries()
    module = inspect.getmodule(inspect.unwrap(function))
    if hasattr(module, "PER_PART"):
        monkeypatch.setattr(module, "PER_PART", 3)

    def run(folder: str, **more: Any) -> None:
        function(model, queries, progress=False, out=tmp_path / folder, **settings, **more)

    compare_ways(run, tmp_path, monkeypatch)


def compare_ways(run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the bytes of a whole run with those of its shards, last first, and after a stop."""
    run("whole")
    whole = parts(tmp_path / "whole")
    n_parts = len(whole) // 2
    for index in range(n_parts, 0, -1):
        run("shards", shard=(index, n_parts))
    assert parts(tmp_path / "shards") == whole
    assert n_parts > 1

    written = []

    def stopping(*given: Any) -> None:
        runs_write_part(*given)
        written.append(given)
        if len(written) == n_parts // 2:
            raise KeyboardInterrupt

    runs_write_part = runs.write_part
    monkeypatch.setattr(runs, "write_part", stopping)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    run("stopped")
    assert parts(tmp_path / "stopped") == whole
