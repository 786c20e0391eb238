"""Provides merge_runs(): the parts of one run from several folders in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hopscope.files import clear_leftovers, make_folder, write_json_once
from hopscope.results.run_folder import (
    MACHINES,
    PARTS,
    RECORD,
    copy_inputs,
    has_part,
    is_run,
    machines_of,
    packed_parts,
    parts_of,
    read_run,
    unpack,
    write_machine,
    write_part,
)
from hopscope.results.runs import check_run


def merge_runs(into: Path, runs: Sequence[Path]) -> int:
    """Write the parts of several folders of one run into another, which may have some already.

    Args:
        into: the run folder; it is made if it is not there.
        runs: the others, which are left as they are.

    Returns:
        How many parts were added.

    Raises:
        ResultError: if one of them is no run folder.
        TakenError: if one of them holds another run.
    """
    first = into if is_run(into) else runs[0]
    record = read_run(first)
    for name in (PARTS, MACHINES):
        record.pop(name, None)
    for each in runs:
        read_run(each)
        check_run(each, record)
    check_run(into, record)
    if not is_run(into):
        write_json_once(make_folder(into) / RECORD, record)
    clear_leftovers(into)
    if packed_parts(into):
        unpack(into)
    added = 0
    for each in runs:
        copy_inputs(each, into)
        machines = machines_of(each)
        for part, tables in parts_of(each).items():
            if not has_part(into, part):
                if part in machines:
                    write_machine(into, part, machines[part])
                write_part(into, part, tables)
                added += 1
    return added
