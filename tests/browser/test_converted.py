"""Notebooks with views that nbconvert turned into pages: pictures, and no outside address."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExecutePreprocessor
from playwright.sync_api import Page, expect

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs" / "in_a_notebook.md"
CELLS = (
    """
import sys
sys.path.insert(0, {tests!r})
import hopscope  # first, so that torchao, which transformers loads, is quiet
from known import made_back_patching
from hopscope.display.front_end import ProgressBar
for _ in ProgressBar(range(3)):
    pass
result = made_back_patching({{("a", "t1", "none"): {{(1, 0)}}}}, [(1, 0), (2, 1)])
result
""",
    "view = result.view(); view",
)


def told_options() -> dict[str, str]:
    """The options of the command in the documentation by which a page asks nothing outside."""
    found = re.findall(r"--HTMLExporter\.(\w+)=(\S*)", DOCS.read_text("utf-8"))
    assert len(found) == 3
    return dict(found)


@pytest.mark.parametrize("with_state", [True, False])
def test_a_converted_notebook_shows_pictures(page: Page, with_state: bool, tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(each.format(tests=str(TESTS))) for each in CELLS]
    made = nbformat.v4.new_notebook(cells=cells)
    run = ExecutePreprocessor(store_widget_state=with_state, kernel_name="python3")
    run.preprocess(made, {"metadata": {"path": str(TESTS.parent)}})
    assert ("widgets" in made.metadata) == with_state
    for each in (output for cell in made.cells for output in cell.outputs):
        assert "://" not in str(each.data)
    text, _ = HTMLExporter(**told_options()).from_notebook_node(made)
    (tmp_path / "index.html").write_text(text, "utf-8")
    page.goto((tmp_path / "index.html").as_uri(), wait_until="networkidle")
    expect(page.locator(".jp-OutputArea-output").first).to_contain_text("100%")
    pictures = page.locator(".jp-OutputArea-output img")
    expect(pictures).to_have_count(2)
    for each in pictures.all():
        expect(each).to_be_visible()
        assert each.evaluate("(image) => image.complete && image.naturalWidth") > 300
