"""Provides pack(), which makes a run small enough to be kept; the run goes on where it was packed.

A packed run is a run folder with a single part that holds the rows of all others. Its record says
how many rows each part had, so that it can be taken apart again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hopscope.errors import DamagedResultError
from hopscope.files import replacing_folder, write_json
from hopscope.results.run_folder import (
    PARTS,
    RECORD,
    TABLES,
    finished_parts,
    is_of_run,
    is_run,
    read_part,
    read_parts,
    read_run,
    write_part,
)


def pack(run: Path, into: Path) -> Path:
    """Write the finished parts of a run folder into another one, as one compressed file a table.

    What is packed can be loaded as any run folder, and a copy of it goes on when the same analysis
    is called with it as `out`.

    Args:
        run: the run folder, which is left as it is.
        into: the packed run folder; one that is there is replaced.

    Returns:
        `into`.

    Raises:
        ResultError: If `run` is no run folder, or none of its parts is finished.
        PlaceError, WriteError: If `into` cannot be written.
    """
    record, tables = read_run(run), read_parts(run)
    sizes = record.get(PARTS) or [
        [part, *(len(read_part(run, part)[table]) for table in TABLES)]
        for part in finished_parts(run)
    ]
    with replacing_folder(into, is_of_run) as temporary:
        write_part(temporary, 0, tables, compression="zstd", compression_level=19)
        write_json(temporary / RECORD, {**record, PARTS: sizes})
    return into


def packed_parts(run: Path) -> set[int]:
    """The numbers of the parts that a packed run folder holds; none if a folder is not packed."""
    return {part for part, *_ in read_run(run).get(PARTS, [])} if is_run(run) else set()


def unpack(run: Path) -> None:
    """Take a packed run folder apart, in place.

    Raises:
        DamagedResultError: If its record does not fit its tables.
    """
    record, tables = read_run(run), read_parts(run)
    if PARTS not in record:  # another process was first
        return
    numbers, *lengths = zip(*record.pop(PARTS), strict=True)
    ends = {table: np.cumsum(each) for table, each in zip(TABLES, lengths, strict=True)}
    if any(ends[table][-1] != len(tables[table]) for table in TABLES):
        raise DamagedResultError(f"{run / RECORD} is damaged: it does not fit the tables beside it")
    with replacing_folder(run, is_of_run) as temporary:
        for index, part in enumerate(numbers):
            rows = {
                table: tables[table].iloc[ends[table][index] - each[index] : ends[table][index]]
                for table, each in zip(TABLES, lengths, strict=True)
            }
            write_part(temporary, part, rows)
        write_json(temporary / RECORD, record)
