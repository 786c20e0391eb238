"""Writes files and folders so that a reader never finds half of one.

Each file is written under a temporary name in the folder of its destination and then renamed, which
is atomic on one file system. The temporary name holds the host, the process and a random part, so
that several machines can write to a shared folder. What an interrupted write leaves behind begins
with a dot and ends in `.tmp`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_LONGEST_NAME = 120
"""Bytes of the destination's name that a temporary name repeats; file systems allow 255 in all."""


def temporary_path(path: Path) -> Path:
    """Return an unused path in the folder of `path`, unique across hosts and processes.

    Nothing is created. The name is `.NAME.HOST.PID.RANDOM.tmp`.

    Example:
        >>> temporary_path(Path("runs/run.json")).name.startswith(".run.json.")
        True
    """
    name = path.name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:32]
    return path.with_name(f".{name}.{host}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to `path` when the block ends.

    If the block raises, the temporary file is removed and `path` stays as it was. The folder of
    `path` must exist.

    Example:
        >>> with replacing(folder / "table.parquet") as temporary:  # doctest: +SKIP
        ...     table.to_parquet(temporary)
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, with line breaks as they are in `text`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV without its index; numbers have six digits, lines end in a line feed."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with sorted keys, indented by two spaces."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    write_text(path, text + "\n")


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path`, which is removed when the block ends.

    Missing parents of `path` are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, path: Path, *, replace: bool = True) -> None:
    """Rename a complete folder to `path`.

    Args:
        temporary: the complete folder, on the same file system as `path`.
        path: the destination.
        replace: whether to replace a folder that already stands at `path`. The old one is removed
            last, and put back if the new one cannot take its place.

    Raises:
        OSError: if `path` is a file; or if it is a folder with files in it and `replace` is False.
    """
    retired = temporary_path(path)
    if replace and path.is_dir():
        os.replace(path, retired)
    try:
        os.replace(temporary, path)
    except OSError:
        if retired.exists() and not path.exists():
            os.replace(retired, path)
        raise
    finally:
        shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder to fill, and rename it to `path` when the block ends.

    If the block raises, the temporary folder is removed and `path` stays as it was; otherwise the
    new folder takes the place of the old one. Missing parents of `path` are created.

    Raises:
        OSError: as `publish_folder`.

    Example:
        >>> with replacing_folder(Path("runs/grading")) as temporary:  # doctest: +SKIP
        ...     write_json(temporary / "run.json", run)
    """
    with temporary_folder(path) as temporary:
        yield temporary
        publish_folder(temporary, path)


@contextmanager
def filling_folder(folder: Path, last: str) -> Iterator[Path]:
    """Give an empty temporary folder, and move its files into `folder` when the block ends.

    Files of the same name are replaced one by one; others in `folder` are left alone. The file
    called `last` is moved last, so that where it exists the whole set is complete.

    Args:
        folder: the destination, which must exist.
        last: name of the file that marks the set as complete.
    """
    with temporary_folder(folder / last) as temporary:
        yield temporary
        for file in sorted(temporary.iterdir(), key=lambda each: (each.name == last, each.name)):
            os.replace(file, folder / file.name)
