"""Provides work_on(): compute whatever a run folder lacks, beside others that do the same."""

from __future__ import annotations

from hopscope.display.front_end import ProgressBar
from hopscope.distributed.job import Job, Outcome, Worker, open_worker


def work_on(job: Job, *, progress: bool = False) -> list[Outcome]:
    """Compute the parts of a run that are missing and that no other process computes.

    Workers of one folder share its parts out by claims. A part that fails is tried again after the
    others, until it is given up.

    Args:
        job: the run.
        progress: show a progress bar.

    Returns:
        The parts that were given up.

    Raises:
        HopscopeError: what the analysis raises for what it cannot do.
    """
    return share_of(open_worker(job), progress=progress)


def share_of(worker: Worker, *, progress: bool = False) -> list[Outcome]:
    """Compute parts with a worker, as `work_on`."""
    plan = worker.plan()
    left, given_up = dict(plan.sizes), list[Outcome]()
    total = plan.n_done + sum(left.values())
    with ProgressBar(
        total=total, initial=plan.n_done, desc="parts", unit="query", disable=not progress
    ) as bar:
        moved = True
        while left and moved:
            moved = False
            for part in list(left):
                found = worker.compute(part)
                if found.state == "busy":
                    continue
                moved = True
                if found.is_final:
                    given_up.append(found)
                if found.state == "done" or found.is_final:
                    bar.update(left.pop(part))
                if found.shown is None:
                    return given_up
                bar.set_postfix_str(found.shown)
    return given_up
