"""Tests that the import contracts of pyproject.toml hold, and fail where one is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TURNED_ROUND = {
    "at the top": ("engine/sweep.py", "from hopscope.experiments.two_hop import grading\n"),
    "in a function": (
        "masks/named.py",
        "def leaky() -> None:\n    from hopscope.engine.sweep import sweep\n",
    ),
    "for types alone": (
        "results/result.py",
        "if TYPE_CHECKING:\n    from hopscope.study.report import write_report\n",
    ),
    "round in a room": ("engine/cache.py", "import hopscope.engine.attention\n"),
    "a room on no floor": ("attic/__init__.py", ""),
}


def contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    """Checks the contracts of pyproject.toml on the package in a folder."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(
        [*command, str(ROOT / "pyproject.toml")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package's code."""
    skip = shutil.ignore_patterns("data", "__pycache__", "*.js", "*.css", "*.html")
    return Path(shutil.copytree(ROOT / "hopscope", tmp_path / "hopscope", ignore=skip))


def test_imports_only_go_down(package: Path) -> None:
    done = contracts(package.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("name", TURNED_ROUND)
def test_an_import_that_goes_up_is_seen(name: str, package: Path) -> None:
    file, statement = TURNED_ROUND[name]
    path = package / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        handle.write(f"\n\n{statement}")
    done = contracts(package.parent)
    assert done.returncode != 0
    assert "BROKEN" in done.stdout or "attic" in done.stdout + done.stderr


def test_few_modules_stand_at_the_root() -> None:
    assert len(list((ROOT / "hopscope").glob("[!_]*.py"))) <= 7
