"""Grids in an HTML page, in a real browser: no kernel, no server, no outside address."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import jinja2
import pytest
from known import made_back_patching
from playwright.sync_api import Browser, Page, expect

from browser.contrast import hard_to_read, is_dark
from hopscope.display.page import grid_html, page_script
from hopscope.experiments.two_hop.back_patching import BackPatching
from hopscope.study.report import Section

ODD = "b<!--<script></script>"
"""What ends a script, or hides its end."""
CELLS = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]


@pytest.fixture(scope="module")
def result() -> BackPatching:
    hits = {
        (query, position, control): {(2, 1)} if (query, control) == ("a", "none") else set()
        for query in ("a", ODD)
        for position in ("t1", "t2")
        for control in ("none", "random")
    }
    return made_back_patching(hits, CELLS, {(2, 1): -0.1})


@pytest.fixture
def shown(page: Page, result: BackPatching, tmp_path: Path) -> Page:
    grid = result.grid()
    assert grid is not None
    text = grid_html(grid, "<p>a picture</p>") + page_script()
    (tmp_path / "index.html").write_text(f"<!doctype html><meta charset=utf-8>{text}", "utf-8")
    page.goto((tmp_path / "index.html").as_uri())
    expect(page.locator(".hopscope-cell")).to_have_count(len(CELLS))
    return page


def read(page: Page) -> dict[str, str]:
    """What is told of the cell, and beside it."""
    names = page.locator(".hopscope-readout dt").all_inner_texts()
    values = page.locator(".hopscope-readout dd").all_inner_texts()
    return dict(zip(names, (value.strip() for value in values), strict=True))


def test_the_picture_gives_way_to_the_grid(shown: Page) -> None:
    expect(shown.get_by_text("a picture")).to_have_count(0)
    expect(shown.locator("h2, .hopscope-title").first).to_contain_text("Back-patching: made-up")


def test_arrow_keys_reach_a_cell_and_the_mouse_another(shown: Page) -> None:
    plot = shown.locator(".hopscope-plot")
    plot.focus()
    where = shown.locator(".hopscope-where")
    for key, expected in (
        ("ArrowRight", "source layer (read) 1, target layer (replaced) 0"),
        ("ArrowRight", "source layer (read) 2, target layer (replaced) 0"),
        ("ArrowUp", "source layer (read) 2, target layer (replaced) 1"),
    ):
        plot.press(key)
        expect(where).to_have_text(expected)
    told = read(shown)
    assert told["queries answered"] == "50 %"
    assert told["answered"] == "a"
    assert told["P(answer)"] == "0.905"
    shown.locator("[data-column='2'][data-row='2']").hover()
    expect(where).to_have_text("source layer (read) 3, target layer (replaced) 2")
    assert read(shown)["queries answered"] == "0 %"


def test_a_query_a_control_and_a_measure_are_chosen(shown: Page) -> None:
    shown.get_by_label("query").select_option("a")
    shown.locator("[data-column='1'][data-row='1']").hover()
    told = read(shown)
    assert told["says"] == "a from 2 to 1"
    assert (told["answered"], told["rank of the answer, from 0"]) == ("yes", "0")
    assert told["unpatched it says"] == "before a"
    assert told["bridge"] == "bridge of a"
    expect(shown.locator("circle")).to_have_count(1)
    shown.get_by_label("state").select_option("random")
    expect(shown.locator("circle")).to_have_count(0)
    assert read(shown)["answered"] == "no"
    shown.get_by_label("shaded by").select_option("answer_rank")
    expect(shown.locator(".hopscope-scale")).to_contain_text("5")
    query = shown.get_by_label("query")
    query.select_option(ODD)
    assert read(shown)["says"] == f"{ODD} from 2 to 1"
    query.focus()
    query.press("ArrowUp")
    expect(query).to_be_focused()
    assert read(shown)["says"] == "a from 2 to 1"


def test_a_hit_can_be_told_without_colours(shown: Page) -> None:
    """The mark and the words say it; shades differ in lightness, too."""
    shown.get_by_label("query").select_option("a")
    hit, miss = (
        shown.locator(f"[data-column='{c}'][data-row='{r}']").get_attribute("fill")
        for c, r in ((1, 1), (2, 2))
    )

    def lightness(color: str | None) -> float:
        assert color is not None
        red, green, blue = map(int, color[4:-1].split(","))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert lightness(miss) - lightness(hit) > 100


def test_a_page_without_scripts_shows_the_picture(browser, result, tmp_path: Path) -> None:
    grid = result.grid()
    assert grid is not None
    (tmp_path / "index.html").write_text(grid_html(grid, "<p>a picture</p>") + page_script())
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    expect(page.get_by_text("a picture")).to_be_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_takes_the_colours_that_the_reader_prefers(
    browser: Browser, result: BackPatching, tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    grid = result.grid()
    assert grid is not None
    section = Section("patch", "A section", "What?", ["Found."], views=[grid_html(grid, "")])
    template = jinja2.Environment(loader=jinja2.PackageLoader("hopscope.study", ".")).get_template(
        "report.html.j2"
    )
    text = template.render(
        model="a model",
        queries="queries",
        subtitle="of four layers",
        sections=[{**vars(section), "tables": {"numbers": "<table><tr><td>1</td></tr></table>"}}],
        provenance={"model": "a model"},
        script=page_script(),
    )
    (tmp_path / "index.html").write_text(text, "utf-8")
    page = browser.new_context(color_scheme=scheme).new_page()
    page.goto((tmp_path / "index.html").as_uri())
    page.locator("summary").click()
    page.locator("[data-column='1'][data-row='1']").hover()
    for part in ("body", ".hopscope-view"):
        assert is_dark(page.locator(part)) == (scheme == "dark")
    assert not hard_to_read(page.locator("body"))
    page.context.close()
