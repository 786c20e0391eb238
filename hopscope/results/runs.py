"""Provides run_over(): an experiment as a map over queries that goes on where it was stopped."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hopscope.display.front_end import ProgressBar
from hopscope.display.progress import showing
from hopscope.errors import QueryError, ResultError, TakenError, UsageError
from hopscope.files import (
    check_place,
    clear_leftovers,
    make_folder,
    write_json,
    write_json_once,
)
from hopscope.interrupts import interrupt_safe, n_stops
from hopscope.models.evaluation import torch_modes
from hopscope.results.recipes import recipe_now
from hopscope.results.result import Result, upgrade_record
from hopscope.results.run_folder import (
    ENOUGH,
    OF_FOLDER,
    PLAN,
    RECIPE,
    RECORD,
    Tables,
    enough_of,
    finished_parts,
    has_part,
    is_run,
    is_taken,
    joined,
    packed_parts,
    parts_of,
    read_parts,
    read_run,
    remove_part,
    unpack,
    write_machine,
    write_part,
)
from hopscope.results.run_record import SAME as SAME
from hopscope.results.run_record import Described, difference, machine_of, other_device, other_rules

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pending:
    """The parts of a run that are left to compute.

    What computes holds nothing that the analysis closes: it can be called when that has ended.

    Attributes:
        sizes: how many inputs each part has that is left, by its number.
        n_done: how many inputs the parts have that are there.
        compute: gives the tables of some inputs of a part: of which part, by its number, from
            which of its inputs on, and of how many; None if a part is computed in one piece.
        done: gives the tables of the parts that are there.
        whole: gives the tables of a part.
        run: the run's record.
        folder: the run folder, if there is one.
        parts: how many inputs each part has, whether it is there or left.
        until: looks at the tables of the first parts, and may say that they are enough.
    """

    sizes: Mapping[int, int]
    n_done: int
    compute: Callable[[int, int, int], Tables] | None
    done: Callable[[], Sequence[Tables]] = list
    whole: Callable[[int], Tables] | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    parts: Mapping[int, int] = field(default_factory=dict)
    until: Until | None = None

    def open(self) -> Path:
        """Make the run folder, or go on with the one that is there; the folder.

        Raises:
            TakenError: if it holds something else.
            PlaceError, WriteError: if it cannot be made.
        """
        assert self.folder is not None
        _prepare(self.folder)
        return open_run(self.folder, self.run, self.parts, may_end=self.until is not None)

    def write(self, part: int) -> None:
        """Compute a part and write it into the run folder, which must be open."""
        assert self.folder is not None
        assert self.whole is not None
        _write(self.folder, part, self.run, self.whole(part))

    def settle(self) -> str | None:
        """What is shown of the first parts that are there; None if they are enough.

        Parts that were computed in vain are removed then. Always "" for a run that has no `until`.
        """
        if self.until is None:
            return ""
        assert self.folder is not None
        return _settle(self.folder, list(self.parts), self.until)


class RehearsedError(Exception):
    """Ends an analysis where its run would have ended that was rehearsed instead."""


Until = Callable[[Tables], str | None]
"""Looks at the tables of the parts so far: None ends the run, a text is shown in its bar."""
Rehearse = Callable[["Pending"], None]
_rehearse: ContextVar[Rehearse | None] = ContextVar("hopscope_rehearsal", default=None)


@interrupt_safe
def rehearsing(rehearse: Rehearse) -> Iterator[None]:
    """Hand the parts of a run to `rehearse` instead of computing them, while the context is open.

    An analysis ends there, and nothing is written. One whose parts are all there is run as ever.
    """
    token = _rehearse.set(rehearse)
    try:
        with suppress(RehearsedError):
            yield
    finally:
        _rehearse.reset(token)


def run_each(*runs: Callable[[], Any]) -> list[Any]:
    """The results of several runs, one after the other; a rehearsal rehearses each of them."""
    results = []
    for run in runs:
        with suppress(RehearsedError):
            results.append(run())
    if len(results) < len(runs):
        raise RehearsedError
    return results


class Inputs(Described, Protocol):
    """What is analysed: a sequence of queries, questions or prompts with a name."""

    def __getitem__(self, key: slice, /) -> Any: ...


def run_over(
    inputs: Inputs,
    compute: Callable[[Any], Tables],
    run: Mapping[str, Any],
    *,
    per_part: int,
    out: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    progress: bool = True,
    until: Until | None = None,
) -> Tables:
    """Compute the tables of all inputs, part by part.

    Args:
        inputs: the queries or questions.
        compute: gives the tables of some of them; must not depend on which others are there.
        run: what was asked, and provenance.
        per_part: inputs in a part.
        out: run folder; parts that are there already are not computed again.
        shard: (i, n): only every n-th part, from the i-th (1 to n) on; needs `out`.
        progress: show a progress bar.
        until: looks at the tables after each part, and ends the run or says what the bar shows.

    Returns:
        The tables of all finished parts.

    Raises:
        QueryError: if there is no input.
        TakenError: if `out` holds another run.
        UsageError: for a shard without a folder, or with nothing to do.
    """
    if not len(inputs):
        raise QueryError(
            f"{inputs.name} is an empty query set: nothing to run. If it was chosen by grading, "
            "grade more queries (a larger limit) or look at graded.summary()"
        )
    sizes = {start: min(per_part, len(inputs) - start) for start in range(0, len(inputs), per_part)}
    description = str(run["kind"]).replace("_", " ")

    def some_of(part: int, start: int, n: int) -> Tables:
        return compute(inputs[part + start : part + start + n])

    return _run(
        sizes,
        lambda part: some_of(part, 0, per_part),
        run,
        out,
        shard,
        description,
        "query",
        progress=progress,
        until=until,
        some_of=some_of,
    )


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
        compute: gives the tables of a part, numbered from 0; may write into `out`, too.
        description: of the progress bar.
        unit: what a part is.
        run, out, shard, progress: as for `run_over`.

    Raises:
        TakenError: if `out` holds another run.
        UsageError: for a shard without a folder, or with nothing to do.
    """
    sizes = dict.fromkeys(range(n), 1)
    return _run(sizes, compute, run, out, shard, description, unit, progress=progress, at_once=True)


