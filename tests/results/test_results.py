"""Tests of results.py: saving, reading, provenance, and the bootstrap interval."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from known import RIGHT, known_model, known_queries, made_back_patching, made_grading

import hopscope as hs
from hopscope.errors import DamagedResultError, HopscopeError, ResultError, UsageError
from hopscope.experiments.two_hop.back_patching import BackPatching, back_patch
from hopscope.experiments.two_hop.grading import Grading, grade
from hopscope.results import result as result_module
from hopscope.results.result import Result, upgrade_record
from hopscope.results.run_record import provenance
from hopscope.results.runs import parse_shard
from hopscope.results.status import status_of
from hopscope.statistics import mean_interval, mean_intervals

CELLS = [(1, 0), (2, 0), (2, 1)]


def made() -> BackPatching:
    hits = {(q, p, c): {(1, 0)} for q in "äb" for p in ("t1", "t2") for c in ("none", "other")}
    return made_back_patching(hits, CELLS)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("result", [made(), made_grading(RIGHT)], ids=["back_patching", "grading"])
def test_a_saved_result_reads_back_the_same(result: Result, tmp_path: Path) -> None:
    place = result.save(tmp_path / "runs" / "one")
    assert place == tmp_path / "runs" / "one"
    loaded = hs.load_result(str(place))
    assert type(loaded) is type(result)
    pd.testing.assert_frame_equal(loaded.frame, result.frame)
    pd.testing.assert_frame_equal(loaded.details, result.details)
    assert loaded.run == upgrade_record(result.run)


def test_a_real_result_keeps_its_types(tmp_path: Path) -> None:
    queries = known_queries()[:2]
    for result in (
        grade(known_model(), queries, progress=False),
        back_patch(known_model(), queries, cells=[(3, 0)], controls=(), progress=False),
    ):
        loaded = hs.load_result(result.save(tmp_path / result.kind))
        assert loaded.frame.dtypes.to_dict() == result.frame.dtypes.to_dict()
        pd.testing.assert_frame_equal(loaded.frame, result.frame)


def test_saving_replaces_an_earlier_result(tmp_path: Path) -> None:
    made_grading(RIGHT).save(tmp_path / "run")
    made().save(tmp_path / "run")
    assert isinstance(hs.load_result(tmp_path / "run"), BackPatching)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert set(files(tmp_path / "run")) == {
        "run.json",
        "frame-000000.parquet",
        "details-000000.parquet",
    }


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (files(made().save(tmp_path / name)) for name in ("a", "b"))
    assert first == second


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert hs.load_result(made().save(tmp_path / "run")).run["kind"] == "back_patching"


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(ResultError, match="is not a run folder of hopscope; choose another"):
        made().save(tmp_path)
    assert files(tmp_path) == {"thesis.tex": b"ten years of work"}


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(ResultError, match="choose another place"):
        made().save(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "ten years of work"


def test_a_failed_save_leaves_the_earlier_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_grading(RIGHT).save(tmp_path / "run")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(result_module, "write_part", full)
    with pytest.raises(OSError, match="no space"):
        made().save(tmp_path / "run")
    assert isinstance(hs.load_result(tmp_path / "run"), Grading)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no run.json": (remove("run.json"), "it has no run.json"),
    "empty run.json": (overwrite("run.json", b""), "run.json is damaged"),
    "half of run.json": (truncate("run.json"), "run.json is damaged"),
    "binary run.json": (overwrite("run.json", b"\xff\xfe\x00\x80"), "run.json is damaged"),
    "a list as run.json": (overwrite("run.json", b"[1]"), "run.json is damaged"),
    "a run of nothing": (overwrite("run.json", b'{"kind": "grading"}'), "run.json is damaged"),
    "unknown kind": (
        overwrite("run.json", b'{"kind": "tea"}'),
        "of kind 'tea'; expected .*grading",
    ),
    "no kind": (overwrite("run.json", b"{}"), "of kind None"),
    "half a frame": (truncate("frame-000000.parquet"), "a table in .* is damaged"),
    "empty frame": (overwrite("frame-000000.parquet", b""), "a table in .* is damaged"),
    "half of details": (truncate("details-000000.parquet"), "a table in .* is damaged"),
    "no details": (remove("details-000000.parquet"), "a table in .* is damaged"),
    "no frame": (remove("frame-000000.parquet"), "no finished part"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGES[name]
    place = made_grading(RIGHT).save(tmp_path / "run")
    damage(place)
    with pytest.raises(ResultError, match=message) as caught:
        hs.load_result(place)
    assert str(place) in str(caught.value)


RECORDED = ("plan", "queries", "model", "settings", "rules", "recipe", "machines", "versions")


@pytest.mark.parametrize("name", [*RECORDED, "parts"])
@pytest.mark.parametrize("value", [[1], "x", 3, None])
def test_a_record_of_other_types_is_told(name: str, value: Any, tmp_path: Path) -> None:
    place = made_grading(RIGHT).save(tmp_path / "run")
    record = json.loads((place / "run.json").read_text("utf-8"))
    (place / "run.json").write_text(json.dumps({**record, name: value}), "utf-8")
    for read in (hs.load_result, status_of):
        with pytest.raises(DamagedResultError, match=rf"is damaged: '{name}' is of another type"):
            read(place)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"is not a run folder: it has no run\.json"):
        hs.load_result(tmp_path / "nowhere")


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "frame.parquet").write_bytes(b"PAR1")
    with pytest.raises(ResultError, match="is not a run folder"):
        hs.load_result(tmp_path / "frame.parquet")


def test_all_errors_are_of_one_family() -> None:
    assert issubclass(ResultError, HopscopeError)
    assert issubclass(UsageError, HopscopeError)
    assert not issubclass(ResultError, UsageError)  # exit code 1, not 2


def test_an_unfinished_run_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = made_grading(RIGHT).save(tmp_path / "run")
    run = json.loads((place / "run.json").read_text())
    run["queries"]["n"] = 20
    (place / "run.json").write_text(json.dumps(run))
    assert hs.load_result(place).details["query"].nunique() == 12
    assert "is not finished: 12 of 20 queries" in caplog.text


def runs() -> list[dict[str, Any]]:
    queries = known_queries()[:2].with_few_shot(2, seed=7)
    graded = grade(known_model(), queries, match="substring", progress=False)
    patched = back_patch(known_model(), queries, cells=[(3, 0)], seed=4, progress=False)
    return [dict(graded.run), dict(patched.run)]


def test_a_result_says_how_it_came_about() -> None:
    model, queries = known_model(), known_queries()[:2].with_few_shot(2, seed=7)
    for run in runs():
        assert run["model"]["name"] == "known"
        assert run["model"]["sha256"] == model.fingerprint
        assert re.fullmatch("[0-9a-f]{64}", run["model"]["sha256"])
        assert run["model"]["family"] == "llama"
        assert (run["model"]["dtype"], run["model"]["device"]) == ("float32", "cpu")
        assert run["queries"]["name"] == "known"
        assert run["queries"]["sha256"] == queries.fingerprint
        assert (run["queries"]["few_shot"], run["queries"]["few_shot_seed"]) == (2, 7)
        assert run["queries"]["n"] == 2
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", run["time"])
        assert run["versions"]["hopscope"] == hs.__version__


def test_a_result_carries_versions_and_commit() -> None:
    for run in runs():
        versions = run["versions"]
        assert {"hopscope", "git", "python", "torch", "transformers", "numpy"} <= set(versions)
        assert {"transformer-lens", "nnsight", "pandas"} <= set(versions)
        assert versions["numpy"] == np.__version__
        assert versions["git"] is None or re.fullmatch("[0-9a-f]{40}", versions["git"])


def test_a_result_carries_its_settings() -> None:
    graded, patched = runs()
    assert graded["settings"] == {
        "match": "substring",
        "max_new_tokens": 10,
        "one_line": True,
        "relation_shortcut": "whole",
    }
    assert patched["settings"] == {
        "positions": ["t1", "t2"],
        "controls": ["other", "random"],
        "criterion": "generation",
        "max_new_tokens": 10,
        "match": "word",
        "cells": [[3, 0]],
        "stop_early": True,
        "one_line": True,
        "seed": 4,
    }
    assert (graded["kind"], patched["kind"]) == ("grading", "back_patching")


def test_provenance_is_what_json_gives_back() -> None:
    run = provenance(known_model(), known_queries(), "grading", {"cells": [(1, 0)]})
    assert run == json.loads(json.dumps(run))
    assert run["settings"]["cells"] == [[1, 0]]


def test_the_interval_of_a_mean() -> None:
    values = np.repeat([0.0, 1.0, 2.0], 50)
    mean, low, high = mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert mean == pytest.approx(1.0)
    assert (low, high) == pytest.approx((1 - half, 1 + half), abs=0.02)
    assert mean_interval(values, 1) == mean_interval(values, 1)


@pytest.mark.parametrize(("values", "mean"), [([], float("nan")), ([0.5], 0.5)])
def test_the_interval_of_too_few_values_is_unknown(values: list[float], mean: float) -> None:
    expected = (mean, float("nan"), float("nan"))
    assert mean_interval(np.array(values)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(("text", "shard"), [("1/1", (1, 1)), ("2/4", (2, 4)), ("12/12", (12, 12))])
def test_a_shard_is_read(text: str, shard: tuple[int, int]) -> None:
    assert parse_shard(text) == shard


WRONG_SHARDS = ("", "1", "0/2", "3/2", "a/b", "1/", "/2", "-1/2", "1/2/3", "1.5/2", "1 / 2", "½/2")


@pytest.mark.parametrize("text", WRONG_SHARDS)
def test_a_wrong_shard_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="i/n with 1 <= i <= n") as caught:
        parse_shard(text)
    assert text in str(caught.value)


@pytest.mark.parametrize("text", ["²/3", "1/²"])
def test_a_shard_of_strange_digits_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="is not a shard"):
        parse_shard(text)


def test_many_intervals_at_once_are_like_those_of_one() -> None:
    draw = np.random.default_rng(3)
    groups = [draw.random(size) for size in (12, 6, 12, 12, 5, 0)]
    many = mean_intervals(groups, seed=1)
    for group, found in zip(groups[:4], many, strict=False):
        one = mean_interval(group, seed=2)
        assert found[0] == pytest.approx(one[0])
        assert found[1:] == pytest.approx(one[1:], abs=0.02)
    assert many[4][0] == pytest.approx(groups[4].mean())
    assert np.isnan(many[4][1:]).all()
    assert np.isnan(many[5]).all()
    assert mean_intervals(groups[:1], seed=1) == mean_intervals(groups[:1], seed=1)
