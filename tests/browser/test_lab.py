"""The widgets in a real JupyterLab and Notebook 7, with a kernel behind them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import (
    LAB,
    NOTEBOOK,
    output_of,
    run_cell,
    run_cell_until,
    save_and_open_again,
    wait_for_kernel,
)
from browser.contrast import hard_to_read, is_dark

RunNotebook = Callable[..., Page]
NAMES = {"bridge": "John Lennon", "answer": "Canada"}
"""The tokenizer of the tiny model tells both by a first token that is no space by itself."""
QUICK = "import torch; torch.set_num_threads(1); import hopscope as hs"
BACK_PATCH = f"""
{QUICK}
world = hs.load_world("two-hop-looped")
queries = world.queries("first_hop_ood").sample(6)
result = hs.back_patch(world.model, queries, positions=("t1",), progress=False)
result
"""


@pytest.mark.parametrize("place", [LAB, NOTEBOOK])
def test_a_result_shows_itself_and_the_kernel_sends_what_is_chosen(
    run_notebook: RunNotebook, place: str
) -> None:
    page = run_notebook(
        BACK_PATCH,
        "view = result.view(); view",
        "print('chosen', view.chosen['control'])",
        place=place,
    )
    shown = output_of(page, 0)
    expect(output_of(page, 2)).to_contain_text("chosen none")  # a cell that runs takes the focus
    expect(shown.locator(".hopscope-cell").first).to_be_visible()
    picture = shown.locator(".hopscope-plot svg").bounding_box()
    assert picture is not None
    for name in ("source layer (read)", "target layer (replaced)"):
        box = shown.locator(".hopscope-plot svg text", has_text=name).bounding_box()
        assert box is not None
        assert box["x"] >= picture["x"] - 1, "the axes' names are not cut"
        assert box["y"] >= picture["y"] - 1
        assert box["x"] + box["width"] <= picture["x"] + picture["width"] + 1
    shown.locator(".hopscope-plot").focus()
    page.keyboard.press("ArrowRight")
    expect(shown.locator(".hopscope-where")).to_contain_text("source layer (read) 1")
    query = shown.get_by_label("query")
    query.select_option(index=2)
    expect(shown.locator(".hopscope-readout")).to_contain_text("unpatched it says")
    expect(shown.locator(".hopscope-readout")).to_contain_text("P(bridge)")
    assert shown.locator("select").count() == 3  # one position only: no choice to make

    other = output_of(page, 1)
    other.get_by_label("state").select_option("random")
    expect(other.locator(".hopscope-cell").first).to_be_visible()
    expect(output_of(page, 2)).to_contain_text("chosen none")
    run_cell(page, 2)
    expect(output_of(page, 2)).to_contain_text("chosen random")


@pytest.mark.parametrize("place", [LAB, NOTEBOOK])
def test_a_mask_is_painted_and_asked_under(run_notebook: RunNotebook, place: str) -> None:
    page = run_notebook(
        f"""
{QUICK}
questions = hs.load_questions("world-docs", distractors=1).with_few_shot(0)
painter = hs.paint_mask(hs.load_model("tiny-random-llama"), questions)
painter
""",
        "print(painter.changed, painter.mask.name, len(painter.answers))",
        "if painter.answers: painter.heads = [1, 3]",
        place=place,
    )
    shown = output_of(page, 0)
    canvas = shown.locator("canvas")
    expect(canvas).to_be_visible()
    expect(output_of(page, 1)).to_contain_text("0 causal 0")
    box = canvas.bounding_box()
    assert box is not None
    width = box["width"]
    canvas.hover(position={"x": width * 0.05, "y": width * 0.9})
    page.mouse.down()
    page.mouse.move(box["x"] + width * 0.3, box["y"] + width * 0.9, steps=4)
    page.mouse.up()
    changed = shown.locator(".hopscope-readout dd").nth(1)
    expect(changed).not_to_have_text("0")
    n = changed.inner_text()
    shown.get_by_role("button", name="Ask under this mask").click()
    expect(shown.locator(".hopscope-answers")).to_contain_text(f"painted on causal ({n} changed)")
    expect(shown.locator(".hopscope-answers")).to_contain_text("expected answer: ")
    expect(shown.locator(".hopscope-prompt .hopscope-looks")).to_have_count(1)
    run_cell_until(page, 1, f"{n} painted on causal 1")
    first, last = (shown.get_by_label(label) for label in ("from layer", "to layer"))
    first.select_option("1")
    expect(last).to_have_value("3")
    run_cell_until(page, 1, "switched(painted on causal, layers 1,2,3, else causal)")
    last.select_option("0")
    expect(first).to_have_value("0")
    run_cell_until(page, 1, "layers 0, else causal")
    heads = shown.get_by_label("heads")
    heads.select_option("2")
    run_cell_until(page, 1, "switched(painted on causal, layers 0, heads 2, else causal)")
    run_cell(page, 2)
    expect(heads).to_have_value("1,3")
    heads.focus()
    page.keyboard.press("Home")
    expect(heads).to_have_value("")
    expect(heads).to_be_focused()
    part = shown.locator(".hopscope-parts div").nth(2).bounding_box()
    assert part is not None
    assert part["x"] + part["width"] <= box["x"], "names stand beside the mask"
    assert box["y"] < part["y"] < box["y"] + box["height"]

    shown.get_by_label("paint").select_option("block")
    canvas.click(position={"x": width * 0.05, "y": width * 0.95})
    expect(changed).not_to_have_text(n)
    shown.get_by_label("begin with").select_option("document_block")
    expect(changed).to_have_text("0")
    shown.get_by_label("paint").select_option("cell")
    canvas.focus()
    canvas.press("ArrowRight")
    canvas.press(" ")
    expect(changed).to_have_text("1")


def test_a_query_is_typed_and_explored(run_notebook: RunNotebook) -> None:
    page = run_notebook(
        f"""
{QUICK}
explorer = hs.explore(hs.load_model("tiny-random-llama"))
explorer
""",
        "print(type(explorer.result).__name__)",
    )
    shown = output_of(page, 0)
    text = shown.get_by_label("query", exact=True)
    expect(text).to_be_visible()
    text.fill("The spouse of the performer of Imagine is")
    text.press("Enter")
    expect(shown.locator(".hopscope-error")).to_contain_text("in brackets")
    text.fill("The spouse of [the performer of [Imagine]] is")
    for name, value in NAMES.items():
        shown.get_by_label(name, exact=True).fill(value)
    shown.get_by_role("button", name="Ask").click()
    expect(shown.locator(".hopscope-hops tr")).to_have_count(3)
    expect(shown.locator(".hopscope-tokens > .hopscope-e1")).to_contain_text("t1")
    expect(shown.locator(".hopscope-tokens")).to_contain_text("performer")
    expect(shown.locator(".hopscope-tokens .hopscope-hint")).to_contain_text("first hop")
    expect(shown.get_by_text("done; .result has the back-patching")).to_be_visible()
    patches = shown.locator(".hopscope-view").nth(2)
    patches.locator(".hopscope-cell").first.hover()
    expect(patches.locator(".hopscope-readout")).to_contain_text("says")
    run_cell(page, 1)
    expect(output_of(page, 1)).to_contain_text("BackPatching")

    found = shown.locator(".hopscope-stale")
    expect(found).to_have_count(0)
    text.fill("The spouse of the performer of Imagine is")
    expect(found).to_have_attribute(
        "title", "of the query “The spouse of [the performer of [Imagine]] is”"
    )
    expect(shown.get_by_role("button", name="Ask")).to_be_enabled()
    text.press("Enter")
    expect(shown.locator(".hopscope-error")).to_contain_text("in brackets")
    expect(shown.locator(".hopscope-hops tr, .hopscope-cell, .hopscope-token")).to_have_count(0)
    expect(found).to_have_count(0)


@pytest.mark.parametrize("place", [LAB, NOTEBOOK])
def test_a_notebook_that_is_opened_again_shows_its_views_or_pictures(
    run_notebook: RunNotebook, place: str
) -> None:
    page = run_notebook(
        BACK_PATCH.replace("progress=False", "progress=True"),
        "view = result.view(); view",
        """