def run_once(
    compute: Callable[[], Tables], run: Mapping[str, Any], out: str | Path | None = None
) -> Tables:
    """Compute tables that no query has for itself, unless they are in a run folder already.

    Args:
        compute: gives the tables.
        run, out: as for `run_over`.

    Raises:
        TakenError: if `out` holds another run.
    """
    return _run({0: 1}, lambda _: compute(), run, out, None, "", "part", progress=False)


def _run(
    sizes: Mapping[int, int],
    compute: Callable[[int], Tables],
    run: Mapping[str, Any],
    out: str | Path | None,
    shard: tuple[int, int] | None,
    description: str,
    unit: str,
    *,
    progress: bool,
    until: Until | None = None,
    at_once: bool = False,
    some_of: Callable[[int, int, int], Tables] | None = None,
) -> Tables:
    """Compute the parts of one shard that are not there yet; `sizes` are those of all parts.

    The folder is made with the first part, so that a run that is refused leaves nothing; or
    `at_once`, where `compute` may write into it, too. `some_of` computes as `Pending.compute`.
    """
    parts = _of_shard(list(sizes), shard, out)
    folder = None if out is None else Path(out)
    there = set() if folder is None else _finished(folder, parts, run, until)
    if folder is not None and there == set(parts):
        return read_parts(folder, sizes)
    if folder is not None:
        _check_goes_on(folder, run)
    if (rehearse := _rehearse.get()) is not None:

        def done() -> Sequence[Tables]:
            return list(parts_of(folder, sizes).values()) if folder is not None and there else []

        left = {part: sizes[part] for part in parts if part not in there}
        n_done = sum(sizes[part] for part in there)
        rehearse(Pending(left, n_done, some_of, done, compute, run, folder, sizes, until))
        raise RehearsedError
    if folder is not None:
        _prepare(folder)
    if at_once and folder is not None:
        open_run(folder, run, sizes)
    kept: dict[int, Tables] = {}
    if folder is not None and until is not None and there:
        kept |= parts_of(folder, sizes)
    with (
        _keeping_what_is_done(run, folder, kept),
        ProgressBar(
            total=sum(sizes[part] for part in parts),
            initial=sum(sizes[part] for part in parts if part in there),
            desc=description,
            unit=unit,
            disable=not progress,
            smoothing=0,  # the time left is told from all that was computed
            miniters=0,
        ) as bar,
    ):
        for part in (each for each in parts if each not in there):
            tables = _computed(compute, part, sizes[part], bar)
            if folder is not None:
                open_run(folder, run, sizes, may_end=until is not None)
                _write(folder, part, run, tables)
            if folder is None or until is not None:
                kept[part] = tables
            shown, n = ("", 0) if until is None else _look(kept, parts, part, until)
            if shown is None:
                if folder is not None:
                    _end(folder, parts, n, finished_parts(folder, parts))
                break
            bar.set_postfix_str(shown)
        if folder is None:
            tables = joined(list(kept.values()))
        else:
            tables = read_parts(folder, _needed(folder, sizes))
        _finished_run[:] = [(run, tables)]
    return tables


