"""Provides what workers say of the parts of a run folder: which they compute, and which failed.

`.claim-PART` names the process that computes a part, and is touched while it does. `.failed-PART`
says why a part failed, and how often. A claim whose process is gone, or which nobody has touched
for `STALE` seconds, counts for nothing and is taken by whoever comes next.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hopscope.files import host_name, is_alive, temporary_path, write_json, writing

HEARTBEAT = 15.0
"""Seconds between two touches of a claim."""
STALE = 180.0
"""Seconds after which a claim of another host that was not touched is taken to be left behind;
more than file systems that are shared keep the times of files in mind."""
TRIES = 3
"""How often a part is tried before it is given up."""
_MARK = re.compile(r"\.(claim|failed)-([0-9]{6,})")


@dataclass(frozen=True)
class Failure:
    """A part that failed.

    Attributes:
        part: its number.
        error: what was raised last.
        times: how often it was tried.
    """

    part: int
    error: str
    times: int

    @property
    def is_final(self) -> bool:
        """Whether it is not tried again, unless it is asked for."""
        return self.times >= TRIES


@contextmanager
def claimed(folder: Path, part: int, *, force: bool = False) -> Iterator[bool]:
    """Claim a part while it is computed.

    Args:
        folder: the run folder, which must be there.
        part: its number.
        force: whether to take it from another process, too.

    Yields:
        Whether it is claimed; it is not if another process computes it.
    """
    path = _path(folder, "claim", part)
    own = json.dumps({"host": host_name(), "process": os.getpid(), "id": secrets.token_hex(4)})
    if not _take(path, own, force):
        yield False
        return
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    beating.start()
    try:
        yield True
    finally:
        ended.set()
        beating.join()
        with suppress(OSError):
            if path.read_text("utf-8") == own:
                path.unlink()


def _take(path: Path, own: str, force: bool) -> bool:
    """Whether a claim could be made."""
    with writing(path):
        for _ in range(2):
            try:
                file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                if not (force or _is_left(path)):
                    return False
                with suppress(FileNotFoundError):
                    aside = temporary_path(path)
                    os.replace(path, aside)
                    aside.unlink()
                continue
            with os.fdopen(file, "w", encoding="utf-8") as handle:
                handle.write(own)
            return True
    return False  # another process was faster


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(path)


def _is_left(path: Path) -> bool:
    """Whether nobody works under a claim any more."""
    try:
        touched = path.stat().st_mtime
        said = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # it is being written, or its writer was killed at that
        return _now(path.parent) - touched > STALE
    if isinstance(said, dict) and said.get("host") == host_name():
        return not is_alive(int(said.get("process", -1)))
    return _now(path.parent) - touched > STALE


def _now(folder: Path) -> float:
    """The time by the clock that gives files in a folder theirs, which may be another host's."""
    trial = temporary_path(folder / "clock")
    try:
        trial.touch()
        return trial.stat().st_mtime
    finally:
        trial.unlink(missing_ok=True)


def running(folder: Path) -> list[int]:
    """The parts that are being computed, ascending."""
    return [part for part, path in _marks(folder, "claim") if not _is_left(path)]


def clear_claim(folder: Path, part: int) -> None:
    """Remove the claim of a part that nobody computes."""
    _path(folder, "claim", part).unlink(missing_ok=True)


def clear_claims(folder: Path) -> None:
    """Remove the claims of processes that are gone."""
    for _, path in _marks(folder, "claim"):
        if _is_left(path):
            path.unlink(missing_ok=True)


def failures(folder: Path) -> list[Failure]:
    """The parts that failed, and were not finished since, ascending."""
    return [_read_failure(path, part) for part, path in _marks(folder, "failed")]


def failure_of(folder: Path, part: int) -> Failure | None:
    """How a part failed, if it did."""
    path = _path(folder, "failed", part)
    return _read_failure(path, part) if path.exists() else None


def note_failure(folder: Path, part: int, error: str) -> Failure:
    """Write down that a part failed once more."""
    before = failure_of(folder, part)
    failure = Failure(part, error, 1 if before is None else before.times + 1)
    write_json(_path(folder, "failed", part), {"error": error, "times": failure.times})
    return failure


def clear_failure(folder: Path, part: int) -> None:
    """Forget that a part failed."""
    _path(folder, "failed", part).unlink(missing_ok=True)


def clear_failures(folder: Path) -> list[Failure]:
    """Forget all failures, so that these parts are tried again; those that there were."""
    found = failures(folder)
    for each in found:
        clear_failure(folder, each.part)
    return found


def _read_failure(path: Path, part: int) -> Failure:
    said: Any = {}
    with suppress(OSError, ValueError):
        said = json.loads(path.read_text("utf-8"))
    return Failure(part, str(said.get("error", "unknown")), int(said.get("times", 1)))


def _path(folder: Path, kind: str, part: int) -> Path:
    return folder / f".{kind}-{part:06d}"


def _marks(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """The files of one kind with the parts that they are about, ascending."""
    try:
        found = [(_MARK.fullmatch(each.name), each) for each in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((int(name[2]), Path(each)) for name, each in found if name and name[1] == kind)
