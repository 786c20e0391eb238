"""Provides status_of(): how far a run folder is, who computes parts of it, and what failed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hopscope.results.claims import Failure, failures, running
from hopscope.results.run_folder import (
    PLAN,
    RECORD,
    enough_of,
    finished_parts,
    is_run,
    packed_parts,
    part_path,
    read_run,
)

RECENT = 50
"""Of how many parts the rate is told, the last that were finished."""


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        folder: the run folder.
        kind: of the result.
        n_parts: how many parts there will be, or may be if the run ends when there are enough; 0
            if it is not known.
        n_done: how many are finished.
        running: the parts that are being computed.
        failed: those that failed, and were not finished since.
        per_minute: parts that were finished in a minute, of late; None with fewer than two.
    """

    folder: Path
    kind: str
    n_parts: int
    n_done: int
    running: tuple[int, ...]
    failed: tuple[Failure, ...]
    per_minute: float | None

    @property
    def n_left(self) -> int:
        """How many parts are missing; those of a run that may end early at most so many."""
        return max(0, self.n_parts - self.n_done)

    @property
    def is_finished(self) -> bool:
        """Whether all parts are there, or as many as are enough."""
        return bool(self.n_parts) and not self.n_left

    @property
    def minutes_left(self) -> float | None:
        """Minutes until the missing parts are there, at the rate of late."""
        return self.n_left / self.per_minute if self.per_minute else None

    def record(self) -> dict[str, Any]:
        """The status as a row of a table."""
        return {
            "run": str(self.folder),
            "kind": self.kind,
            "parts": self.n_parts,
            "done": self.n_done,
            "running": len(self.running),
            "failed": len(self.failed),
            "per_minute": self.per_minute,
            "minutes_left": self.minutes_left,
        }


def status_of(folder: Path) -> RunStatus:
    """How far a run folder is; a folder that is not begun has no parts yet.

    Raises:
        ResultError: if its record cannot be read.
    """
    if not is_run(folder):
        return RunStatus(folder, "", 0, 0, (), (), None)
    run = read_run(folder)
    enough = enough_of(run)
    there = sorted(packed_parts(folder)) or finished_parts(folder)
    parts = there if enough is None else [part for part in there if part < enough]
    failed = tuple(each for each in failures(folder) if each.part not in parts)
    return RunStatus(
        folder,
        str(run.get("kind")),
        _n_parts(run, parts),
        len(parts),
        tuple(running(folder)),
        failed,
        _rate(folder, parts),
    )


def runs_in(folder: Path) -> list[Path]:
    """A run folder, or those in a folder of several runs."""
    if is_run(folder):
        return [folder]
    return sorted(path.parent for path in folder.rglob(RECORD))


def _n_parts(run: Mapping[str, Any], parts: list[int]) -> int:
    """How many parts there will be; records of earlier versions do not say how large they are."""
    plan = run.get(PLAN) or {}
    inputs = enough_of(run) or plan.get("inputs", run.get("queries", {}).get("n", 0))
    per_part = plan.get("per_part") or (parts[1] - parts[0] if len(parts) > 1 else 0)
    return -(-inputs // per_part) if per_part else len(parts)


def _rate(folder: Path, parts: list[int]) -> float | None:
    """How many parts a minute were finished of late."""
    times = []
    for part in parts:
        try:
            times.append(part_path(folder, "frame", part).stat().st_mtime)
        except OSError:
            continue
    last = sorted(times)[-RECENT:]
    if len(last) < 2 or time.time() - last[-1] > 24 * 3600:
        return None
    return 60 * (len(last) - 1) / max(last[-1] - last[0], 1e-3)
