"""Provides run_over(): an experiment as a map over queries that goes on where it was stopped."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from tqdm.auto import tqdm

from hopscope.documents.question_set import QuestionSet
from hopscope.errors import QueryError, ResultError, UsageError
from hopscope.files import write_json
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import (
    Tables,
    is_run,
    is_taken,
    part_path,
    read_parts,
    read_run,
    write_part,
)

logger = logging.getLogger(__name__)

SAME = ("kind", "settings", "model", "queries")
"""What two runs must share to be one."""


S = TypeVar("S", QuerySet, QuestionSet)


def run_over(
    queries: S,
    compute: Callable[[S], Tables],
    run: Mapping[str, Any],
    *,
    per_part: int,
    out: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    progress: bool = True,
) -> Tables:
    """Compute the tables of all queries, part by part.

    Args:
        queries: the queries.
        compute: gives the tables of some of them; must not depend on which others are there.
        run: what was asked, and provenance.
        per_part: queries in a part.
        out: run folder; parts that are there already are not computed again.
        shard: (i, n): only every n-th part, from the i-th (1 to n) on.
        progress: show a progress bar.

    Returns:
        The tables of all finished parts.

    Raises:
        QueryError: if there is no query.
        ResultError: if `out` holds another run.
    """
    if not len(queries):
        raise QueryError(
            f"{queries.name} is an empty query set: nothing to run. If it was chosen by grading, "
            "grade more queries (a larger limit) or look at graded.summary()"
        )
    starts = _of_shard(range(0, len(queries), per_part), shard, out)
    folder = None if out is None else open_run(Path(out), run)
    kept: list[Tables] = []
    with (
        _keeping_what_is_done(run, folder, kept),
        tqdm(
            total=sum(min(per_part, len(queries) - start) for start in starts),
            desc=str(run["kind"]).replace("_", " "),
            unit="query",
            disable=not progress,
        ) as bar,
    ):
        for start in starts:
            part = queries[start : start + per_part]
            if folder is None:
                kept.append(compute(part))
            elif not part_path(folder, "frame", start).exists():
                write_part(folder, start, compute(part))
            bar.update(len(part))
    if folder is not None:
        return read_parts(folder)
    return joined(kept)


def run_parts(
    n: int,
    compute: Callable[[int], Tables],
    run: Mapping[str, Any],
    *,
    out: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    description: str,
    unit: str,
    progress: bool = True,
) -> Tables:
    """Compute tables in numbered parts that are no queries: worlds, or steps of a training.

    Args:
        n: how many.
        compute: gives the tables of a part, numbered from 0.
        run: what was asked, and provenance.
        out: run folder; parts that are there already are not computed again.
        shard: (i, n): only every n-th part, from the i-th (1 to n) on; needs `out`.
        description: of the progress bar.
        unit: what a part is.
        progress: show a progress bar.

    Raises:
        ResultError: if `out` holds another run.
        UsageError: for a shard without a folder, or with nothing to do.
    """
    parts = _of_shard(range(n), shard, out)
    folder = None if out is None else open_run(Path(out), run)
    kept: list[Tables] = []
    with _keeping_what_is_done(run, folder, kept):
        for part in tqdm(parts, desc=description, unit=unit, disable=not progress):
            if folder is None:
                kept.append(compute(part))
            elif not part_path(folder, "frame", part).exists():
                write_part(folder, part, compute(part))
    if folder is not None:
        return read_parts(folder)
    return joined(kept)


@contextmanager
def _keeping_what_is_done(
    run: Mapping[str, Any], folder: Path | None, kept: Sequence[Tables]
) -> Iterator[None]:
    """When a run is interrupted, keep its finished parts for `partial`."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is None:
            tables = joined(kept) if kept else None
        else:
            tables = read_parts(folder) if any(folder.glob("frame-*.parquet")) else None
        _interrupted[:] = [] if tables is None else [(run, tables)]
        again = (
            "with out=, the same call would go on" if folder is None else "the same call goes on"
        )
        if tables is not None:
            done = tables["details"]["query"].nunique()
            logger.warning("stopped: hopscope.partial() has %d finished; %s", done, again)
        raise


_interrupted: list[tuple[Mapping[str, Any], Tables]] = []
"""What and how much the last interrupted run had done; empty if it had done nothing."""


def partial() -> Result:
    """The finished part of the last run that was interrupted, with a notebook's stop button, say.

    Raises:
        ResultError: if none was interrupted, or none of its parts was finished.

    Example:
        >>> result = hs.back_patch(model, queries)  # stopped       # doctest: +SKIP
        >>> hs.partial().success_rate()                             # doctest: +SKIP
    """
    if not _interrupted:
        raise ResultError("no run was interrupted in this session after its first queries")
    ((run, tables),) = _interrupted
    return Result.kinds[str(run["kind"])].of(tables, run)


def _of_shard(parts: range, shard: tuple[int, int] | None, out: str | Path | None) -> range:
    """The parts that one shard computes.

    Raises:
        UsageError: for a shard without a run folder, or with nothing to do.
    """
    if shard is not None and out is None:
        raise UsageError("a shard needs a run folder, where the shards come together: give out")
    index, count = shard or (1, 1)
    if parts and not parts[index - 1 :: count]:
        raise UsageError(
            f"shard {index}/{count} has nothing to do: there are {len(parts)} parts; use at most "
            f"{len(parts)} shards"
        )
    return parts[index - 1 :: count]


def joined(parts: Sequence[Tables]) -> Tables:
    """The tables of several parts as one."""
    return {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}


def run_once(
    compute: Callable[[], Tables], run: Mapping[str, Any], out: str | Path | None = None
) -> Tables:
    """Compute tables that no query has for itself, unless they are in a run folder already.

    Args:
        compute: gives the tables.
        run: what was asked, and provenance.
        out: run folder.

    Raises:
        ResultError: if `out` holds another run.
    """
    if out is None:
        return compute()
    folder = open_run(Path(out), run)
    if not part_path(folder, "frame", 0).exists():
        write_part(folder, 0, compute())
    return read_parts(folder)


def open_run(path: Path, run: Mapping[str, Any]) -> Path:
    """Make a run folder, or go on with one that asks the same.

    Raises:
        ResultError: if the folder holds something else.
    """
    if is_run(path):
        before = read_run(path)
        differing = [key for key in SAME if before.get(key) != run.get(key)]
        if differing:
            key = differing[0]
            raise ResultError(
                f"{path} holds another run: its {key} is {before.get(key)}, not {run.get(key)}. "
                "Choose another folder, or delete this one."
            )
        logger.info("going on with %s", path)
        return path
    if is_taken(path, "run.json"):
        raise ResultError(f"{path} is there and is not a run folder; choose another place")
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "run.json", run)
    return path


def parse_shard(text: str) -> tuple[int, int]:
    """Read a shard `i/n`: every n-th query, from the i-th (1 to n) on.

    Raises:
        UsageError: if it is not of that form.
    """
    index, _, count = text.partition("/")
    plain = re.fullmatch(r"[0-9]+/[0-9]+", text)
    if plain is None or not 1 <= int(index) <= int(count):
        raise UsageError(f"{text!r} is not a shard: write i/n with 1 <= i <= n, such as 1/4")
    return int(index), int(count)
