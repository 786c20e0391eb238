"""Tests of workers that share a run folder: the same bytes, nothing twice, failures told."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import loaded
from forks import ended, forked
from known import many_queries, parts

import hopscope as hs
from hopscope import cli
from hopscope.distributed.job import Job, Outcome, Plan
from hopscope.distributed.work import share_of, work_on
from hopscope.experiments.two_hop import grading
from hopscope.experiments.worker import Worker, open_worker
from hopscope.files import write_json
from hopscope.results import runs
from hopscope.results.claims import claimed, failures
from hopscope.results.run_folder import ENOUGH, PLAN, Tables, read_run, repair
from hopscope.results.status import status_of

BACK: dict[str, Any] = {"positions": ["t1"], "max_new_tokens": 2, "progress": False}
NEED = {"incorrect": 20}


def begun(folder: Path, run: Callable[[], Any]) -> Path:
    """A run folder without parts, of which it is not known whether some are enough."""
    run()
    for path in folder.glob("*.parquet"):
        path.unlink()
    record = read_run(folder)
    if ENOUGH in record[PLAN]:
        record[PLAN][ENOUGH] = None
    write_json(folder / "run.json", record)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten parts by one process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    hs.back_patch(loaded("tiny-random-llama"), many_queries()[:20], out=folder, **BACK)
    return folder


@pytest.fixture
def empty(whole: Path, tmp_path: Path) -> Path:
    """The same run without its parts."""
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("*.parquet"))
    return tmp_path / "run"


def test_several_workers_make_one_run_and_leave_nothing_else(whole: Path, empty: Path) -> None:
    job = Job(str(empty), device="cpu")
    children = [forked(lambda: work_on(job)) for _ in range(3)]
    assert [ended(child) for child in children] == [0] * 3
    assert parts(empty) == parts(whole)
    names = {path.name for path in empty.iterdir()} - set(parts(empty))
    assert sorted(name.partition("-")[0] for name in names) == sorted(
        ["inputs", *["machine"] * (len(parts(empty)) // 2), "run.json"]
    )
    assert status_of(empty).is_finished


def test_a_part_that_another_computes_is_left_to_it(whole: Path, empty: Path) -> None:
    with claimed(empty, 4):
        assert work_on(Job(str(empty), device="cpu")) == []
        assert len(parts(empty)) == len(parts(whole)) - 2
        assert status_of(empty).running == (4,)
    work_on(Job(str(empty), device="cpu"))
    assert parts(empty) == parts(whole)


@dataclass
class Failing:
    """A worker that fails in one part so many times."""

    worker: Worker
    part: int
    times: int

    def plan(self) -> Plan:
        return self.worker.plan()

    def compute(self, part: int, *, force: bool = False) -> Outcome:
        pending = self.worker.pending
        assert pending is not None
        assert pending.whole is not None
        real = pending.whole

        def failing(asked: int) -> Tables:
            self.times -= asked == self.part
            if asked == self.part and self.times >= 0:
                raise RuntimeError("no such luck")
            return real(asked)

        object.__setattr__(pending, "whole", failing)
        try:
            return self.worker.compute(part, force=force)
        finally:
            object.__setattr__(pending, "whole", real)


@pytest.mark.parametrize("times", [2, 3])
def test_a_part_that_fails_is_tried_three_times_and_the_others_go_on(
    times: int, whole: Path, empty: Path
) -> None:
    given_up = share_of(Failing(open_worker(Job(str(empty), device="cpu")), 4, times))
    if times == 2:
        assert given_up == []
        assert parts(empty) == parts(whole)
        assert failures(empty) == []
        return
    (failure,) = given_up
    assert (failure.part, failure.error) == (4, "RuntimeError: no such luck")
    assert len(parts(empty)) == len(parts(whole)) - 2
    assert [each.part for each in status_of(empty).failed] == [4]
    again = work_on(Job(str(empty), device="cpu"))
    assert [each.part for each in again] == [4], "it is left alone until it is asked for"


def until_there_are_enough(folder: Path, **more: Any) -> hs.Grading:
    """Grades the tiny model until 20 are wrong: more than one part, and not all of them."""
    queries = hs.load_queries("world", few_shot=0).sample(400)
    model = loaded("tiny-random-llama")
    run: dict[str, Any] = {"max_new_tokens": 2, "progress": False, "out": folder, **more}
    return hs.grade_until(model, queries, NEED, 32, **run)


@pytest.fixture
def some_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the queries has its first hop right, which makes them incorrect."""
    real = grading._verdicts

    def verdicts(queries: Any, *given: Any) -> Any:
        found = real(queries, *given)
        right = found["query"].map(lambda id: sum(map(ord, id)) % 4 == 0)
        hops = found["form"].isin(["first_hop", "second_hop"])
        return found.assign(correct=right & hops)

    monkeypatch.setattr(grading, "_verdicts", verdicts)