questions = hs.load_questions("world-docs", distractors=1).with_few_shot(0)
painter = hs.paint_mask(hs.load_model("tiny-random-llama"), questions)
explorer = hs.explore(hs.load_model("tiny-random-llama"))
explorer
""",
        "painter",
        "painter",
        place=place,
    )
    for cell in (0, 1):
        expect(output_of(page, cell).locator(".hopscope-cell").first).to_be_visible()
    for cell in (3, 4):
        expect(output_of(page, cell).locator("canvas")).to_be_visible()
    text = output_of(page, 2).get_by_label("query", exact=True)
    text.fill("The spouse of [the performer of [Imagine]] is")
    for name, value in NAMES.items():
        output_of(page, 2).get_by_label(name, exact=True).fill(value)
    text.press("Enter")
    expect(output_of(page, 2).get_by_text("done; .result has the back-patching")).to_be_visible()
    expect(text).to_be_focused()
    page.wait_for_function(
        """() => window.jupyterapp.shell.currentWidget.content.widgets[2].model.outputs.get(0)
            .data['image/png'] !== undefined"""
    )
    expect(text).to_be_focused()

    save_and_open_again(page, end_kernel=False)
    output_of(page, 1).get_by_label("state").select_option("random")
    expect(output_of(page, 1).locator(".hopscope-cell").first).to_be_visible()
    expect(output_of(page, 2).locator(".hopscope-hops tr")).to_have_count(3)

    save_and_open_again(page, end_kernel=True)
    expect(output_of(page, 0).first).to_contain_text("100%")
    for cell in range(5):
        picture = output_of(page, cell).locator("img")
        expect(picture).to_be_visible()
        assert picture.evaluate("(image) => image.complete && image.naturalWidth") > 300
    expect(page.get_by_text("Error displaying widget")).to_have_count(0)
    expect(page.locator(".hopscope-view")).to_have_count(0)


def test_views_take_the_colours_of_the_theme(run_notebook: RunNotebook) -> None:
    page = run_notebook(
        BACK_PATCH,
        f"""
{QUICK}
painter = hs.paint_mask(
    hs.load_model("tiny-random-llama"),
    hs.load_questions("world-docs", distractors=1).with_few_shot(0),
)
painter.ask()
painter
""",
        """
