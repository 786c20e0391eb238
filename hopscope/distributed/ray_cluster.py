"""Provides Ray: the parts of a run on the machines of a Ray cluster, an actor for each GPU."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hopscope.display.front_end import ProgressBar
from hopscope.distributed.job import Job, Outcome, Plan, Worker, open_worker
from hopscope.errors import EngineError, UsageError
from hopscope.results.claims import TRIES, note_failure

ADDRESS = "RAY_ADDRESS"
_OBJECTS = 2**28
"""Bytes for what is passed between processes, which is little, where Ray is started here."""


@dataclass(frozen=True)
class Ray:
    """Compute the parts of a run by Ray.

    Connects to the cluster whose address the environment variable `RAY_ADDRESS` names, or else
    starts Ray on this machine, reached from it alone, while a run is computed. Each worker loads
    the model once, and is given parts as it is free. A worker that is lost is started again, and
    its part is given to another.

    Args:
        workers: how many; one for each GPU of the cluster if None.
        gpus_per_worker: GPUs of a worker, over which the model is spread if they are several; 1 if
            None and the cluster has GPUs.
        cpus_per_worker: cores of a worker; as many threads are used.
        address: of the cluster, instead of that in `RAY_ADDRESS`.

    Raises:
        UsageError: for a number that cannot be.

    Example:
        >>> hs.back_patch(model, queries, out="runs/x", on=hs.Ray(workers=2))  # doctest: +SKIP
    """

    workers: int | None = None
    gpus_per_worker: int | None = None
    cpus_per_worker: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        least = {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise UsageError(f"{name} must be {lowest} or more, not {value}")

    @property
    def is_local(self) -> bool:
        """Whether Ray is started on this machine."""
        return not (self.address or os.environ.get(ADDRESS))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the workers from one run to the next while the context is open."""
        held = _held.get()
        if held is not None and held[0] == self:
            yield
            return
        with self._pool() as pool:
            token = _held.set((self, pool))
            try:
                yield
            finally:
                _held.reset(token)

    def compute(self, job: Job, *, progress: bool) -> list[Outcome]:
        """Compute the parts that a run folder lacks; those that were given up."""
        held = _held.get()
        if held is not None and held[0] == self:
            return _Run(held[1], job).compute(progress)
        with self._pool() as pool:
            return _Run(pool, job).compute(progress)

    @contextmanager
    def _pool(self) -> Iterator[_Pool]:
        """The workers, which are let go in the end."""
        with self._connected() as ray:
            gpus = int(ray.cluster_resources().get("GPU", 0))
            each = self.gpus_per_worker
            if each is None:
                each = 1 if gpus else 0
            workers = self.workers or (gpus // each if each else 0)
            if not workers:
                raise UsageError(
                    f"the Ray cluster has {gpus or 'no'} GPUs"
                    f"{f', and each worker takes {each}' if each else ''}: say how many workers "
                    "there shall be, in Python with on=hs.Ray(workers=2), in a shell with "
                    "--workers 2"
                )
            pool = _Pool(ray, each, self.cpus_per_worker)
            try:
                pool.start(workers)
                yield pool
            finally:
                pool.stop()

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Ray, connected to a cluster; what is started for this is stopped."""
        ray = _ray()
        if ray.is_initialized():
            yield ray
            return
        address = self.address or os.environ.get(ADDRESS)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        cores = max(os.cpu_count() or 1, (self.workers or 1) * self.cpus_per_worker)
        here = {
            "num_cpus": cores,
            "include_dashboard": False,
            "object_store_memory": _OBJECTS,
            "_node_ip_address": "127.0.0.1",
        }
        try:
            ray.init(address=address or "local", **quiet, **({} if address else here))
        except Exception as error:  # of several kinds, from Ray and below
            if address:
                raise UsageError(
                    f"there is no Ray cluster at {address!r}: {error}. Start one with `ray start "
                    f"--head`, or unset {ADDRESS}"
                ) from error
            raise EngineError(f"Ray cannot be started on this machine: {error}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _ray() -> Any:
    """The library, which tells nobody that it is used.

    Raises:
        UsageError: if it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError(
            "on='ray' needs Ray, which is not installed: pip install 'hopscope[ray]'"
        ) from None
    return ray


class _Actor:
    """A worker in a process of Ray."""

    def __init__(self) -> None:
        self.worker: Worker | None = None

    def plan(self, job: Job) -> Plan:
        self.worker = open_worker(job, self.worker)
        return self.worker.plan()

    def compute(self, part: int) -> Outcome:
        assert self.worker is not None
        return self.worker.compute(part, force=True)  # who is alive, the driver knows


class _Pool:
    """The actors of a driver."""

    def __init__(self, ray: Any, gpus: int, cpus: int) -> None:
        self.ray, self.gpus, self.cpus = ray, gpus, cpus
        self.kind = ray.remote(_Actor)
        self.actors: list[Any] = []

    def start(self, n: int) -> None:
        """Start actors; they wait for room in the cluster."""
        self.actors += [self.new() for _ in range(n)]

    def new(self) -> Any:
        """One more actor."""
        options = {"num_gpus": self.gpus, "num_cpus": self.cpus, "scheduling_strategy": "SPREAD"}
        return self.kind.options(max_restarts=0, **options).remote()

    def replace(self, actor: Any) -> Any:
        """A new actor in place of one that was lost."""
        self.actors[self.actors.index(actor)] = fresh = self.new()
        return fresh

    def placed(self, job: Job) -> Job:
        """A job with the place of the model on a worker."""
        return Job(
            job.folder,
            job.recipe,
            job.files,
            device="cuda" if self.gpus else "cpu",
            spread=self.gpus > 1,
            threads=self.cpus,
        )

    def stop(self) -> None:
        """End all actors, also in the middle of a part."""
        for actor in self.actors:
            self.ray.kill(actor)


_held: ContextVar[tuple[Ray, _Pool] | None] = ContextVar("hopscope_ray", default=None)


@dataclass
class _Run:
    """One run that a driver gives out.

    Attributes:
        pool: the actors.
        job: the run.
        plan: the parts, once the first actor has told them.
        queue: those that are to be given out.
        under_way: what is waited for: the actor, and the part or None while it prepares itself.
        free: actors without work.
        lost: how often the worker of a part was lost.
        failed: the parts that were given up.
        starts_failed: how often workers were lost since one has finished a part.
        ended: whether the first parts are enough.
    """

    pool: _Pool
    job: Job
    plan: Plan | None = None
    queue: deque[int] = field(default_factory=deque)
    under_way: dict[Any, tuple[Any, int | None]] = field(default_factory=dict)
    free: list[Any] = field(default_factory=list)
    lost: dict[int, int] = field(default_factory=dict)
    failed: list[Outcome] = field(default_factory=list)
    starts_failed: int = 0
    ended: bool = False

    def compute(self, progress: bool) -> list[Outcome]:
        """Give out the parts until none is left; those that were given up."""
        ray = self.pool.ray
        for actor in self.pool.actors:
            self._prepare(actor)
        with ProgressBar(desc="parts", unit="query", disable=not progress, smoothing=0) as bar:
            while self.under_way and not self._is_done():
                (ready,), _ = ray.wait(list(self.under_way), num_returns=1)
                actor, part = self.under_way.pop(ready)
                try:
                    told = ray.get(ready)
                except ray.exceptions.RayTaskError as error:
                    raise getattr(error, "cause", None) or error from None
                except ray.exceptions.RayError as error:
                    self._lose(actor, part, error)
                    continue
                self.free.append(actor)
                if isinstance(told, Plan):
                    self._begin(told, bar)
                else:
                    self._note(told, bar)
                self._give_out()
        return self.failed

    def _is_done(self) -> bool:
        """Whether nothing is left; who prepares itself still is not waited for."""
        busy = any(part is not None for _, part in self.under_way.values())
        return self.plan is not None and not busy and (self.ended or not self.queue)

    def _prepare(self, actor: Any) -> None:
        self.under_way[actor.plan.remote(self.pool.placed(self.job))] = (actor, None)

    def _begin(self, plan: Plan, bar: ProgressBar) -> None:
        """Take the plan of the first actor that is ready."""
        if self.plan is not None:
            return
        self.plan = plan
        self.queue.extend(plan.sizes)
        bar.reset(total=plan.n_done + sum(plan.sizes.values()))  # the time left is told from now on
        bar.initial = bar.n = plan.n_done
        bar.refresh()

    def _give_out(self) -> None:
        while self.free and self.queue and not self.ended:
            actor, part = self.free.pop(), self.queue.popleft()
            self.under_way[actor.compute.remote(part)] = (actor, part)

    def _note(self, found: Outcome, bar: ProgressBar) -> None:
        """What became of a part."""
        assert self.plan is not None
        self.starts_failed = 0
        if found.state == "done":
            bar.reach(bar.n + self.plan.sizes[found.part])
            bar.set_postfix_str(found.shown or "")
            self.ended = self.ended or found.shown is None
        elif found.is_final:
            self.failed.append(found)
        else:
            self.queue.append(found.part)

    def _lose(self, actor: Any, part: int | None, error: Exception) -> None:
        """Start a worker in place of one that was lost, and give its part again.

        Raises:
            EngineError: if workers are lost one after the other, before they finish a part.
        """
        self.starts_failed += 1
        if self.starts_failed > TRIES * len(self.pool.actors):
            raise EngineError(f"the workers of Ray are lost as they begin: {error}") from error
        if part is not None:
            self.lost[part] = self.lost.get(part, 0) + 1
            if self.lost[part] < TRIES:
                self.queue.appendleft(part)
            else:
                told = f"its worker was lost {TRIES} times: {error}"
                for _ in range(TRIES):
                    note_failure(Path(self.job.folder), part, told)
                self.failed.append(Outcome(part, "failed", told, is_final=True))
        self._prepare(self.pool.replace(actor))
        self._give_out()
