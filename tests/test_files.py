"""Tests of writing: a reader never finds half a file or folder, on however many hosts."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from hopscope.files import (
    filling_folder,
    publish_folder,
    replacing,
    replacing_folder,
    temporary_folder,
    temporary_path,
    write_json,
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