def _write(folder: Path, part: int, run: Mapping[str, Any], tables: Tables) -> None:
    """Write a part, and beside it what machine has computed it."""
    write_machine(folder, part, machine_of(run))
    write_part(folder, part, tables)


def _prepare(folder: Path) -> None:
    """Make a place ready for writing parts into it; no folder is made that is not there.

    Raises:
        PlaceError, WriteError: if it cannot be written to.
    """
    check_place(folder)
    clear_leftovers(folder)
    if packed_parts(folder):
        unpack(folder)


def _look(
    there: Mapping[int, Tables], parts: Sequence[int], new: int, until: Until
) -> tuple[str | None, int]:
    """Look at the first parts, up to one that is new, and on where others come after it.

    Returns:
        What is shown, or None if they are enough; and how many they are.
    """
    n = parts.index(new) + 1
    while (shown := until(joined([there[part] for part in parts[:n]]))) is not None:
        if n == len(parts) or parts[n] not in there:
            break
        n += 1
    return shown, n


def _settle(folder: Path, parts: Sequence[int], until: Until) -> str | None:
    """Look at the parts of a run that may end early, as `Pending.settle`."""
    begun = packed_parts(folder) or finished_parts(folder, parts)
    there = parts_of(folder, parts) if begun else {}
    if parts[0] not in there:
        return ""
    shown, n = _look(there, parts, parts[0], until)
    if shown is None or n == len(parts):
        _end(folder, parts, n, there)
        return None
    return shown


def _end(folder: Path, parts: Sequence[int], n: int, there: Collection[int]) -> None:
    """Write down that the first `n` parts are enough, and remove others that are there.

    Others were given out before that was known. Where nothing can be written, whoever reads the
    folder leaves them out.
    """
    if n == len(parts):
        return
    record = read_run(folder)
    with suppress(OSError):
        if enough_of(record) != parts[n]:
            plan = {**record.get(PLAN, {}), ENOUGH: parts[n]}
            write_json(folder / RECORD, {**record, PLAN: plan})
        for part in set(there) - set(parts[:n]):
            remove_part(folder, part)


def _needed(folder: Path, sizes: Mapping[int, int]) -> Mapping[int, int]:
    """The parts that a run needs, with their sizes: of one that ends early, those that are enough.

    Another process may have written more of them meanwhile.
    """
    enough = enough_of(read_run(folder))
    return {part: n for part, n in sizes.items() if enough is None or part < enough}


