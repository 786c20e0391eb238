"""Tests of on='ray', on a cluster of two nodes of this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import loaded
from known import many_queries, parts

import hopscope as hs
from hopscope.errors import ModelError, PlaceError, UsageError
from hopscope.results.status import status_of
from hopscope.study.presets import Preset
from hopscope.study.study import run_study

pytest.importorskip("ray")
BACK: dict[str, Any] = {"positions": ["t1"], "max_new_tokens": 2, "progress": False}
NAME: Any = "tiny-random-llama"


def started(attempts: int = 3) -> Any:
    """A cluster of two nodes of one core each; on a busy machine a node may come too late."""
    from ray.cluster_utils import Cluster

    for attempt in range(attempts):
        cluster = Cluster()
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=2**27)
        except Exception:
            cluster.shutdown()
            if attempt == attempts - 1:
                raise
        else:
            return cluster
    return None


@pytest.fixture(scope="module")
def on() -> Iterator[hs.Ray]:
    """Two workers, which are kept from one run to the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = started()
        patch.setenv("RAY_ADDRESS", cluster.address)
        engine = hs.Ray(workers=2)
        with engine.held():
            yield engine
        cluster.shutdown()


def kill_one(folder: Path, seen: list[int]) -> None:
    """Kill the worker of some part once four parts are done."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if len(list(folder.glob("frame-*"))) >= 4:
            for claim in folder.glob(".claim-*"):
                try:
                    process = json.loads(claim.read_text())["process"]
                except (OSError, ValueError):
                    continue
                os.kill(process, signal.SIGKILL)
                seen.append(process)
                return
        time.sleep(0.001)


def test_two_workers_of_which_one_is_killed_give_the_same_bytes(on: hs.Ray, tmp_path: Path) -> None:
    """The model is given by its name, so that workers alone load it."""
    queries = many_queries()
    one = hs.back_patch(loaded(NAME), queries, out=tmp_path / "one", **BACK)
    killed = list[int]()
    killer = threading.Thread(target=kill_one, args=(tmp_path / "two", killed))
    killer.start()
    two = hs.back_patch(NAME, queries, out=tmp_path / "two", on=on, **BACK)
    killer.join()
    assert killed
    assert parts(tmp_path / "two") == parts(tmp_path / "one")
    pd.testing.assert_frame_equal(two.frame, one.frame)
    assert {k: two.run[k] for k in ("kind", "settings", "model", "queries")} == {
        k: one.run[k] for k in ("kind", "settings", "model", "queries")
    }
    assert [path.name for path in (tmp_path / "two").glob(".*")] == []
    assert status_of(tmp_path / "two").is_finished


def test_a_model_that_is_loaded_here_goes_by_its_name(on: hs.Ray, tmp_path: Path) -> None:
    queries, out = many_queries()[:6], tmp_path / "run"
    two = hs.grade(loaded(NAME), queries, max_new_tokens=2, progress=False, out=out, on=on)
    one = hs.grade(loaded(NAME), queries, max_new_tokens=2, progress=False)
    pd.testing.assert_frame_equal(two.frame, one.frame)
    assert two.incorrect() == one.incorrect()


def test_grading_until_there_are_enough_ends_with_the_same_parts(
    on: hs.Ray, tmp_path: Path
) -> None:
    queries, need = hs.load_queries("world", few_shot=0).sample(400), {"correct": 1}
    run: dict[str, Any] = {"max_new_tokens": 1, "progress": False}
    one = hs.grade_until(loaded(NAME), queries, need, 64, out=tmp_path / "one", **run)
    two = hs.grade_until(NAME, queries, need, 64, out=tmp_path / "two", on=on, **run)
    assert 2 < len(parts(tmp_path / "one")) < 14
    assert parts(tmp_path / "two") == parts(tmp_path / "one")
    assert one.counts() == two.counts()


def test_an_analysis_of_several_runs_computes_each_of_them(on: hs.Ray, tmp_path: Path) -> None:
    queries, settings = many_queries()[:4], {"layers": [1, 2], "progress": False}
    two = hs.stages(NAME, queries, on=on, out=tmp_path / "two", **settings)  # type: ignore[arg-type]
    one = hs.stages(loaded(NAME), queries, out=tmp_path / "one", **settings)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(two.frame, one.frame)
    for name in ("description", "knockout", "projection"):
        assert parts(tmp_path / "two" / name) == parts(tmp_path / "one" / name)


def test_a_study_computes_each_of_its_runs(
    on: hs.Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hs.Grading, "subset", lambda graded, _: graded.queries)
    size = Preset(limit=4, most=2, layer_step=1)
    given: Any = (loaded(NAME), many_queries()[:8])
    two = run_study(*given, tmp_path / "two", size, ["projection"], progress=False, on=on)
    one = run_study(*given, tmp_path / "one", size, ["projection"], progress=False)
    assert list(two.results) == list(one.results) != []
    for name in ("grading", *one.results):
        assert parts(tmp_path / "two" / name) == parts(tmp_path / "one" / name) != {}


def test_what_the_analysis_refuses_is_told_as_it_is_here(on: hs.Ray, tmp_path: Path) -> None:
    queries = many_queries()[:4]
    with pytest.raises(UsageError, match="unknown position 't9'"):
        hs.back_patch(NAME, queries, positions=["t9"], on=on)
    with pytest.raises(UsageError) as error:
        hs.back_patch(NAME, queries, cells=[(99, 1)], on=on, out=tmp_path / "run")
    assert type(error.value).__module__.startswith("hopscope")
    no_model: Any = "no-such-model"
    with pytest.raises(ModelError, match="unknown model 'no-such-model'"):
        hs.back_patch(no_model, queries, on=on, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_fails_is_told_and_the_others_are_kept(on: hs.Ray, tmp_path: Path) -> None:
    """A folder in a part's place: the part cannot be written."""
    queries = many_queries()[:6]
    hs.back_patch(loaded(NAME), queries, out=tmp_path / "run", **BACK)
    for path in (tmp_path / "run").glob("*.parquet"):
        path.unlink()
    (tmp_path / "run" / "details-000002.parquet").mkdir()
    with pytest.raises(PlaceError, match="details-000002"):
        hs.back_patch(NAME, queries, out=tmp_path / "run", on=on, **BACK)


