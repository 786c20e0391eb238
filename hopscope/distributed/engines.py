"""Provides compute_on(): the parts of a run, by the engine that is asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hopscope.distributed.job import Job, Outcome
from hopscope.distributed.ray_cluster import Ray
from hopscope.distributed.slurm import Slurm
from hopscope.errors import EngineError, UsageError, one_of
from hopscope.results.claims import clear_failures
from hopscope.results.runs import keep_interrupted
from hopscope.results.status import status_of

R = TypeVar("R")
_TOLD = 5
"""How many failed parts an error tells of."""


class Engine(Protocol):
    """What computes the parts of a run elsewhere."""

    @property
    def is_local(self) -> bool:
        """Whether its workers see the temporary folders of this machine."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep workers from one run to the next while the context is open."""

    def compute(self, job: Job, *, progress: bool) -> list[Outcome]:
        """Compute the parts that a run folder lacks; those that were given up.

        Raises:
            HopscopeError: what the analysis raises for what it cannot do.
        """


ENGINES: Mapping[str, Callable[[], Engine]] = {"ray": Ray, "slurm": Slurm}
"""The engines that `on` may name."""


def engine_of(on: Any) -> Engine:
    """The engine that `on` names or is.

    Raises:
        UsageError: if it is none.
    """
    if isinstance(on, str):
        return ENGINES[one_of("engine", on, ENGINES)]()
    if isinstance(on, Ray | Slurm):
        return on
    raise UsageError(f"on must be 'ray', 'slurm', hs.Ray(...) or hs.Slurm(...), not {on!r}")


def compute_on(
    on: Any,
    recipe: Mapping[str, Any],
    files: Mapping[str, bytes],
    read: Callable[[Path], R],
    *,
    out: str | Path | None,
    progress: bool,
) -> R:
    """Compute a run by an engine, and read its folder.

    Args:
        on: the engine, or its name.
        recipe: the call as JSON.
        files: the files that the recipe names, with what they hold.
        read: reads what the folder then holds.
        out: the run folder; a temporary one if None, where the workers see it.
        progress: show a progress bar.

    Raises:
        UsageError: without a folder that the workers see.
        EngineError: if parts were given up, or workers cannot be had.
    """
    engine = engine_of(on)
    if out is None and not engine.is_local:
        raise UsageError(
            f"workers of {type(engine).__name__} may run on other machines, which do not see a "
            "temporary folder of this one: give out='a/folder' that all of them see"
        )
    with tempfile.TemporaryDirectory(prefix="hopscope-") as beside:
        folder = Path(beside) / "run" if out is None else Path(out).resolve()
        clear_failures(folder)
        try:
            failed = engine.compute(Job(str(folder), recipe, files), progress=progress)
        except KeyboardInterrupt:
            keep_interrupted(folder, is_kept=out is not None)
            raise
        if failed:
            raise _failed(failed, folder, kept=out is not None)
        state = status_of(folder)
        if not state.is_finished:
            raise EngineError(
                f"{state.n_left} of {state.n_parts} parts are missing, and no worker has said why: "
                "the same call computes them"
            )
        return read(folder)


def _failed(failed: list[Outcome], folder: Path, *, kept: bool) -> EngineError:
    """The error that tells of parts that were given up."""
    told = [f"part {each.part}: {each.error}" for each in failed[:_TOLD]]
    more = [f"and {len(failed) - _TOLD} more"] if len(failed) > _TOLD else []
    return EngineError(
        f"{len(failed)} part{'s' * (len(failed) > 1)} failed three times:\n  "
        + "\n  ".join([*told, *more])
        + (
            f"\nThe others are in {folder}: the same call, or `hopscope runs retry {folder}`, "
            "tries these again"
            if kept
            else ""
        )
    )
