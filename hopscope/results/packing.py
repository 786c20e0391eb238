"""Provides pack_run(), which makes a run small enough to be kept, and to go on from there."""

from __future__ import annotations

from pathlib import Path

from hopscope.errors import ResultError, path_of
from hopscope.files import replacing_folder, write_json
from hopscope.results.run_folder import (
    MACHINES,
    PACKED,
    PARTS,
    RECORD,
    TABLES,
    copy_inputs,
    is_of_run,
    joined,
    machines_of,
    parts_of,
    read_run,
    write_part,
)
from hopscope.results.runs import check_run


def pack_run(run: str | Path, into: str | Path) -> Path:
    """Write the finished parts of a run folder into another one, as one compressed file a table.

    What is packed can be loaded as any run folder, and a copy of it goes on when the same analysis
    is called with it as `out`: the record says how many rows each part had, so that they are taken
    apart again.

    Args:
        run: the run folder, which is left as it is.
        into: the packed run folder; one of the same run is replaced.

    Returns:
        The path of `into`.

    Raises:
        ResultError: If `run` is no run folder, or none of its parts is finished.
        TakenError: If `into` holds something else.
        PlaceError, WriteError: If `into` cannot be written.

    Example:
        >>> hs.pack_run("runs/mine", "kept/mine")  # doctest: +SKIP
    """
    source, into = path_of("run", run), path_of("into", into)
    record, parts = read_run(source), parts_of(source)
    if not parts:
        raise ResultError(f"{source} has no finished part yet: there is nothing to pack")
    check_run(into, record)
    sizes = [[part, *(len(tables[each]) for each in TABLES)] for part, tables in parts.items()]
    with replacing_folder(into, is_of_run) as temporary:
        tables = joined(list(parts.values()))
        write_part(temporary, PACKED, tables)
        copy_inputs(source, temporary)
        machines = {str(part): each for part, each in machines_of(source).items()}
        told = {MACHINES: machines} if machines else {}
        write_json(temporary / RECORD, {**record, PARTS: sizes, **told})
    return into