def _computed(compute: Callable[[int], Tables], part: int, n: int, bar: ProgressBar) -> Tables:
    """The tables of a part of `n` inputs, while a bar says how far the work on them is."""
    before = round(bar.n)
    with showing(lambda done: bar.reach(before + n * done)):
        tables = compute(part)
    bar.reach(before + n)
    return tables


def _finished(
    folder: Path, parts: Sequence[int], run: Mapping[str, Any], until: Until | None
) -> set[int]:
    """The parts that need not be computed: all of them if those there are enough for `until`.

    Raises:
        TakenError: if the folder holds something else.
    """
    check_run(folder, run)
    packed = packed_parts(folder)
    there = {part for part in parts if part in packed or has_part(folder, part)}
    if there and until is not None and _settle(folder, parts, until) is None:
        return set(parts)
    return there


@interrupt_safe
def _keeping_what_is_done(
    run: Mapping[str, Any], folder: Path | None, kept: Mapping[int, Tables]
) -> Iterator[None]:
    """When a run is interrupted, keep its finished parts for `partial`.

    If it has none, what the same call has finished before is kept. An interrupt that a library has
    turned into an error of its own is an interrupt again.
    """
    _interrupted.clear()
    stopped = n_stops()
    try:
        yield
    except BaseException as error:
        if n_stops() == stopped and not isinstance(error, KeyboardInterrupt):
            raise
        if folder is None:
            tables = joined(list(kept.values())) if kept else None
        else:
            tables = read_parts(folder) if any(folder.glob("frame-*.parquet")) else None
        _interrupted[:] = _finished_run if tables is None else [(run, tables)]
        logger.warning(
            "stopped: %s", _left_behind(_interrupted[0][1] if _interrupted else None, folder)
        )
        if isinstance(error, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt from error


def keep_interrupted(folder: Path, *, is_kept: bool) -> None:
    """Keep what a run that was interrupted has in its folder for `partial`, and say how it goes on.

    Args:
        folder: the run folder.
        is_kept: whether it stays when the program ends.
    """
    found = is_run(folder) and finished_parts(folder)
    tables = read_parts(folder) if found else None
    run = (
        {name: each for name, each in read_run(folder).items() if name not in OF_FOLDER}
        if found
        else {}
    )
    _interrupted[:] = [] if tables is None else [(run, tables)]
    logger.warning("stopped: %s", _left_behind(tables, folder if is_kept else None))


def _left_behind(tables: Tables | None, folder: Path | None) -> str:
    """What an interrupted run has left, and how it goes on, for the message after a stop."""
    if tables is None:
        left = "nothing was finished yet"
    else:
        left = f"hs.partial() has the {tables['details']['query'].nunique()} finished"
    if folder is not None:
        return f"{left}; the same call with out={str(folder)!r} goes on from its last full part"
    return f"{left}; give out='a/folder', and the same call goes on after a stop"


_interrupted: list[tuple[Mapping[str, Any], Tables]] = []
"""What and how much the last interrupted run had done; empty if it had done nothing."""
_finished_run: list[tuple[Mapping[str, Any], Tables]] = []
"""The run that was finished last in a call that goes on."""
_calls: list[object] = []
"""The calls that go on: one that an analysis makes of another lies within its own."""


@interrupt_safe
def calling() -> Iterator[None]:
    """One call of an analysis, after which torch's modes are as before.

    When it is interrupted, `partial` has what it had done, and nothing of calls before.
    """
    if not _calls:
        _interrupted.clear()
        _finished_run.clear()
    _calls.append(None)
    try:
        with torch_modes():
            yield
    except KeyboardInterrupt:
        if not _interrupted:
            _interrupted[:] = _finished_run
        raise
    finally:
        _calls.pop()
        if not _calls:
            _finished_run.clear()


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


def _of_shard(
    parts: Sequence[int], shard: tuple[int, int] | None, out: str | Path | None
) -> Sequence[int]:
    """The parts that one shard computes.

    Raises:
        UsageError: for a shard that does not exist, has no run folder, or has nothing to do.
    """
    if shard is not None and out is None:
        raise UsageError("a shard needs a run folder, where the shards come together: give out")
    index, count = (1, 1) if shard is None else check_shard(*shard)
    if parts and not parts[index - 1 :: count]:
        raise UsageError(
            f"shard {index}/{count} has nothing to do: there are {len(parts)} parts; use at most "
            f"{len(parts)} shards"
        )
    return parts[index - 1 :: count]


def check_run(path: Path, run: Mapping[str, Any]) -> None:
    """Check that a place is free, or holds a run that asks the same; nothing is written.

    Raises:
        TakenError: if it holds something else.
    """
    if is_taken(path, RECORD):
        raise TakenError(f"{path} is there and is not a run folder; choose another place")
    if not is_run(path):
        return
    differing = difference(upgrade_record(read_run(path)), upgrade_record(run))
    if differing is not None:
        name, before, now = differing
        raise TakenError(
            f"{path} holds another run: its {name} is {before}, not {now}. "
            "Choose another folder, or delete this one."
        )
    logger.info("going on with %s", path)


def _check_goes_on(path: Path, run: Mapping[str, Any]) -> None:
    """Check that a run that goes on has the rules and the kind of device of its finished parts.

    Raises:
        TakenError: if it does not.
    """
    if not is_run(path):
        return
    before = read_run(path)
    if devices := other_device(before, run):
        raise TakenError(
            f"{path} was begun on {devices[0]}, and this is {devices[1]}: what would be added "
            "differs in its last digits. Go on with it on such a device, or choose another folder"
        )
    if other := other_rules(before, run):
        raise TakenError(
            f"{path} was begun by another version of hopscope, by another rule of "
            f"{', '.join(other).replace('_', ' ')}: what would be added does not go with what is "
            "there, which load_result reads. Choose another folder, or delete this one."
        )


def open_run(
    path: Path, run: Mapping[str, Any], sizes: Mapping[int, int], *, may_end: bool = False
) -> Path:
    """Make a run folder, or go on with one that asks the same.

    Args:
        path: the folder.
        run: the run's record; the recipe of the call that is being made is written beside it.
        sizes: how many inputs each of its parts has.
        may_end: whether it may end before all of its parts are there.

    Raises:
        TakenError: if the folder holds something else.
        PlaceError, WriteError: if it cannot be made.
    """
    check_run(path, run)
    recipe = recipe_now()
    if not is_run(path):
        plan: dict[str, Any] = {"inputs": sum(sizes.values())}
        plan["per_part"] = next(iter(sizes.values()), 1)
        plan |= {ENOUGH: None} if may_end else {}
        told = {} if recipe is None else {RECIPE: recipe.as_json()}
        write_json_once(make_folder(path) / RECORD, {**run, PLAN: plan, **told})
        check_run(path, run)  # another process may have been first
        _check_goes_on(path, run)
    if recipe is not None:
        recipe.write_inputs(path)
    return path


def parse_shard(text: str) -> tuple[int, int]:
    """Read a shard `i/n`: every n-th query, from the i-th (1 to n) on.

    Raises:
        UsageError: if it is not of that form, or there is no such shard.
    """
    plain = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if plain is None:
        raise UsageError(f"{text!r} is not a shard: write i/n with 1 <= i <= n, such as 1/4")
    return check_shard(int(plain[1]), int(plain[2]))


def check_shard(index: int, count: int) -> tuple[int, int]:
    """Return a shard, the `index`-th (1 to `count`) of `count`.

    Raises:
        UsageError: if there is no such shard.
    """
    if not 1 <= index <= count:
        raise UsageError(f"shard {index}/{count} does not exist: give i/n with 1 <= i <= n")
    return index, count
