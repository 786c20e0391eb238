"""Tests of the notebooks' form: paired with their scripts, and with parameters for papermill.

That they run is tested by nbmake (`make test`).
"""

from __future__ import annotations

import ast
from pathlib import Path

import jupytext
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
ids = [path.stem for path in NOTEBOOKS]


def cells(path: Path) -> list[nbformat.NotebookNode]:
    return list(nbformat.read(path, as_version=4).cells)


def parameters(path: Path) -> dict[str, object]:
    """The names that the tagged cell gives values to."""
    (tagged,) = [cell for cell in cells(path) if "parameters" in cell.metadata.get("tags", [])]
    found: dict[str, object] = {}
    for line in ast.parse(tagged.source).body:
        assert isinstance(line, ast.Assign)
        (target,) = line.targets
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        values = line.value.elts if isinstance(target, ast.Tuple) else [line.value]  # type: ignore[attr-defined]
        for name, value in zip(names, values, strict=True):
            assert isinstance(name, ast.Name)
            found[name.id] = ast.literal_eval(value)
    return found


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 7


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_says_what_its_script_says(path: Path) -> None:
    script = jupytext.read(path.with_suffix(".py"))
    said = [(cell.cell_type, cell.source) for cell in cells(path)]
    assert said == [(cell.cell_type, cell.source) for cell in script.cells]


def names(path: Path, context: type[ast.expr_context]) -> list[str]:
    """The names that the code reads or sets."""
    code = [ast.parse(cell.source) for cell in cells(path) if cell.cell_type == "code"]
    found = [node for tree in code for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return [node.id for node in found if isinstance(node.ctx, context)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_every_parameter_is_used_and_set_once(path: Path) -> None:
    read, stored = names(path, ast.Load), names(path, ast.Store)
    assert parameters(path)
    for name in parameters(path):
        assert name in read
        assert stored.count(name) == 1, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_every_code_cell_has_run_in_order(path: Path) -> None:
    counts = [cell.execution_count for cell in cells(path) if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
