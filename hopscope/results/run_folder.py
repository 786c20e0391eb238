"""Provides run folders: one `run.json`, and a part of each table for each few queries."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
from pyarrow import parquet

from hopscope.errors import DamagedResultError, NoResultError, ResultError
from hopscope.files import clear_leftovers, is_temporary, read_parquet, replacing, write_json

logger = logging.getLogger(__name__)

Tables = dict[str, pd.DataFrame]
TABLES = ("frame", "details")
RECORD = "run.json"
PARTS = "parts"
"""What the record of a packed run says of the parts that were put together; see `packing`."""
PLAN = "plan"
"""What the record says of the parts that there will be: how many inputs, and how many in a part."""
ENOUGH = "enough"
"""What the plan of a run that ends when there are enough says: how many of its first inputs were,
or None as long as that is not known. Plans of other runs, and of earlier versions, lack it."""
RECIPE = "recipe"
"""What the record says of the call, so that any process can compute parts; see `recipes`."""
MACHINES = "machines"
"""What the record of a packed run says of the machines that computed the parts, by part."""
OF_FOLDER = (PARTS, PLAN, RECIPE, MACHINES)
"""What belongs to the folder, not to the result."""
_OBJECTS = (*OF_FOLDER[1:], "settings", "rules", "model", "queries", "versions")
"""What holds names and values, in each record that has it."""
PACKED = "packed"
"""What stands for a part's number in the names of the files that hold all parts together."""
_PART = re.compile(rf"({'|'.join(TABLES)})-([0-9]{{6,}}|{PACKED})\.parquet")
_BESIDE = re.compile(r"\.(claim|failed)-[0-9]{6,}|inputs-[0-9a-f]{64}\.json\.gz")
"""What workers leave beside the parts (see `claims`), and inputs that no name stands for."""
_MACHINE = re.compile(r"machine-([0-9]{6,})\.json")


