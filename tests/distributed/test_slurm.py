"""Tests of on=hs.Slurm(...) without Slurm: jobs are processes of this machine, or this process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import loaded
from known import many_queries, parts

import hopscope as hs
from hopscope.errors import QueryError, UsageError
from hopscope.models.reference import ModelReference
from hopscope.results.run_folder import read_run
from hopscope.study.presets import Preset
from hopscope.study.study import run_study

pytest.importorskip("submitit")
BACK: dict[str, Any] = {"positions": ["t1"], "max_new_tokens": 2, "progress": False}
NAME: Any = "tiny-random-llama"


def test_jobs_on_this_machine_give_the_same_bytes(tmp_path: Path) -> None:
    queries = many_queries()[:12]
    one = hs.back_patch(loaded(NAME), queries, out=tmp_path / "one", **BACK)
    on = hs.Slurm(cluster="local", jobs=2)
    two = hs.back_patch(NAME, queries, out=tmp_path / "two", on=on, **BACK)
    assert parts(tmp_path / "two") == parts(tmp_path / "one")
    pd.testing.assert_frame_equal(two.frame, one.frame)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_job_in_this_process_is_the_same(tmp_path: Path) -> None:
    queries, on = many_queries()[:4], hs.Slurm(cluster="debug")
    one = hs.back_patch(loaded(NAME), queries, out=tmp_path / "one", **BACK)
    two = hs.back_patch(NAME, queries, on=on, **BACK)
    pd.testing.assert_frame_equal(two.frame, one.frame)
    with pytest.raises(UsageError) as error:
        hs.back_patch(NAME, queries, cells=[(99, 1)], out=tmp_path / "two", on=on)
    assert "cells are" in str(error.value)
    assert not (tmp_path / "two").exists()


def test_auto_patching_is_computed_elsewhere_as_its_sweep_is(tmp_path: Path) -> None:
    """The model is given by its name, so that workers alone load it."""
    queries, on = many_queries()[:8], hs.Slurm(cluster="debug")
    given: dict[str, Any] = {"layer_step": 2, "controls": (), "max_new_tokens": 1}
    given["progress"] = False
    one = hs.auto_patch(loaded(NAME), queries, out=tmp_path / "one", **given)
    two = hs.auto_patch(NAME, queries, out=tmp_path / "two", on=on, **given)
    three = hs.auto_patch(NAME, queries, on=on, **given)
    for found in (two, three):
        pd.testing.assert_frame_equal(found.frame, one.frame)
        assert found.run["settings"] == one.run["settings"]
    for name in ("back_patching", "auto_patching"):
        assert parts(tmp_path / "two" / name) == parts(tmp_path / "one" / name) != {}
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "auto_patching",
        "back_patching",
    ]
    with pytest.raises(QueryError, match="too few to be trained"):
        hs.auto_patch(NAME, queries[:3], on=on, out=tmp_path / "few", **given)


def test_a_study_of_a_model_by_its_name_is_that_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other layer is taken by the workers, who know how many there are."""
    monkeypatch.setattr(hs.Grading, "subset", lambda graded, _: graded.queries)
    size, steps = Preset(limit=4, most=2, layer_step=2), ["description", "layer_order"]
    named: Any = ModelReference(NAME)
    on = hs.Slurm(cluster="debug")
    two = run_study(named, many_queries()[:8], tmp_path / "two", size, steps, progress=False, on=on)
    one = run_study(loaded(NAME), many_queries()[:8], tmp_path / "one", size, steps, progress=False)
    assert list(two.results) == list(one.results) != []
    assert two.left_out == one.left_out == {}
    for name in ("grading", *one.results):
        assert parts(tmp_path / "two" / name) == parts(tmp_path / "one" / name) != {}
    described = two.results["description.correct"].frame
    assert set(described["source_layer"]) == {0, 2}


def test_a_job_that_is_preempted_is_queued_with_the_same_work() -> None:
    import submitit

    from hopscope.distributed.job import Job
    from hopscope.distributed.slurm import _Share

    share = _Share(Job("runs/x"))
    queued = share.checkpoint()
    assert isinstance(queued, submitit.helpers.DelayedSubmission)
    assert queued.function == share


def test_slurm_is_asked_for_what_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = hs.Slurm("gpu", gpus=2, time=30, jobs=8, cpus=4, memory=64, more={"slurm_qos": "low"})
    with pytest.raises(UsageError, match="no Slurm on this machine"):
        hs.back_patch(NAME, many_queries()[:4], out=tmp_path / "run", on=on)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    import submitit

    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    asked = on._executor(tmp_path / "run")._executor.parameters
    assert {
        "partition": "gpu",
        "gpus_per_node": 2,
        "time": 30,
        "qos": "low",
    }.items() <= asked.items()
    assert (asked["cpus_per_task"], asked["array_parallelism"]) == (4, 8)


def test_a_folder_that_all_see_is_asked_for() -> None:
    with pytest.raises(UsageError, match="give out="):
        hs.back_patch(NAME, many_queries()[:4], on="slurm")
    with pytest.raises(UsageError, match="unknown cluster"):
        hs.Slurm(cluster="pbs")


def test_what_was_asked_is_in_the_folder(tmp_path: Path) -> None:
    hs.back_patch(
        NAME, many_queries()[:2], out=tmp_path / "run", on=hs.Slurm(cluster="debug"), **BACK
    )
    recipe = read_run(tmp_path / "run")["recipe"]
    assert recipe["model"]["source"] == NAME
    assert recipe["arguments"] == {"positions": ["t1"], "max_new_tokens": 2}
