"""Provides run folders: one `run.json`, and a part of each table for each few queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from hopscope.errors import DamagedResultError, ResultError
from hopscope.files import replacing

Tables = dict[str, pd.DataFrame]
TABLES = ("frame", "details")


def read_run(path: Path) -> dict[str, Any]:
    """The `run.json` of a run folder."""
    try:
        run = json.loads((path / "run.json").read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ResultError(f"{path} is not a run folder: it has no run.json") from None
    except ValueError as error:
        raise DamagedResultError(f"{path / 'run.json'} is damaged: {error}") from None
    if not isinstance(run, dict):
        raise DamagedResultError(f"{path / 'run.json'} is damaged: it holds no object")
    return run


def is_run(path: Path) -> bool:
    """Whether a folder is a run folder."""
    return (path / "run.json").is_file()


def is_taken(path: Path, record: str) -> bool:
    """Whether a place holds anything but what a kill may have left before its record was there."""
    if not path.is_dir():
        return path.exists()
    return any(not file.name.startswith(f".{record}.") for file in path.iterdir())


def part_path(path: Path, table: str, part: int) -> Path:
    """Where a part of a table lies in a run folder."""
    return path / f"{table}-{part:06d}.parquet"


def write_part(path: Path, part: int, tables: Tables) -> None:
    """Write one part of each table; `frame` comes last, so that it stands for the whole part."""
    for table in sorted(tables, key=lambda name: name == "frame"):
        target = part_path(path, table, part)
        with replacing(target) as temporary:
            tables[table].to_parquet(temporary, index=False)


def read_parts(path: Path) -> Tables:
    """All parts of each table, in the order of the queries."""
    parts = sorted(int(file.stem.split("-")[1]) for file in path.glob("frame-*.parquet"))
    if not parts:
        raise ResultError(f"{path} has no finished part yet; run the experiment again to go on")
    tables = [_read_part(path, part) for part in parts]
    return {name: pd.concat([each[name] for each in tables], ignore_index=True) for name in TABLES}


def _read_part(path: Path, part: int) -> Tables:
    try:
        return {name: pd.read_parquet(part_path(path, name, part)) for name in TABLES}
    except (OSError, ValueError) as error:
        raise DamagedResultError(
            f"a table in {path} is damaged: {error}; "
            f"delete {' and '.join(part_path(path, name, part).name for name in TABLES)}, "
            "and run again"
        ) from error