def read_run(path: Path) -> dict[str, Any]:
    """The `run.json` of a run folder."""
    try:
        run = json.loads((path / RECORD).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NoResultError(f"{path} is not a run folder: it has no run.json") from None
    except OSError as error:
        raise ResultError(f"{path / RECORD} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedResultError(f"{path / RECORD} is damaged: {error}") from None
    if not isinstance(run, dict):
        raise DamagedResultError(f"{path / RECORD} is damaged: it holds no object")
    for name in (*_OBJECTS, PARTS):
        if name in run and not _is_readable(name, run[name]):
            raise DamagedResultError(f"{path / RECORD} is damaged: {name!r} is of another type")
    return run


def _is_readable(name: str, value: Any) -> bool:
    """Whether what a record has under a name is of the type that it must be."""
    if name == PARTS:
        return isinstance(value, list) and all(each and isinstance(each, list) for each in value)
    return isinstance(value, dict)


def is_run(path: Path) -> bool:
    """Whether a folder is a run folder."""
    return os.path.isfile(path / RECORD)


def enough_of(run: Mapping[str, Any]) -> int | None:
    """How many of the first inputs were enough, by a run's record; None if that is not known."""
    enough: int | None = (run.get(PLAN) or {}).get(ENOUGH)
    return enough


def is_taken(path: Path, record: str) -> bool:
    """Whether a place without a record holds anything but what a kill may have left there."""
    try:
        names = os.listdir(path)
    except NotADirectoryError:
        return os.path.exists(path)
    except OSError:  # nothing is there, or it cannot be read, which writing will tell
        return False
    strange = [each for each in names if not is_temporary(each) and f".{record}." not in each]
    return bool(strange) and record not in names and not os.path.isfile(path / record)


def is_of_run(name: str) -> bool:
    """Whether a file of a run folder is the run's own, by its name."""
    known = (_PART, _BESIDE, _MACHINE)
    return name == RECORD or is_temporary(name) or any(each.fullmatch(name) for each in known)


def copy_inputs(path: Path, into: Path) -> None:
    """Copy the inputs that lie beside the parts of a run, because no name stands for them."""
    for file in path.glob("inputs-*"):
        if _BESIDE.fullmatch(file.name) and not (into / file.name).exists():
            with replacing(into / file.name) as temporary:
                shutil.copyfile(file, temporary)


def part_path(path: Path, table: str, part: int | str) -> Path:
    """Where a part of a table lies in a run folder, or all parts together, as `PACKED`."""
    return path / f"{table}-{part:0>6}.parquet"


def machine_path(path: Path, part: int) -> Path:
    """Where it lies what machine computed a part."""
    return path / f"machine-{part:0>6}.json"


def write_machine(path: Path, part: int, machine: Mapping[str, Any]) -> None:
    """Write what machine computes a part, beside its tables: these have the same bytes anywhere."""
    write_json(machine_path(path, part), machine)


def machines_of(path: Path) -> dict[int, dict[str, Any]]:
    """What machine computed each part of a run folder, packed or not: device, host and versions.

    Parts of earlier versions, which did not write it, are missing.
    """
    packed = read_run(path).get(MACHINES, {})
    found = {int(part): machine for part, machine in packed.items()}
    for file in sorted(path.glob("machine-*.json")):
        number = _MACHINE.fullmatch(file.name)
        if number is not None and part_path(path, "frame", int(number[1])).exists():
            with suppress(OSError, ValueError):  # the numbers do not need it
                found[int(number[1])] = json.loads(file.read_text("utf-8"))
    return found


def write_part(path: Path, part: int | str, tables: Tables) -> None:
    """Write one part of each table; `frame` comes last, so that it stands for the whole part.

    Args:
        path: the run folder.
        part: its number, or `PACKED`, which is compressed as far as it goes.
        tables: the tables.
    """
    for name in sorted(tables, key=lambda name: name == "frame"):
        table, target = tables[name], part_path(path, name, part)
        compression = _densest(table) if part == PACKED else {}
        with replacing(target) as temporary:
            table.to_parquet(temporary, index=False, **compression)


def _densest(table: pd.DataFrame) -> dict[str, Any]:
    """How a table is written smallest, as pyarrow's `write_table` takes it.

    The bytes of floats are told apart by significance: signs and exponents repeat themselves,
    and the lowest bits do not.
    """
    floats = list(table.select_dtypes("float"))
    return {
        "compression": "zstd",
        "compression_level": 19,
        "use_dictionary": [name for name in table if name not in floats],
        "column_encoding": dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
    }


def remove_part(path: Path, part: int) -> None:
    """Remove a part; `frame` goes first, since it stands for the whole part."""
    for file in _files_of(path, part):
        file.unlink(missing_ok=True)


def _files_of(path: Path, part: int) -> list[Path]:
    """The files of a part: its tables, and what machine computed it."""
    return [*(part_path(path, table, part) for table in TABLES), machine_path(path, part)]


def has_part(path: Path, part: int) -> bool:
    """Whether a part is there; a damaged one is told, and is as one that is not.

    A file that was cut off has lost its end, which says what is in it; no more is read here.
    """
    files = [part_path(path, table, part) for table in TABLES]
    if not os.path.exists(files[0]):
        return False
    try:
        for file in files:
            parquet.read_metadata(file)
    except PermissionError:
        return True  # which is told when it is read
    except (OSError, pa.ArrowException) as error:
        logger.warning("part %d of %s is damaged and is computed again: %s", part, path, error)
        return False
    return True


def read_parts(path: Path, known: Collection[int] | None = None) -> Tables:
    """All parts of each table, in the order of the queries.

    Args:
        path: the run folder, packed or not.
        known: the numbers of the parts that there can be; any if None. Others are told, and left
            out.

    Raises:
        ResultError: if there is none, or one cannot be read.
        DamagedResultError: if a file is damaged or missing.
    """
    tables = list(parts_of(path, known).values())
    if not tables:
        raise ResultError(f"{path} has no finished part yet; run the experiment again to go on")
    return joined(tables)


def joined(parts: Sequence[Tables]) -> Tables:
    """The tables of several parts as one."""
    return {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}


def parts_of(path: Path, known: Collection[int] | None = None) -> dict[int, Tables]:
    """The parts of a run folder by their numbers, ascending.

    Args:
        path, known: as for `read_parts`.

    Raises:
        ResultError: if one cannot be read.
        DamagedResultError: if a file is damaged or missing.
    """
    if not packed_parts(path):
        return {part: read_part(path, part) for part in finished_parts(path, known)}
    try:
        parts = _taken_apart(path)
    except DamagedResultError:
        if packed_parts(path):
            raise
        return parts_of(path, known)  # another process has just unpacked it
    return {part: parts[part] for part in parts if known is None or part in known}


def _taken_apart(path: Path) -> dict[int, Tables]:
    """The parts of a packed run folder by their numbers.

    Raises:
        DamagedResultError: if its record does not fit its tables.
    """
    tables, ends = read_part(path, PACKED), dict.fromkeys(TABLES, 0)
    parts: dict[int, Tables] = {}
    for number, *lengths in read_run(path).get(PARTS, []):
        starts, ends = ends, {t: ends[t] + n for t, n in zip(TABLES, lengths, strict=True)}
        parts[number] = {table: tables[table].iloc[starts[table] : ends[table]] for table in TABLES}
    if any(ends[table] != len(tables[table]) for table in TABLES):
        raise DamagedResultError(f"{path / RECORD} is damaged: it does not fit its tables")
    return parts


def packed_parts(path: Path) -> set[int]:
    """The numbers of the parts that a packed run folder holds; none if a folder is not packed."""
    return {part for part, *_ in read_run(path).get(PARTS, [])} if is_run(path) else set()


def unpack(path: Path) -> None:
    """Take a packed run folder apart, in place; several processes may do so at once.

    Until all parts are there its record says that it is packed, and they are read where they were.

    Raises:
        DamagedResultError: If its record does not fit its tables.
    """
    machines = machines_of(path)
    for part, tables in parts_of(path).items():
        if part in machines:
            write_machine(path, part, machines[part])
        write_part(path, part, tables)
    record = read_run(path)
    record.pop(PARTS, None)
    record.pop(MACHINES, None)
    write_json(path / RECORD, record)
    for table in TABLES:
        part_path(path, table, PACKED).unlink(missing_ok=True)


def finished_parts(path: Path, known: Collection[int] | None = None) -> list[int]:
    """The numbers of the parts that a run folder has, ascending.

    Args:
        path: the run folder.
        known: as for `read_parts`.
    """
    parts, strange = [], []
    for file in sorted(path.glob("frame-*")):
        found = _PART.fullmatch(file.name)
        if found is not None and found[2] == PACKED:
            continue  # was unpacked, and is to be removed
        if found is not None and (known is None or int(found[2]) in known):
            parts.append(int(found[2]))
        else:
            strange.append(file.name)
    if strange:
        logger.warning("%s holds files that are no parts of it: %s", path, ", ".join(strange))
    return sorted(parts)


def repair(path: Path) -> list[str]:
    """Remove the parts of a run folder that cannot be read, so that the run computes them again.

    What machine computed them goes, too, and what dead writers left.

    Returns:
        The names of the files that were removed.

    Raises:
        ResultError: if it is no run folder, or a file may not be read or removed.
        DamagedResultError: if the run is packed, so that no part of it can be removed alone, or its
            record is damaged.
    """
    if packed_parts(path):
        read_part(path, PACKED)
        return []
    read_run(path)
    clear_leftovers(path)
    found = filter(None, map(_PART.fullmatch, os.listdir(path)))
    numbers = {int(each[2]) for each in found if each[2] != PACKED}
    removed = []
    for part in sorted(numbers):
        try:
            read_part(path, part)
        except DamagedResultError:
            removed += [each.name for each in _files_of(path, part) if each.is_file()]
            remove_part(path, part)
    return removed


def read_part(path: Path, part: int | str) -> Tables:
    """One part of each table, or all of them, as `PACKED`.

    Raises:
        ResultError: if it cannot be read.
        DamagedResultError: if a file is damaged or missing.
    """
    files = {name: part_path(path, name, part) for name in TABLES}
    try:
        return {name: read_parquet(each) for name, each in files.items()}
    except PermissionError as error:
        raise ResultError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (OSError, ValueError) as error:
        raise DamagedResultError(
            f"a table in {path} is damaged: {error}; "
            f"hopscope runs repair {path} removes what cannot be read, and the same call then "
            "computes it again"
        ) from error
