"""Tests that a kill loses nothing: at random moments, and at every step of writing.

Children are forked from this process, which has imported everything, and killed by SIGKILL.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import loaded
from forks import ended, forked
from known import RIGHT, known_queries, made_grading, many_queries
from test_runs import Compute, run_of

import hopscope as hs
from hopscope.errors import ResultError
from hopscope.experiments.two_hop.back_patching import back_patch
from hopscope.files import clear_leftovers
from hopscope.results.runs import run_over

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
LATER = {form: RIGHT[form] for form in list(RIGHT)[:2]}
STEPS = ("link", "replace", "mkdir", "rmdir", "unlink")
"""The functions of `os` by which files are put in place, and removed."""


def killed_at(step: int, run: Callable[[], object]) -> bool:
    """Run something in a child that is killed before its `step`-th step; whether it came so far."""

    def counting() -> None:
        left = iter(range(step))

        def step_of(name: str) -> Callable[..., Any]:
            real = getattr(os, name)

            def stepping(*given: Any, **more: Any) -> Any:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*given, **more)

            return stepping

        for name in STEPS:
            setattr(os, name, step_of(name))
        run()

    code = ended(forked(counting))
    assert code in (0, -signal.SIGKILL)
    return code != 0


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but what says when it ran."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert files.pop("run.json")
    return files


def test_a_run_that_is_killed_at_random_moments_loses_nothing(tmp_path: Path) -> None:
    model, queries = loaded("tiny-random-llama"), many_queries()[:24]

    def run(name: str) -> None:
        settings: dict[str, Any] = {"max_new_tokens": 2, "progress": False}
        back_patch(model, queries, out=tmp_path / name, **settings)

    assert torch.get_num_threads() == 1
    run("whole")
    whole = contents(tmp_path / "whole")
    assert len(whole) == 37
    generator, finished = random.Random(0), dict[str, bytes]()
    for _ in range(10):
        tables = [name for name in finished if name.endswith(".parquet")]
        wanted = min(len(tables) + generator.randint(0, 2), 24)
        child = forked(partial(run, "run"))
        while len([*tmp_path.glob("run/*.parquet")]) < wanted:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        ended(child)
        if (tmp_path / "run" / "run.json").exists():
            there = contents(tmp_path / "run")
            assert finished.items() <= there.items()
            finished = {name: there[name] for name in there if name in whole}
            assert finished.items() <= whole.items()
    run("run")
    assert contents(tmp_path / "run") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]


def test_a_run_that_is_killed_at_any_step_of_writing_loses_nothing(tmp_path: Path) -> None:
    queries = known_queries()[:4]

    def run(name: str) -> None:
        more: dict[str, Any] = {"per_part": 2, "progress": False}
        run_over(queries, Compute(), run_of(queries), out=tmp_path / name, **more)

    run("whole")
    for step in range(100):
        name = f"run-{step}"
        if not killed_at(step, partial(run, name)):
            break
        run(name)
        assert contents(tmp_path / name) == contents(tmp_path / "whole")
    assert step > 6
    assert not list(tmp_path.rglob(".*"))


def test_a_result_that_is_killed_at_any_step_of_saving_is_the_old_or_the_new(
    tmp_path: Path,
) -> None:
    old, new = made_grading(RIGHT), made_grading(LATER)
    place = tmp_path / "run"
    for step in range(100):
        old.save(place)
        (place / "notes.txt").write_text("mine")
        if not killed_at(step, lambda: new.save(place)):
            break
        clear_leftovers(tmp_path)
        here = hs.load_result(place).frame
        assert any(here.equals(each.frame) for each in (old, new))
        new.save(place)
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        assert (place / "notes.txt").read_text() == "mine"
    assert step > 6
    pd.testing.assert_frame_equal(hs.load_result(place).frame, new.frame)


def test_several_that_save_to_one_place_end_with_one_whole_result(tmp_path: Path) -> None:
    place, results = tmp_path / "run", [made_grading(RIGHT), made_grading(LATER)]
    results[0].save(place)
    (place / "notes.txt").write_text("mine")

    def saving(number: int) -> None:
        for _ in range(10):
            results[number % 2].save(place)

    children = [forked(partial(saving, number)) for number in range(6)]
    assert [ended(child) for child in children] == [0] * 6
    assert len(hs.load_result(place).frame) in {len(each.frame) for each in results}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    names = ["details-000000.parquet", "frame-000000.parquet", "notes.txt", "run.json"]
    assert sorted(path.name for path in place.iterdir()) == names


def test_several_that_start_one_run_make_one(tmp_path: Path) -> None:
    queries = known_queries()

    def run(name: str, index: int = 1, count: int = 1) -> None:
        more: dict[str, Any] = {"per_part": 2, "progress": False, "shard": (index, count)}
        run_over(queries, Compute(), run_of(queries), out=tmp_path / name, **more)

    run("whole")
    for attempt in range(5):
        name = f"run-{attempt}"
        children = [forked(partial(run, name, index, 6)) for index in range(1, 7)]
        assert [ended(child) for child in children] == [0] * 6
        assert contents(tmp_path / name) == contents(tmp_path / "whole")


def test_of_two_runs_that_start_at_once_in_one_place_one_is_refused(tmp_path: Path) -> None:
    queries = known_queries()
    for attempt in range(5):
        place = tmp_path / f"run-{attempt}"

        def run(number: int, place: Path = place) -> None:
            asked, more = run_of(queries, match=number), {"per_part": 2, "progress": False}
            try:
                run_over(queries, Compute(), asked, out=place, **more)
            except ResultError as error:
                os._exit(3 if "its settings match is" in str(error) else 4)

        children = [forked(partial(run, number)) for number in range(2)]
        assert sorted(ended(child) for child in children) == [0, 3]
