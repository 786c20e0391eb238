"""Tests of writing: a reader never finds half a file or folder, on however many hosts."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save_file

import hopscope
from hopscope import files
from hopscope.errors import HopscopeError, PlaceError, UsageError, WriteError
from hopscope.files import (
    check_place,
    clear_leftovers,
    filling_folder,
    make_folder,
    publish_folder,
    read_parquet,
    replacing,
    replacing_folder,
    temporary_folder,
    temporary_path,
    write_json,
    write_json_once,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_temporary_names_tell_host_process_and_differ() -> None:
    first, second = (temporary_path(Path("runs/run.json")) for _ in range(2))
    assert first != second
    assert first.parent == Path("runs")
    for part in (".run.json.", f".{os.getpid()}.", socket.gethostname()[:8]):
        assert part in first.name
    assert first.suffix == ".tmp"


def test_a_temporary_name_fits_where_the_name_itself_does(tmp_path: Path) -> None:
    path = tmp_path / ("東" * 84)
    write_text(path, "text")
    assert path.read_text("utf-8") == "text"
    assert names(tmp_path) == [path.name]


def test_replacing_puts_the_new_file_in_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["table"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["table"]


def test_text_and_json_are_utf_8_with_plain_line_breaks(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "São\nPaulo\r\n")
    assert (tmp_path / "text").read_bytes() == "São\nPaulo\r\n".encode()
    write_json(tmp_path / "json", {"b": "é", "a": 1})
    text = (tmp_path / "json").read_text("utf-8")
    assert text == '{\n  "a": 1,\n  "b": "é"\n}\n'
    assert json.loads(text) == {"a": 1, "b": "é"}


def test_replacing_folder_swaps_whole_folders(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    for content in ("first", "second"):
        with replacing_folder(path) as temporary:
            (temporary / content).write_text(content)
    assert names(path) == ["second"]
    assert names(path.parent) == ["run"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "old").touch()

    def failing() -> None:
        with replacing_folder(path) as temporary:
            (temporary / "new").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["run"]


def test_a_folder_that_cannot_be_published_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new = tmp_path / "run", tmp_path / "new"
    for folder, name in ((path, "old"), (new, "new")):
        folder.mkdir()
        (folder / name).touch()
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if source == new:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="disk full"):
        publish_folder(new, path)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["new", "run"]


def test_publishing_does_not_replace_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "old").touch()
    with temporary_folder(path) as temporary:
        (temporary / "new").touch()
        with pytest.raises(OSError, match="not empty"):
            publish_folder(temporary, path, replace=False)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["run"]


def test_filling_a_folder_moves_the_named_file_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, replace = [], os.replace

    def noting(source: Path, target: Path) -> None:
        moved.append(Path(target).name)
        replace(source, target)

    (tmp_path / "kept").touch()
    monkeypatch.setattr(os, "replace", noting)
    with filling_folder(tmp_path, last="b") as temporary:
        for name in ("c", "b", "a"):
            (temporary / name).write_text(name)
    assert moved == ["a", "c", "b"]
    assert names(tmp_path) == ["a", "b", "c", "kept"]


@pytest.fixture
def dead_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_by(path: Path, process: int, host: str | None = None, age: float = 0) -> Path:
    """What a killed writer of `path` has left."""
    name = temporary_path(path).name.replace(f".{os.getpid()}.", f".{process}.")
    left = path.with_name(name if host is None else name.replace(files.host_name(), host))
    left.write_text("half")
    os.utime(left, (time.time() - age,) * 2)
    return left


def test_what_dead_writers_left_is_cleared_and_of_living_ones_nothing(
    tmp_path: Path, dead_process: int
) -> None:
    path, day = tmp_path / "table", 24 * 60 * 60
    kept = [
        left_by(path, os.getpid()),
        left_by(path, os.getpid(), age=9 * day),
        left_by(path, 1, age=9 * day),
        left_by(path, dead_process, host="another-host"),
        left_by(path, dead_process, host="another-host", age=day - 100),
    ]
    for name in (".bashrc", ".table.tmp", ".nfs0000.1.tmp", "table.host.1.0a0b0c0d.tmp"):
        kept.append(tmp_path / name)
        kept[-1].write_text("mine")
    left_by(path, dead_process)
    left_by(path, dead_process, host="another-host", age=day + 100)
    folder = tmp_path / temporary_path(path).name.replace(f".{os.getpid()}.", f".{dead_process}.")
    folder.mkdir()
    (folder / "inside").touch()
    clear_leftovers(tmp_path)
    assert names(tmp_path) == sorted(each.name for each in kept)


def test_what_is_to_be_another_file_is_left_to_its_writer(
    tmp_path: Path, dead_process: int
) -> None:
    left = [left_by(tmp_path / name, dead_process) for name in ("run", "other")]
    with temporary_folder(tmp_path / "run"):
        assert [each.exists() for each in left] == [False, True]
    make_folder(tmp_path)
    assert names(tmp_path) == []


def test_a_folder_that_was_put_aside_is_put_back(tmp_path: Path, dead_process: int) -> None:
    name = temporary_path(tmp_path / "run").name.replace(f".{os.getpid()}.", f".{dead_process}.")
    aside = (tmp_path / name).with_suffix(".old")
    for content in ("first", "second"):
        aside.mkdir()
        (aside / content).touch()
        clear_leftovers(tmp_path)
    assert names(tmp_path / "run") == ["first"]
    assert names(tmp_path) == [aside.name, "run"]
    clear_leftovers(tmp_path, "run", is_own=lambda name: name == "first")
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["first", "second"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_one_message(tmp_path: Path, code: int) -> None:
    (tmp_path / "table").write_text("old")

    def full() -> None:
        with replacing(tmp_path / "table") as temporary:
            temporary.write_text("ne")
            raise OSError(code, "Error writing bytes to file")

    with pytest.raises(WriteError, match=rf"cannot write .*table: {os.strerror(code)}") as caught:
        full()
    assert isinstance(caught.value, HopscopeError)
    assert not isinstance(caught.value, UsageError)  # exit code 1
    assert (tmp_path / "table").read_text() == "old"
    assert names(tmp_path) == ["table"]


def test_a_failure_of_safetensors_is_the_same_message(tmp_path: Path) -> None:
    with (
        pytest.raises(HopscopeError, match=r"cannot write .*weights"),
        replacing(tmp_path / "weights") as temporary,
    ):
        save_file({"a": torch.zeros(1)}, temporary / "below" / "nothing")


def test_places_that_can_be_are_left_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in (".", "there", "new", "new/and/deep", "there/../other"):
        check_place(tmp_path / name)
    assert names(tmp_path) == ["there"]
    assert names(tmp_path / "there") == []


def test_places_that_cannot_be_are_a_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "file/below", "x" * 300, f"new/{'x' * 300}"):
        for make in (check_place, make_folder):
            if make is check_place or not name.startswith("new"):
                with pytest.raises(PlaceError, match=r"cannot write .*Choose another place"):
                    make(tmp_path / name)
    monkeypatch.setattr(os, "mkdir", lambda *_, **__: os.open("/proc/nothing/here", os.O_RDONLY))
    with pytest.raises(UsageError, match="No such file or directory"):
        check_place(tmp_path / "new")
    assert names(tmp_path) == ["file"]


def test_of_two_that_write_json_once_the_first_prevails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (1, 2):
        write_json_once(tmp_path / "run.json", {"a": content})
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}

    def unsupported(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", unsupported)
    write_json_once(tmp_path / "other.json", {"a": 3})
    assert json.loads((tmp_path / "other.json").read_text()) == {"a": 3}
    assert names(tmp_path) == ["other.json", "run.json"]


def test_arrow_opens_the_parquet_files_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that Python opened can abort the process as it ends, in a thread of Arrow's."""
    table = pd.DataFrame({"id": ["a"], "n": [1]})
    table.to_parquet(tmp_path / "part.parquet")
    read, sources = parquet.read_table, []

    def spied(source: object, *arguments: object, **options: object) -> object:
        sources.append(source)
        return read(source, *arguments, **options)

    monkeypatch.setattr(parquet, "read_table", spied)
    pd.testing.assert_frame_equal(read_parquet(tmp_path / "part.parquet"), table)
    assert isinstance(sources[0], pa.OSFile)


def test_no_parquet_file_is_read_in_another_way() -> None:
    code = Path(hopscope.__file__).parent.rglob("*.py")
    readers = [file.name for file in code if "pd.read_parquet(" in file.read_text("utf-8")]
    assert readers == ["files.py"]
