"""Provides `hopscope runs`: how far run folders are, and computing what they lack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hopscope.commands.options import Device, example
from hopscope.commands.printing import AsJson, show, table_text
from hopscope.errors import EngineError, UsageError

if TYPE_CHECKING:
    from hopscope.distributed.job import Outcome

runs_app = typer.Typer(no_args_is_help=True, help="Run folders: how far they are, and going on.")
Folder = Annotated[Path, typer.Argument(help="A run folder, or one of several runs.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of torch; by default as many as it takes.")
]
_COLUMNS = ("run", "kind", "parts", "done", "running", "failed", "per_minute", "minutes_left")


@runs_app.command("status", epilog=example("runs status runs/back-patch"))
def status_command(folder: Folder, as_json: AsJson = False) -> None:
    """Say of each run how many parts are done, running and failed, and how long it will take."""
    from hopscope.results.status import status_of

    found = [status_of(each) for each in _runs(folder)]
    failed = [
        {"run": str(run.folder), "part": each.part, "times": each.times, "error": each.error}
        for run in found
        for each in run.failed
    ]
    rows = [each.record() for each in found]

    def text() -> str:
        tables = [table_text([{name: row[name] for name in _COLUMNS} for row in rows], "%.1f")]
        return "\n\n".join([*tables, *([table_text(failed)] if failed else [])])

    show({"runs": rows, "failed": failed}, as_json, text)


@runs_app.command("work", epilog=example("runs work runs/back-patch"))
def work_command(folder: Folder, device: Device = None, threads: Threads = None) -> None:
    """Compute the parts that are missing, beside others that do the same.

    A run folder says by which call it is made, so that nothing else is needed: start this on as
    many machines that see the folder as there are.
    """
    _work(_runs(folder), device, threads)


@runs_app.command("retry", epilog=example("runs retry runs/back-patch"))
def retry_command(folder: Folder, device: Device = None, threads: Threads = None) -> None:
    """Try the parts that failed again, and compute others that are missing."""
    from hopscope.results.claims import clear_failures

    runs = _runs(folder)
    for each in runs:
        clear_failures(each)
    _work(runs, device, threads)


@runs_app.command("merge", epilog=example("runs merge runs/all runs/here runs/there"))
def merge_command(
    into: Annotated[Path, typer.Argument(help="The run folder that is to have all parts.")],
    runs: Annotated[list[Path], typer.Argument(help="Folders of the same run.")],
) -> None:
    """Put the parts of one run together that machines without a common folder have computed."""
    from hopscope.results.merging import merge_runs

    print(f"{merge_runs(into, runs)} parts were added to {into}")


@runs_app.command("repair", epilog=example("runs repair runs/back-patch"))
def repair_command(folder: Folder) -> None:
    """Remove the parts that cannot be read, so that the run computes them again.

    What is removed is listed; all else stays.
    """
    from hopscope.results.run_folder import repair

    removed = [run / name for run in _runs(folder) for name in repair(run)]
    for path in removed:
        print(path)
    if not removed:
        print(f"nothing in {folder} is damaged")


def _runs(folder: Path) -> list[Path]:
    """The runs in a folder.

    Raises:
        UsageError: if there is none.
    """
    from hopscope.results.status import runs_in

    found = runs_in(folder)
    if not found:
        raise UsageError(f"{folder} is no run folder, and holds none: no run.json is there")
    return found


def _work(runs: list[Path], device: str | None, threads: int | None) -> None:
    """Compute what runs lack.

    Raises:
        EngineError: if parts were given up.
    """
    from hopscope.distributed.job import Job
    from hopscope.distributed.work import work_on
    from hopscope.results.run_folder import RECIPE, read_run
    from hopscope.results.status import status_of

    failed: list[tuple[Path, Outcome]] = []
    for each in runs:
        if RECIPE not in read_run(each) and status_of(each).is_finished:
            continue  # a result that was saved, such as those that a study puts together
        job = Job(str(each.resolve()), device=device, threads=threads)
        failed += [(each, found) for found in work_on(job, progress=True)]
    if failed:
        told = "\n  ".join(f"{run}, part {each.part}: {each.error}" for run, each in failed)
        raise EngineError(f"{len(failed)} parts failed three times:\n  {told}")