explorer = hs.explore(hs.load_model("tiny-random-llama"))
explorer.ask("The spouse of [the performer of [Imagine]] is", "John Lennon", "Canada")
explorer
""",
    )
    output_of(page, 0).locator(".hopscope-cell").first.hover()
    expect(output_of(page, 2).locator(".hopscope-hops tr")).to_have_count(3)
    for theme, dark in (("JupyterLab Light", False), ("JupyterLab Dark", True)):
        page.evaluate(
            "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })",
            theme,
        )
        page.wait_for_function(
            "(light) => document.body.dataset.jpThemeLight === String(light)", arg=not dark
        )
        for cell in range(3):
            view = output_of(page, cell).locator(".hopscope-view").first
            expect(view).to_be_visible()
            assert is_dark(view) == dark
            assert not hard_to_read(view)


def test_a_sweep_that_is_stopped_says_what_is_there(run_notebook: RunNotebook) -> None:
    page = run_notebook(
        f"""
{QUICK}
world = hs.load_world("two-hop-looped")
queries = world.queries("first_hop_ood")
print("begins")
hs.back_patch(world.model, queries)
""",
        "print(hs.partial().n_queries, 'of', len(queries))",
        "print(hs.back_patch(world.model, queries.sample(2), progress=False).n_queries, 'more')",
    )
    shown = output_of(page, 0)
    expect(shown.filter(has_text=re.compile(r"[4-9](\.\d+)?/\d+ \[")).first).to_be_visible()
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    expect(shown.filter(has_text="hs.partial()").first).to_be_visible()
    expect(shown.filter(has_text="KeyboardInterrupt").first).to_be_visible()
    wait_for_kernel(page)
    run_cell(page, 1)
    expect(output_of(page, 1)).to_contain_text(re.compile(r"[1-9][0-9]* of [0-9]+"))
    run_cell(page, 2)
    expect(output_of(page, 2).filter(has_text="2 more")).to_be_visible()


def test_views_fit_into_a_narrow_window(run_notebook: RunNotebook) -> None:
    page = run_notebook(
        BACK_PATCH,
        f"""
{QUICK}
painter = hs.paint_mask(
    hs.load_model("tiny-random-llama"),
    hs.load_questions("world-docs", distractors=1).with_few_shot(0),
)
painter
""",
        "explorer = hs.explore(hs.load_model('tiny-random-llama'))\nexplorer",
        place=NOTEBOOK,
    )
    expect(output_of(page, 2).get_by_label("query", exact=True)).to_be_visible()
    page.set_viewport_size({"width": 640, "height": 800})
    for cell in range(3):
        view = output_of(page, cell).locator(".hopscope-view").first
        view.scroll_into_view_if_needed()
        expect(view).to_be_visible()
        box = view.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 640
        assert view.evaluate("(each) => each.scrollWidth <= each.clientWidth + 1")
