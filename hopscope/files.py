"""Writes files and folders so that a reader never finds half of one.

Each file is written under a temporary name in the folder of its destination and then renamed, which
is atomic on one file system. The temporary name holds the host, the process and a random part, so
that several machines can write to a shared folder. What a killed writer leaves behind begins with a
dot and ends in `.tmp`; whoever writes to the folder next removes it, if its writer is known to be
dead. What cannot be written raises a `WriteError`, or a `PlaceError` if another place would do.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hopscope.errors import PlaceError, WriteError
from hopscope.interrupts import interrupt_safe, uninterrupted

if TYPE_CHECKING:
    import pandas as pd

_LONGEST_NAME = 120
"""Bytes of the destination's name that a temporary name repeats; file systems allow 255 in all."""
_DAY = 24 * 60 * 60
"""Seconds after which an unfinished file of another host is taken to be left behind."""
_ATTEMPTS = 100
"""How often a folder is published while others publish theirs in the same place."""
_TEMPORARY = re.compile(r"\.(.+)\.([A-Za-z0-9-]+)\.([0-9]+)\.[0-9a-f]{8}\.(tmp|old)")
_OF_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ENOMEM, errno.EMFILE}
"""Errors that another place, or another call, would not avoid for sure."""


def temporary_path(path: Path) -> Path:
    """Return an unused path in the folder of `path`, unique across hosts and processes.

    Nothing is created. The name is `.NAME.HOST.PID.RANDOM.tmp`.

    Example:
        >>> temporary_path(Path("runs/run.json")).name.startswith(".run.json.")
        True
    """
    name = path.name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return path.with_name(f".{name}.{host_name()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@cache
def host_name() -> str:
    """The name of this host, and a digest of what tells its process ids from those of others.

    That is, on Linux, the id of the boot and the namespace of process ids, which two containers may
    not share although they have the same host name.
    """
    told = [socket.gethostname()]
    with suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii"))
        told.append(os.readlink("/proc/self/ns/pid"))
    name = re.sub(r"[^A-Za-z0-9-]", "-", told[0])[:32]
    return f"{name}-{hashlib.blake2b(repr(told).encode(), digest_size=4).hexdigest()}"


def is_temporary(name: str) -> bool:
    """Whether a file or folder is called as unfinished ones are."""
    return _TEMPORARY.fullmatch(name) is not None


def clear_leftovers(
    folder: Path, name: str | None = None, is_own: Callable[[str], bool] | None = None
) -> None:
    """Remove what dead writers left in a folder; never what one that lives may be writing.

    A writer is dead if its process is gone. That of another host is taken to be dead a day after
    its last write. A folder that was put aside for a new one which never came is put back.

    Args:
        folder: where to look; it may be missing.
        name: only what was to become, or was, the file or folder of this name.
        is_own: as for `publish_folder`.
    """
    with suppress(OSError):
        for entry in os.scandir(folder):
            found = _TEMPORARY.fullmatch(entry.name)
            if found is None or _may_write(entry, found[2], int(found[3])):
                continue
            path, target = Path(entry), folder / found[1]
            if found[4] == "old" and not target.exists():
                os.replace(path, target)
            elif name == found[1] or (name is None and found[4] == "tmp"):
                _remove(path, target, is_own)


def _may_write(entry: os.DirEntry[str], host: str, process: int) -> bool:
    """Whether the writer of an unfinished file may be at work."""
    if host != host_name():
        return time.time() - entry.stat(follow_symlinks=False).st_mtime < _DAY
    return is_alive(process)


def is_alive(process: int) -> bool:
    """Whether a process of this host runs; one that was killed and not yet buried does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # a process of another user
    with suppress(OSError):
        return not re.search(
            r"\) [ZX] ", Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
        )
    return True


def _remove(path: Path, new: Path, is_own: Callable[[str], bool] | None) -> None:
    """Remove a file or folder; of a folder, what is not its own is moved into a new one before."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    if is_own is not None and path.suffix == ".old":
        others = [each for each in sorted(path.iterdir()) if not is_own(each.name)]
        for each in others:
            if not os.path.lexists(new / each.name):
                _move_into(each, new)
    shutil.rmtree(path, ignore_errors=True)


def _move_into(entry: Path, folder: Path) -> None:
    """Move a file into a folder that others may just be replacing."""
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError):
            os.replace(entry, folder / entry.name)
            return
        time.sleep(0.001)
    raise PlaceError(f"{entry} cannot be moved into {folder}, which is not there any more")


def make_folder(path: Path) -> Path:
    """Make a folder to write in, with its parents, and clear it of what dead writers left.

    Returns:
        The folder.

    Raises:
        PlaceError: if there can be no such folder.
        WriteError: if the disk is full.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    return path


def check_place(path: Path) -> None:
    """Check that a folder can be made at `path`, or is there, and can be written to.

    A folder of that name is made for a moment under a temporary one, in the nearest folder that
    is there: what a place allows is not known otherwise. Nothing is left.

    Raises:
        PlaceError: if not.
        WriteError: if the disk is full.
    """
    with writing(path):
        there = path
        while not os.path.lexists(there) and there != there.parent:
            there = there.parent
        for folder in (there, path.parent):
            clear_leftovers(folder, "trial")
        trial = temporary_path(there / "trial")
        try:
            trial.mkdir()
            (trial / path.relative_to(there)).mkdir(parents=True, exist_ok=True)
        finally:
            shutil.rmtree(trial, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell what cannot be written in a block.

    Args:
        path: what is written, as the message calls it.

    Raises:
        PlaceError: if another place would do.
        WriteError: if the disk is full, or it fails.
    """
    try:
        yield
    except WriteError:
        raise
    except _write_errors() as error:
        number = getattr(error, "errno", None)
        told = str(error) if number is None else os.strerror(number)
        if number is None or number in _OF_MACHINE:
            raise WriteError(
                f"cannot write {path}: {told}. Free some space or mend the disk, and run the same "
                "again; what was finished before is kept"
            ) from error
        raise PlaceError(f"cannot write {path}: {told}. Choose another place") from error


