"""Tests of options that name a place to write: one that cannot be is told before anything else."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import hopscope.loading
import hopscope.worlds.train
from hopscope import cli
from hopscope.models import zoo

SCRIPTS = str(Path(__file__).parents[2] / "figures")
COMMANDS = {
    "back-patch": ["back-patch", "--model", "tiny-random-llama", "--out"],
    "permute": ["permute", "--model", "tiny-random-llama", "--out"],
    "grade": ["grade", "--model", "tiny-random-llama", "--out"],
    "probe": ["probe", "--model", "tiny-random-llama", "--save"],
    "study": ["study", "--model", "tiny-random-llama", "--out"],
    "figures": ["figures", "--model", "tiny-random-llama", "--scripts", SCRIPTS, "--rendered"],
    "figures --runs": ["figures", "--model", "tiny-random-llama", "--scripts", SCRIPTS, "--runs"],
    "worlds train": ["worlds", "train", "two-hop-looped", "--out"],
}
TOO_LONG = "x" * 300
PLACES = {
    "a file": ("file", "Not a directory|not a run folder|File exists"),
    "below a file": ("file/deep/run", "Not a directory"),
    "behind a dangling link": ("link/run", "No such file"),
    "a name that is too long": (f"{TOO_LONG}/run", "name too long"),
    "a folder that is read-only": ("kept/run", "Read-only"),
    "a read-only folder itself": ("kept", "Read-only|is a folder"),
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["hopscope", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with places that cannot be written to; nothing may be loaded or trained."""
    (tmp_path / "file").write_text("ten years of work")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "kept").mkdir()
    mkdir = os.mkdir

    def read_only(path: Any, *given: Any, **more: Any) -> None:
        if (tmp_path / "kept") in Path(path).parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        mkdir(path, *given, **more)

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("the place was not looked at first")

    monkeypatch.setattr(os, "mkdir", read_only)  # a user with all rights may write everywhere
    for name in ("load_model", "load_any"):
        monkeypatch.setattr(hopscope.loading, name, never)
    monkeypatch.setattr(hopscope.worlds.train, "_trained_model", never)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_is_told_before_anything(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    folder: Path,
    command: str,
    place: str,
) -> None:
    before = everything(folder)
    path, message = PLACES[place]
    if command == "probe":  # a file is written
        path = {"file": "file/probe", "kept": "kept/probe"}.get(path, path)
    assert run(monkeypatch, *COMMANDS[command], folder / path) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith(f"hopscope: {'' if 'run folder' in line else 'cannot write '}")
    assert any(part in line for part in message.split("|"))
    assert "hoose another place" in line
    assert everything(folder) == before


def test_a_cache_that_cannot_be_is_a_users_mistake(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path
) -> None:
    monkeypatch.setattr(zoo, "_only_one_process", None)
    for path in ("file", "file/deep", "kept/cache"):
        monkeypatch.setenv("HOPSCOPE_CACHE", str(folder / path))
        assert run(monkeypatch, "models", "pull", "smollm2-135m") == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "set HOPSCOPE_CACHE to another folder" in line


def test_places_that_are_only_read_need_not_be_writable(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path
) -> None:
    """Numbers are compared, or a picture drawn from runs, where nothing else can be written."""
    (folder / "kept" / "recall.csv").write_text("layer\n1\n")
    for more in (["--check"], []):
        place = folder / ("kept" if more else "pictures")
        arguments = ["figures", "recall", "--scripts", SCRIPTS, "--from", folder / "kept", *more]
        assert run(monkeypatch, *arguments, "--runs", folder / "kept", "--rendered", place) == 2
        assert "holds no result" in capfd.readouterr().err
