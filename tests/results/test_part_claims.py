"""Tests of claims.py: who computes a part, and which parts failed, also after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hopscope.files import host_name
from hopscope.results import claims
from hopscope.results.claims import (
    claimed,
    clear_claims,
    clear_failures,
    failures,
    note_failure,
    running,
)


def left_by(folder: Path, part: int, **said: object) -> Path:
    """A claim as another process has left it."""
    path = folder / f".claim-{part:06d}"
    path.write_text(json.dumps({"host": host_name(), "process": os.getpid(), "id": "x", **said}))
    return path


def dead_process() -> int:
    """The id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_part_is_claimed_once(tmp_path: Path) -> None:
    with claimed(tmp_path, 12) as mine:
        assert mine
        assert running(tmp_path) == [12]
        with claimed(tmp_path, 12) as other:
            assert not other
        with claimed(tmp_path, 13) as another:
            assert another
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_released_when_its_part_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), claimed(tmp_path, 0):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_process_that_is_gone_counts_for_nothing(tmp_path: Path) -> None:
    left_by(tmp_path, 0, process=dead_process())
    left_by(tmp_path, 2)
    assert running(tmp_path) == [2]
    with claimed(tmp_path, 0) as mine:
        assert mine
    left_by(tmp_path, 0, process=dead_process())
    clear_claims(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".claim-000002"]


def test_a_process_that_was_killed_and_not_yet_buried_is_gone(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    left_by(tmp_path, 0, process=child.pid)
    assert running(tmp_path) == [0]
    os.kill(child.pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while running(tmp_path) and time.monotonic() < end:
        time.sleep(0.01)
    assert running(tmp_path) == []
    child.wait()


def test_the_claim_of_another_host_counts_while_it_is_touched(tmp_path: Path) -> None:
    path = left_by(tmp_path, 0, host="elsewhere")
    assert running(tmp_path) == [0]
    old = time.time() - 2 * claims.STALE
    os.utime(path, (old, old))
    assert running(tmp_path) == []


def test_who_works_touches_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT", 0.01)
    with claimed(tmp_path, 0):
        (path,) = tmp_path.iterdir()
        os.utime(path, (0, 0))
        end = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_a_claim_that_was_taken_away_is_not_released_by_its_former_owner(tmp_path: Path) -> None:
    with claimed(tmp_path, 0), claimed(tmp_path, 0, force=True) as mine:
        assert mine
        own = (tmp_path / ".claim-000000").read_text()
    assert own
    with claimed(tmp_path, 0) as again:
        assert again
    left = left_by(tmp_path, 0)
    with claimed(tmp_path, 0, force=True):
        assert left.read_text() != own
    assert not left.exists()


def test_failures_are_counted_until_they_are_forgotten(tmp_path: Path) -> None:
    for _ in range(claims.TRIES):
        assert not any(each.is_final for each in failures(tmp_path))
        note_failure(tmp_path, 4, "RuntimeError: no")
    (failure,) = failures(tmp_path)
    assert (failure.part, failure.error, failure.times) == (4, "RuntimeError: no", claims.TRIES)
    assert failure.is_final
    assert clear_failures(tmp_path) == [failure]
    assert list(tmp_path.iterdir()) == []
