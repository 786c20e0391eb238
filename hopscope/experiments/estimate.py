"""Provides estimate(): what an analysis costs, told from a few of its queries before it is run.

An analysis is called as ever, but its run is rehearsed: a few of its parts are computed, timed and
counted, nothing is written, and what they took is scaled up to the parts that are left.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, NamedTuple

import pandas as pd

from hopscope.engine.work import counting
from hopscope.errors import UsageError, of_type
from hopscope.experiments.registry import REGISTERED
from hopscope.models.token_model import TokenModel
from hopscope.results.run_folder import Tables, joined
from hopscope.results.runs import Inputs, Pending, rehearsing

SECONDS = 10.0
COSTS = ("cells", "forwards", "layer_tokens", "logit_rows", "seconds")
"""What is scaled up."""


@dataclass(frozen=True, repr=False)
class Estimate:
    """What is left of a run, and what it will take.

    Attributes:
        n: inputs (queries or questions) that are left.
        n_done: inputs whose parts are in `out` already.
        cells: edited or masked versions of prompts that will be read out.
        forwards: passes that plain hooks would take for the same, one for each version and each
            token that it generates.
        layer_tokens: tokens times blocks that the engine will compute, over all rows.
        logit_rows: tokens whose logits will be computed.
        weight_bytes: memory of the model.
        row_bytes: memory of the rows of the largest batch that was measured, by the rule of
            `hopscope.engine.memory.row_bytes`.
        seconds: time, but for loading the model.
        seconds_low, seconds_high: the time if all inputs took as long as the quickest or the
            slowest of those that were measured.
        n_measured: inputs from which this is told.
        n_measurements: how often so many of them were timed.
        measuring: seconds that telling it took.
    """

    n: int
    n_done: int
    cells: int
    forwards: int
    layer_tokens: int
    logit_rows: int
    weight_bytes: int
    row_bytes: int
    seconds: float
    seconds_low: float
    seconds_high: float
    n_measured: int
    n_measurements: int
    measuring: float

    def table(self) -> pd.DataFrame:
        """One row for each thing that is told, in words: columns `what, estimate`."""
        spread = "measured once"
        if self.n_measurements > 1:
            spread = f"{duration(self.seconds_low)} to {duration(self.seconds_high)}"
        rows = {
            "queries": f"{self.n:,}; {self.n_done:,} more are done",
            "cells": f"{self.cells:,}",
            "forward passes of plain hooks": f"{self.forwards:,}",
            "layer-tokens": f"{self.layer_tokens:,}",
            "rows of the unembedding": f"{self.logit_rows:,}",
            "memory": f"weights {gigabytes(self.weight_bytes)}, rows {gigabytes(self.row_bytes)}",
            "time": f"{duration(self.seconds)} ({spread})",
            "measured on": f"{self.n_measured:,} queries, in {duration(self.measuring)}",
        }
        return pd.DataFrame(rows.items(), columns=["what", "estimate"])

    def __repr__(self) -> str:
        return "\n".join(f"{what:30} {told}" for what, told in self.table().to_numpy())

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False))


class _Measurement(NamedTuple):
    """How many inputs were computed at once, what each of them took, and what was found."""

    n: int
    each: pd.Series[float]
    tables: Tables


@dataclass(frozen=True)
class RehearsedRun:
    """A run of which a few inputs were computed.

    Attributes:
        pending: its parts that are left.
        first: what the first input takes more than it does again, such as what all share.
        costs: what an input takes, one row for each measurement, by `COSTS`.
        n_measured: how many inputs these were; none is counted twice.
        tables: what was found of them, and of those that were computed before, fewer at once.
        spent: what measuring took, by `COSTS`.
    """

    pending: Pending
    first: pd.Series[float]
    costs: pd.DataFrame
    n_measured: int
    tables: Tables
    spent: pd.Series[float]

    @property
    def n(self) -> int:
        """How many inputs are left."""
        return sum(self.pending.sizes.values())


@dataclass(frozen=True)
class Rehearsal:
    """An analysis that was called, with its runs measured in place of being run.

    Attributes:
        runs: what was measured of each run; none if all parts were there already.
        result: of the analysis, in that case.
        around: what was computed besides the inputs of the runs, by `COSTS`.
        measuring: seconds that all this took.
        weight_bytes, row_bytes: see `Estimate`.
    """

    runs: tuple[RehearsedRun, ...]
    result: Any
    around: pd.Series[float]
    measuring: float
    weight_bytes: int
    row_bytes: int

    def estimate(self, n: int | None = None) -> Estimate:
        """What the analysis takes.

        Args:
            n: for how many inputs; for those that are left if None.
        """

        def cost(of: Callable[[pd.DataFrame], Any]) -> pd.Series[float]:
            each = (run.first + (run.n if n is None else n) * of(run.costs) for run in self.runs)
            return sum(each, start=self.around)

        usual = cost(pd.DataFrame.mean)
        return Estimate(
            n=max((run.n for run in self.runs), default=0) if n is None else n,
            n_done=min((run.pending.n_done for run in self.runs), default=0),
            **{str(what): round(number) for what, number in usual.drop("seconds").items()},
            weight_bytes=self.weight_bytes,
            row_bytes=self.row_bytes,
            seconds=usual["seconds"],
            seconds_low=cost(pd.DataFrame.min)["seconds"],
            seconds_high=cost(pd.DataFrame.max)["seconds"],
            n_measured=min((run.n_measured for run in self.runs), default=0),
            n_measurements=min((len(run.costs) for run in self.runs), default=0),
            measuring=self.measuring,
        )


def rehearse(
    analysis: Callable[..., Any],
    model: TokenModel,
    *args: Any,
    seconds: float = SECONDS,
    **given: Any,
) -> Rehearsal:
    """Call an analysis, and measure its runs in place of running them; see `estimate`."""
    runs: list[RehearsedRun] = []
    result = None

    def measure(pending: Pending) -> None:
        runs.append(measured_run(pending, now, seconds))

    def now() -> pd.Series[float]:
        return pd.Series({**asdict(work), "seconds": perf_counter()})[list(COSTS)]

    with counting(model) as work, rehearsing(measure):
        begun = now()
        result = analysis(model, *args, **given)
    spent = now() - begun
    return Rehearsal(
        tuple(runs),
        result,
        spent - sum(run.spent for run in runs),
        spent["seconds"],
        model.hf.get_memory_footprint(),  # type: ignore[no-untyped-call]
        work.row_bytes,
    )


def measured_run(
    pending: Pending, now: Callable[[], pd.Series[float]], seconds: float
) -> RehearsedRun:
    """Compute a few inputs of parts drawn at random, twice as many each time as time allows.

    The first input is computed twice: what it takes more the first time, others do not. No other
    is computed again. What an input takes is told from the largest pieces.

    Args:
        pending: the parts.
        now: tells what was computed so far, by `COSTS`.
        seconds: for how long to measure after the first input, which is computed twice.

    Raises:
        UsageError: for parts that are computed in one piece.
    """
    begun, compute = now(), pending.compute
    if compute is None:
        raise UsageError(
            f"{pending.run['kind']} is computed in one piece or trains models: what it costs "
            "cannot be told from a small part of it. Try it with less, such as fewer queries or "
            "steps"
        )

    def time_left() -> float:
        return seconds - float((now() - warm)["seconds"])

    def measured(part: int, n: int) -> _Measurement:
        before = now()
        tables = compute(part, size - left[part], n)
        return _Measurement(n, (now() - before) / n, tables)

    size = max(pending.sizes.values())
    parts = [part for part, inputs in pending.sizes.items() if inputs == size]
    random.Random(0).shuffle(parts)
    left = dict.fromkeys(parts, size)
    cold, warm = measured(parts[0], 1), now()
    done = [measured(parts[0], 1)]
    left[parts[0]] -= 1
    while True:
        n, each = done[-1].n, done[-1].each["seconds"]
        more = max(n, min(2 * n, size, int(time_left() / 2 / each)))
        parts = [*parts[1:], parts[0]]
        part = next((each for k in (more, n) for each in parts if left[each] >= k), None)
        if part is None or min(more, left[part]) * each > time_left():
            break
        done.append(measured(part, min(more, left[part])))
        left[part] -= done[-1].n
    found = [each for each in done if each.n == done[-1].n]
    return RehearsedRun(
        pending,
        (cold.each - done[0].each).clip(lower=0),
        pd.DataFrame([each.each for each in found]),
        sum(each.n for each in found),
        joined([each.tables for each in done]),
        now() - begun,
    )


def estimate(
    analysis: Callable[..., Any],
    model: TokenModel,
    inputs: Inputs,
    /,
    *args: Any,
    seconds: float = SECONDS,
    **given: Any,
) -> Estimate:
    """Tell what an analysis costs before it is run, from a few of its queries.

    Nothing is written. The parts that `out` holds already are not counted. Time is told from what
    was measured here and now: other programs on the same machine, or none, change it.

    Args:
        analysis: such as `hs.back_patch`.
        model: the model.
        inputs: the queries or questions.
        *args: further arguments of the analysis.
        seconds: for how long to measure, after the first query, which is computed twice. An
            analysis that consists of several, such as `stages`, takes as long for each.
        **given: keyword arguments of the analysis; it is measured here, whatever `on` is.

    Returns:
        An `Estimate`.

    Raises:
        UsageError: for an analysis that trains models, or is computed in one piece; and what the
            analysis itself raises for what it cannot do.

    Example:
        >>> hs.estimate(hs.back_patch, model, queries, positions=["t1"])  # doctest: +SKIP
    """
    given.pop("on", None)
    of_type("analysis", analysis, Callable, "a function such as hs.back_patch")  # type: ignore[arg-type]
    entry = next((each for each in REGISTERED.values() if each.function is analysis), None)
    if entry is not None and entry.asks == "models":
        raise UsageError(
            f"{analysis.__name__} trains models or goes through many: what it costs cannot be told "
            "before. Try it with less, such as fewer steps or seeds"
        )
    return rehearse(analysis, model, inputs, *args, seconds=seconds, **given).estimate()


def overview(estimates: Mapping[str, Estimate]) -> pd.DataFrame:
    """Several estimates, a row for each."""
    rows = [
        (name, each.n, each.n_done, each.cells, each.layer_tokens, duration(each.seconds))
        for name, each in estimates.items()
    ]
    return pd.DataFrame(rows, columns=["run", "n", "done", "cells", "layer_tokens", "time"])


def duration(seconds: float) -> str:
    """A time in words."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def gigabytes(n: int) -> str:
    """A number of bytes in words."""
    return f"{n / 1e9:.2f} GB"