def test_a_stop_leaves_a_folder_that_goes_on(
    on: hs.Ray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queries, out = many_queries(), tmp_path / "run"
    one = hs.back_patch(loaded(NAME), queries, **BACK)

    def stop() -> None:
        end = time.monotonic() + 120
        while len(list(out.glob("frame-*"))) < 4 and time.monotonic() < end:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        hs.back_patch(NAME, queries, out=out, on=on, **BACK)
    stopper.join()
    assert "the same call with out=" in caplog.text
    done = hs.partial().frame
    assert 0 < done["query"].nunique() < len(queries)
    two = hs.back_patch(NAME, queries, out=out, on=on, **BACK)
    pd.testing.assert_frame_equal(two.frame, one.frame)


def test_a_run_that_is_finished_is_read(on: hs.Ray, tmp_path: Path) -> None:
    queries = many_queries()[:4]
    one = hs.back_patch(loaded(NAME), queries, out=tmp_path / "run", **BACK)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    two = hs.back_patch(NAME, queries, out=tmp_path / "run", on=on, **BACK)
    pd.testing.assert_frame_equal(one.frame, two.frame)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_what_cannot_be_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    queries = many_queries()[:4]
    with pytest.raises(UsageError, match="unknown engine 'spark'"):
        hs.back_patch(NAME, queries, on="spark")
    with pytest.raises(UsageError, match="on must be"):
        hs.back_patch(NAME, queries, on=3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="leave out either on or shard"):
        hs.back_patch(NAME, queries, on="ray", shard=(1, 2), out=tmp_path / "run")
    with pytest.raises(UsageError, match="workers must be 1 or more"):
        hs.Ray(workers=0)
    with pytest.raises(UsageError, match="give out="):
        hs.back_patch(NAME, queries, on=hs.Ray(address="somewhere:1"))


@pytest.mark.parametrize(
    ("module", "on"), [("ray", "ray"), ("submitit", hs.Slurm(cluster="local"))]
)
def test_what_is_to_be_installed_is_told(
    module: str, on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    extra = "ray" if module == "ray" else "slurm"
    with pytest.raises(UsageError, match=rf"pip install 'hopscope\[{extra}\]'"):
        hs.back_patch(NAME, many_queries()[:4], out=tmp_path / "run", on=on)
    assert list(tmp_path.iterdir()) == []
