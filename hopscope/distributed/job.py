"""Provides what is said between who asks for a run and the workers that compute its parts."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

OPENS_WORKERS = "hopscope.experiments.worker:open_worker"
"""The function that makes a worker of a job, by its address, like an entry point."""


@dataclass(frozen=True)
class Job:
    """A run that workers compute.

    Attributes:
        folder: the run folder, as all workers see it.
        recipe: the call as JSON; what the folder says if None.
        files: the files that the recipe names, with what they hold.
        device: of the model; a GPU if there is one, if None.
        spread: whether the model is spread over all GPUs of a worker.
        threads: of torch; as many as it takes by itself if None.
    """

    folder: str
    recipe: Mapping[str, Any] | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    device: str | None = None
    spread: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class Plan:
    """What there is to compute.

    Attributes:
        sizes: how many inputs each part has that is left, by its number.
        n_done: how many inputs the other parts have.
    """

    sizes: Mapping[int, int]
    n_done: int


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        part: its number.
        state: `busy` if another process computes it.
        error: why it failed.
        is_final: whether it failed so often that it is not tried again.
        shown: what the first parts show; None if they are enough.
        seconds: that computing it took.
    """

    part: int
    state: Literal["done", "failed", "busy"]
    error: str = ""
    is_final: bool = False
    shown: str | None = ""
    seconds: float = 0.0


class Worker(Protocol):
    """A process that has loaded the model of a run."""

    def plan(self) -> Plan:
        """The parts that are left."""

    def compute(self, part: int, *, force: bool = False) -> Outcome:
        """Compute a part and write it into the folder."""


def open_worker(job: Job, before: Worker | None = None) -> Worker:
    """Make a worker of a job, in this process.

    Args:
        job: the job.
        before: a worker whose model may be used again.
    """
    found: Worker = pkgutil.resolve_name(OPENS_WORKERS)(job, before)
    return found