@pytest.mark.usefixtures("some_wrong")
def test_a_run_that_ends_when_there_are_enough_has_the_same_parts(tmp_path: Path) -> None:
    one = until_there_are_enough(tmp_path / "one")
    assert 1 < len(parts(tmp_path / "one")) / 2 < 12
    folder = begun(tmp_path / "several", lambda: until_there_are_enough(tmp_path / "several"))

    ahead = open_worker(Job(str(folder), device="cpu"))
    beyond = list(ahead.plan().sizes)
    for part in (beyond[1], beyond[8], beyond[9]):  # out of order, and more than are needed
        assert ahead.compute(part).state == "done"
    assert not status_of(folder).is_finished
    children = [forked(lambda: work_on(Job(str(folder), device="cpu"))) for _ in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    assert parts(folder) == parts(tmp_path / "one")
    assert status_of(folder).is_finished
    assert not list(folder.glob(".*"))
    assert one.counts() == until_there_are_enough(folder).counts()


@pytest.mark.usefixtures("some_wrong")
def test_parts_that_were_given_out_in_vain_are_removed_by_whoever_goes_on(tmp_path: Path) -> None:
    until_there_are_enough(tmp_path / "one")
    folder = begun(tmp_path / "killed", lambda: until_there_are_enough(tmp_path / "killed"))
    worker = open_worker(Job(str(folder), device="cpu"))
    pending = worker.pending
    assert pending is not None
    for part in list(pending.sizes)[2:9]:  # and is killed
        pending.write(part)
    assert not status_of(folder).is_finished
    until_there_are_enough(folder)
    assert parts(folder) == parts(tmp_path / "one")
    assert status_of(folder).is_finished


def told(folder: Path) -> tuple[bool, int, int, int]:
    """What the status of a run says: whether it is finished, its parts, and those done and left."""
    found = status_of(folder)
    return found.is_finished, found.n_parts, found.n_done, found.n_left


@pytest.mark.usefixtures("some_wrong")
@pytest.mark.parametrize("command", ["work", "retry"])
def test_the_end_of_a_run_that_may_end_early_is_told(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is stopped, gone on with from its folder, loses a part, and goes on again."""
    until_there_are_enough(tmp_path / "one")
    whole, folder = parts(tmp_path / "one"), tmp_path / "stopped"
    n = len(whole) // 2
    assert told(tmp_path / "one") == (True, n, n, 0)
    assert status_of(tmp_path / "one").record()["minutes_left"] in (0, None)
    given = grading._verdicts

    def stopped(queries: Any, *more: Any) -> Any:
        if len(parts(folder)) == 2:
            raise KeyboardInterrupt
        return given(queries, *more)

    with monkeypatch.context() as patch:
        patch.setattr(grading, "_verdicts", stopped)
        with pytest.raises(KeyboardInterrupt):
            until_there_are_enough(folder)
    assert told(folder) == (False, 13, 1, 12)
    hs.load_result(folder)
    assert "not finished: 32 of at most 400" in caplog.text

    def go_on() -> None:
        arguments = ["hopscope", "runs", command, str(folder), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code in (0, None)

    go_on()
    assert parts(folder) == whole
    assert told(folder) == (True, n, n, 0)
    (folder / "frame-000032.parquet").write_bytes(b"cut off")
    repair(folder)
    assert told(folder) == (False, n, n - 1, 1)
    caplog.clear()
    hs.load_result(folder)
    assert f"not finished: {32 * (n - 1)} of {32 * n} queries" in caplog.text
    go_on()
    assert parts(folder) == whole
    assert told(folder) == (True, n, n, 0)


@pytest.mark.usefixtures("some_wrong")
def test_a_part_too_many_is_left_out_until_someone_goes_on(tmp_path: Path) -> None:
    """Its worker was killed before it could see that there are enough."""
    one, folder = until_there_are_enough(tmp_path / "one"), tmp_path / "run"
    begun(folder, lambda: until_there_are_enough(folder))
    worker = open_worker(Job(str(folder), device="cpu"))
    work_on(Job(str(folder), device="cpu"))
    assert worker.pending is not None
    worker.pending.write(320)
    assert status_of(folder).is_finished
    assert hs.load_result(folder).frame.equals(one.frame)
    assert until_there_are_enough(folder).frame.equals(one.frame)
    assert parts(folder) == parts(tmp_path / "one")


def test_workers_that_are_refused_leave_nothing(tmp_path: Path) -> None:
    from hopscope.experiments.recipe import recipe_of

    given = {"model": loaded("tiny-random-llama"), "queries": many_queries()[:4]}
    module = "hopscope.experiments.two_hop.back_patching"
    recipe = recipe_of("back_patching", module, {**given, "cells": [(99, 1)]})
    job = Job(str(tmp_path / "run"), recipe.told(), recipe.files, device="cpu")
    with pytest.raises(hs.HopscopeError, match="cells are"):
        open_worker(job)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_worker_is_followed_by_another(whole: Path, empty: Path) -> None:
    def dying() -> None:
        real = runs.write_part

        def write(*given: Any) -> None:
            real(*given)
            if len(parts(empty)) == 6:
                os.kill(os.getpid(), 9)

        runs.write_part = write
        work_on(Job(str(empty), device="cpu"))

    assert ended(forked(dying)) == -9
    assert list(empty.glob(".claim-*"))
    assert status_of(empty).running == ()
    work_on(Job(str(empty), device="cpu"))
    assert parts(empty) == parts(whole)
    assert not list(empty.glob(".*"))


def test_the_claim_of_a_worker_that_was_lost_after_its_part_is_removed(empty: Path) -> None:
    worker = open_worker(Job(str(empty), device="cpu"))
    assert worker.compute(4).state == "done"
    claim = empty / ".claim-000004"
    claim.write_text("{}")  # of a process that is not known to be gone
    assert worker.compute(4).state == "done"
    assert claim.exists()
    assert worker.compute(4, force=True).state == "done"
    assert not claim.exists()
