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
from hopscope.documents.world_docs import world_docs
from hopscope.experiments.two_hop.back_patching import BackPatching
from hopscope.models.language_model import LanguageModel
from hopscope.queries.load import load_queries
from hopscope.study.report import Section, explained
from hopscope.views.mask_painter import paint_mask
from hopscope.views.prompt_explorer import explore

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
    environment = jinja2.Environment(loader=jinja2.PackageLoader("hopscope.study", "."))
    environment.filters["explained"] = explained
    text = environment.get_template("report.html.j2").render(
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


HARMFUL = "<img src=x onerror=document.title='ran'>"
"""A name that would run a script if it became HTML."""


@pytest.fixture
def file(tmp_path: Path) -> str:
    """The address of a result that was written as a file, with a name that is HTML."""
    hits = {
        (query, "t1", control): {(2, 1)} if (query, control) == ("a", "none") else set()
        for query in ("a", HARMFUL)
        for control in ("none", "random")
    }
    return made_back_patching(hits, CELLS).to_html(tmp_path / "found.html").as_uri()


def test_a_link_opens_the_query_and_the_cell(page: Page, file: str) -> None:
    page.goto(f"{file}#query=a&cell=2,1")
    where = page.locator(".hopscope-where")
    expect(where).to_have_text("source layer (read) 2, target layer (replaced) 1")
    expect(page.get_by_label("query")).to_have_value("a")
    assert read(page)["says"] == "a from 2 to 1"
    page.evaluate("location.hash = '#query=a&control=random&cell=3,0'")  # as one that is pasted
    expect(where).to_have_text("source layer (read) 3, target layer (replaced) 0")
    expect(page.get_by_label("state")).to_have_value("random")


def test_a_cell_that_is_clicked_is_in_the_address(page: Page, file: str) -> None:
    page.goto(file)
    page.locator("[data-column='1'][data-row='1']").hover()
    assert "#" not in page.url
    page.locator("[data-column='1'][data-row='1']").click()
    assert page.url.endswith("#query=*&position=t1&control=none&cell=2,1")
    page.get_by_label("query").select_option(HARMFUL)
    page.locator(".hopscope-plot").press("ArrowRight")
    assert page.url.endswith("&cell=3,1")
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    expect(page.get_by_label("query")).to_have_value(HARMFUL)
    expect(page.locator(".hopscope-where")).to_contain_text("source layer (read) 3, target")
    assert read(page)["says"] == f"{HARMFUL} from 3 to 1"
    expect(page.locator("img")).to_have_count(0)
    assert page.title() == "Back-patching: made-up on “by-hand”"


@pytest.mark.parametrize("lost", ["query=c&cell=2,1", "query=a&cell=9,1", "query=a&cell=x"])
def test_a_link_to_what_is_not_there_says_so(page: Page, file: str, lost: str) -> None:
    page.goto(f"{file}#{lost}")
    expect(page.locator(".hopscope-error")).to_contain_text("leads to what is not here")
    expect(page.locator(".hopscope-where")).to_have_count(0)
    expect(page.locator(".hopscope-cell").first).to_be_visible()


def test_a_name_can_run_nothing_even_as_html(page: Page, file: str) -> None:
    """The page's policy forbids what escaping would have missed."""
    page.goto(file)
    page.evaluate("(name) => { document.body.insertAdjacentHTML('beforeend', name) }", HARMFUL)
    page.wait_for_timeout(300)
    assert page.title() == "Back-patching: made-up on “by-hand”"


def test_one_of_several_grids_of_a_page_is_linked_to(
    page: Page, result: BackPatching, tmp_path: Path
) -> None:
    grid = result.grid()
    assert grid is not None
    text = "<h2 id=here>Here</h2>" + grid_html(grid, "") + grid_html(grid, "") + page_script()
    (tmp_path / "index.html").write_text(f"<!doctype html><meta charset=utf-8>{text}", "utf-8")
    page.goto((tmp_path / "index.html").as_uri() + "#here")  # the anchor of a heading
    views = page.locator(".hopscope-view")
    expect(page.locator(".hopscope-error, .hopscope-where")).to_have_count(0)
    views.nth(1).locator("[data-column='2'][data-row='0']").click()
    assert "#view=2&query=" in page.url
    page.reload()
    expect(views.nth(1).locator(".hopscope-where")).to_contain_text("source layer (read) 3")
    expect(views.nth(0).locator(".hopscope-where")).to_have_count(0)


EXPLORED = ("explored", "#view=lens&cell=1,2", "token sp, layer 2")
PAINTED = ("painted", "#cell=3,20", "sees")


@pytest.fixture(scope="module")
def written(llama: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what was explored and painted."""
    folder = tmp_path_factory.mktemp("written")
    explorer = explore(llama, load_queries("world", few_shot=0))
    explorer.ask("The spouse of [the performer of [Imagine]] is", "", "Tokyo")
    explorer.to_html(folder / "explored.html")
    painter = paint_mask(llama, world_docs(distractors=1))
    painter.ask()
    painter.to_html(folder / "painted.html")
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 640])
@pytest.mark.parametrize(("name", "link", "where"), [EXPLORED, PAINTED])
def test_what_was_explored_or_painted_opens_without_a_kernel(
    browser: Browser,
    written: Path,
    name: str,
    link: str,
    where: str,
    width: int,
    scheme: Literal["light", "dark"],
) -> None:
    view = {"width": width, "height": 900}
    page = browser.new_page(viewport=view, color_scheme=scheme)  # type: ignore[arg-type]
    errors = list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((written / f"{name}.html").as_uri() + link)
    told = page.locator(".hopscope-where").first
    expect(told).to_contain_text(where)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut"
    assert told.bounding_box()["y"] < 900, "what is pointed at stands above the fold"
    body = page.locator("body")
    assert is_dark(body) == (scheme == "dark")
    assert not hard_to_read(body)
    expect(page.get_by_role("button")).to_have_count(0)
    if name == "explored":
        plot, readout = (page.locator(f".hopscope-{part}").first for part in ("plot", "readout"))
        before = plot.bounding_box()
        page.locator(".hopscope-cell").nth(30).hover()
        assert plot.bounding_box() == before, "pointing moves nothing"
        place, beside = plot.bounding_box(), readout.bounding_box()
        if width == 1100:
            assert beside["x"] >= place["x"] + place["width"]
            assert abs(beside["y"] - place["y"]) < 40
        expect(page.locator(".hopscope-warnings")).to_contain_text("unchecked")
        marks = page.locator(".hopscope-hops tr").first.locator("td")
        expect(marks.nth(2)).to_have_text("")
        expect(marks.nth(3)).to_have_text("the model's own answer, unchecked")
    else:
        expect(page.locator(".hopscope-answers")).to_contain_text("expected answer: ")
        expect(page.locator(".hopscope-key-parts > div").last).to_have_text("question")
        expect(page.locator(".hopscope-readout")).to_contain_text("Edges are pairs of a token")
        before = page.locator(".hopscope-readout dd").first.inner_text()
        page.locator("canvas").click(position={"x": 12, "y": 200})
        assert "#cell=" in page.url
        assert page.locator(".hopscope-readout dd").first.inner_text() == before, "not painted"
    assert not errors
    page.context.close()