def _write_errors() -> tuple[type[Exception], ...]:
    """The exceptions of a failed write; those of safetensors are no OSErrors."""
    safetensors = sys.modules.get("safetensors")
    return (OSError,) if safetensors is None else (OSError, safetensors.SafetensorError)


@interrupt_safe
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to `path` when the block ends.

    If the block raises, the temporary file is removed and `path` stays as it was. The folder of
    `path` must exist.

    Raises:
        PlaceError, WriteError: as `writing`.

    Example:
        >>> with replacing(folder / "table.parquet") as temporary:  # doctest: +SKIP
        ...     table.to_parquet(temporary)
    """
    temporary = temporary_path(path)
    with writing(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a parquet file.

    Arrow opens the file itself. Given a file that Python opened, as `pandas.read_parquet(path)`
    gives it, one of Arrow's threads may still hold it when the interpreter ends, and the process
    then sometimes aborts or never ends (apache/arrow#50482, #33975).

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it cannot be read as parquet.
    """
    import pandas as pd
    import pyarrow as pa  # type: ignore[import-untyped]

    with path.open("rb"):  # whose error names the file
        pass
    with pa.OSFile(os.fspath(path)) as file:
        return pd.read_parquet(file)


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
    write_text(path, _as_json(content))


@uninterrupted
def write_json_once(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file unless it is there; of several writers at once the first prevails."""
    with writing(path):
        temporary = temporary_path(path)
        try:
            temporary.write_text(_as_json(content), encoding="utf-8", newline="")
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@interrupt_safe
def temporary_folder(path: Path, is_own: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Give an empty temporary folder beside `path`, which is removed when the block ends.

    Missing parents of `path` are created, and what dead writers left beside it is removed.

    Args:
        path: what the folder is to become.
        is_own: as for `publish_folder`.

    Raises:
        PlaceError, WriteError: as `writing`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent, path.name, is_own)
        temporary = temporary_path(path)
        temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@uninterrupted
def publish_folder(
    temporary: Path,
    path: Path,
    *,
    replace: bool = True,
    is_own: Callable[[str], bool] | None = None,
) -> None:
    """Rename a complete folder to `path`. Of several at once, the last one stays.

    Args:
        temporary: the complete folder, on the same file system as `path`.
        path: the destination.
        replace: whether to replace a folder that already stands at `path`. The old one is put
            aside before and removed last, and put back if the new one cannot take its place.
        is_own: whether a file of the old folder may be removed, by its name; others are moved into
            the new one. All may if None.

    Raises:
        OSError: if `path` is a file; or if it is a folder with files in it and `replace` is False.
    """
    aside: list[Path] = []
    try:
        for attempt in range(_ATTEMPTS):
            if replace and path.is_dir():
                old = temporary_path(path).with_suffix(".old")
                with suppress(FileNotFoundError):  # another writer has just put it aside
                    os.replace(path, old)
                    aside.append(old)
            try:
                os.replace(temporary, path)
                break
            except OSError as error:  # another writer has just published its own
                again = replace and error.errno in (errno.ENOTEMPTY, errno.EEXIST)
                if not again or attempt == _ATTEMPTS - 1:
                    raise
    except OSError:
        if aside and not path.exists():
            os.replace(aside.pop(), path)
        raise
    finally:
        for old in aside:
            _remove(old, path, is_own)


@interrupt_safe
def replacing_folder(path: Path, is_own: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Give an empty temporary folder to fill, and rename it to `path` when the block ends.

    If the block raises, the temporary folder is removed and `path` stays as it was; otherwise the
    new folder takes the place of the old one. Missing parents of `path` are created.

    Args:
        path: the destination.
        is_own: as for `publish_folder`.

    Raises:
        PlaceError, WriteError: as `writing`.

    Example:
        >>> with replacing_folder(Path("runs/grading")) as temporary:  # doctest: +SKIP
        ...     write_json(temporary / "run.json", run)
    """
    with temporary_folder(path, is_own) as temporary:
        yield temporary
        with writing(path):
            publish_folder(temporary, path, is_own=is_own)


@interrupt_safe
def filling_folder(folder: Path, last: str) -> Iterator[Path]:
    """Give an empty temporary folder, and move its files into `folder` when the block ends.

    Files of the same name are replaced one by one; others in `folder` are left alone. The file
    called `last` is moved last, so that where it exists the whole set is complete.

    Args:
        folder: the destination, which must exist.
        last: name of the file that marks the set as complete.
    """
    with temporary_folder(folder / last) as temporary, writing(folder):
        yield temporary
        for file in sorted(temporary.iterdir(), key=lambda each: (each.name == last, each.name)):
            os.replace(file, folder / file.name)
