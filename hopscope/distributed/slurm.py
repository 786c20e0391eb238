"""Provides Slurm: the parts of a run as the jobs of an array."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hopscope.display.front_end import ProgressBar
from hopscope.distributed.job import Job, Outcome
from hopscope.distributed.work import work_on
from hopscope.errors import EngineError, HopscopeError, UsageError, one_of
from hopscope.results.claims import failures
from hopscope.results.status import status_of

CLUSTERS = ("slurm", "local", "debug")
_POLL = 1.0
"""Seconds between two looks at the folder."""
_ROUNDS = 3
"""How often jobs are submitted for parts whose workers were lost, without one more being done."""


@dataclass(frozen=True)
class Slurm:
    """Compute the parts of a run by jobs of Slurm.

    Jobs of one array share the parts of the run folder out among themselves. A job that is
    preempted, or whose time is over, is queued again and goes on.

    Args:
        partition: of the jobs; the cluster's usual one if None.
        gpus: of a job, over which the model is spread if they are several; 1 on Slurm, and none
            elsewhere, if None.
        time: minutes that a job may take.
        jobs: how many there are.
        cpus: cores of a job; as many threads are used.
        memory: of a job in GB; the cluster's usual one if None.
        cluster: `slurm`; `local` for processes of this machine; `debug` for this process.
        more: further parameters of submitit, such as `{"slurm_account": "x"}`.

    Raises:
        UsageError: for an unknown cluster, or a number that cannot be.

    Example:
        >>> on = hs.Slurm(partition="gpu", gpus=1, jobs=32)                 # doctest: +SKIP
        >>> hs.back_patch("Qwen/Qwen3-8B", queries, out="runs/x", on=on)    # doctest: +SKIP
    """

    partition: str | None = None
    gpus: int | None = None
    time: int = 240
    jobs: int = 1
    cpus: int = 1
    memory: float | None = None
    cluster: str = "slurm"
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of("cluster", self.cluster, CLUSTERS)
        for name in ("time", "jobs", "cpus"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, not {getattr(self, name)}")

    @property
    def is_local(self) -> bool:
        """Whether the jobs run on this machine."""
        return self.cluster != "slurm"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Do nothing: each run has jobs of its own."""
        yield

    def compute(self, job: Job, *, progress: bool) -> list[Outcome]:
        """Compute the parts that a run folder lacks; those that were given up."""
        executor, folder = self._executor(Path(job.folder)), Path(job.folder)
        gpus = self._gpus
        placed = Job(
            job.folder,
            job.recipe,
            job.files,
            device="cuda" if gpus else "cpu",
            spread=gpus > 1,
            threads=self.cpus,
        )
        done, rounds = -1, 0
        while True:
            with executor.batch():
                jobs = [executor.submit(_Share(placed)) for _ in range(self.jobs)]
            try:
                self._wait(jobs, folder, progress)
            except BaseException:
                for each in jobs:
                    each.cancel(check=False)
                raise
            ended = [_told(each) for each in jobs]
            refused = next((each for each in ended if isinstance(each, HopscopeError)), None)
            if refused is not None:
                raise refused
            state = status_of(folder)
            if state.is_finished or state.n_left == len(state.failed):
                break
            rounds = rounds + 1 if state.n_done == done else 1
            done = state.n_done
            if rounds > _ROUNDS:
                lost = next((str(each) for each in ended if each is not None), "no error is told")
                raise EngineError(f"the jobs are lost before they finish a part: {lost}")
        shutil.rmtree(_logs(folder), ignore_errors=True)
        return [
            Outcome(each.part, "failed", each.error, is_final=True) for each in failures(folder)
        ]

    @property
    def _gpus(self) -> int:
        return int(self.cluster == "slurm") if self.gpus is None else self.gpus

    def _executor(self, folder: Path) -> Any:
        """What submits jobs.

        Raises:
            UsageError: if submitit or Slurm is not there.
        """
        try:
            import submitit
        except ImportError:
            raise UsageError(
                "on='slurm' needs submitit, which is not installed: pip install 'hopscope[slurm]'"
            ) from None
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise UsageError(
                "there is no Slurm on this machine (no sbatch): call this where jobs are submitted "
                "from, or take hs.Slurm(cluster='local')"
            )
        executor = submitit.AutoExecutor(_logs(folder), cluster=self.cluster)
        asked = {
            "name": "hopscope",
            "timeout_min": self.time,
            "gpus_per_node": self._gpus,
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory,
            "slurm_partition": self.partition,
            "slurm_array_parallelism": self.jobs,
            **self.more,
        }
        executor.update_parameters(**{k: v for k, v in asked.items() if v is not None})
        return executor

    def _wait(self, jobs: list[Any], folder: Path, progress: bool) -> None:
        """Show how far the run is until all jobs have ended."""
        if self.cluster == "debug":  # a job runs when its result is asked for
            return
        with ProgressBar(desc="parts", unit="part", disable=not progress, smoothing=0) as bar:
            pause = _POLL
            while not all(each.done() for each in jobs):
                time.sleep(pause)
                begun = time.perf_counter()
                state = status_of(folder)
                pause = max(_POLL, 10 * (time.perf_counter() - begun))
                bar.total = state.n_parts or None
                bar.reach(state.n_done)
                bar.set_postfix_str(f"{len(state.running)} running")


@dataclass(frozen=True)
class _Share:
    """What a job does: a share of the parts; after a preemption the same again."""

    job: Job

    def __call__(self) -> HopscopeError | None:
        """What the analysis refuses to do, if it does."""
        try:
            work_on(self.job)
        except HopscopeError as error:
            return error
        return None

    def checkpoint(self) -> Any:
        """The job to be queued when this one is preempted."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _told(job: Any) -> Exception | None:
    """What a job has ended with: an error of the analysis, or of the job; None if all is well."""
    try:
        found: Exception | None = job.result()
    except Exception as error:  # submitit's own, for a job that was killed
        return RuntimeError(str(error))
    return found


def _logs(folder: Path) -> Path:
    """Where submitit keeps what it needs, and what the jobs print."""
    return folder.with_name(f"{folder.name}.slurm")
