"""Provides interactive grids in an HTML page: all slices inside, no server, no outside address."""

from __future__ import annotations

import html
import json
from dataclasses import replace

from hopscope.display.grid import Grid, Json, all_chosen, first_choice, key_of, slice_json, spec_of
from hopscope.display.static_files import static

MOST_BYTES = 2_000_000
"""Of the slices of one grid in a page; options that do not fit are left out, but for the first."""


def grid_html(grid: Grid, picture: str, *, heading: str = "", most_bytes: int = MOST_BYTES) -> str:
    """A grid as part of a page that ends in `page_script()`.

    Args:
        grid: what is shown.
        picture: HTML that stands in its place where scripts do not run.
        heading: of the view, if not the grid's own title.
        most_bytes: of its slices; options of the first choice that do not fit are left out, and
            the page says how many.
    """
    slices: dict[str, Json] = {}
    first, *others = grid.choices
    size = kept = 0
    for option in first.options:
        chosen = list(all_chosen((replace(first, options=(option,)), *others)))
        some = {key_of(grid, each): slice_json(grid, each) for each in chosen}
        size += len(json.dumps(some))
        if size > most_bytes and kept:
            break
        slices |= some
        kept += 1
    spec = spec_of(grid)
    spec["title"] = heading or spec["title"]
    spec["choices"][0]["options"] = spec["choices"][0]["options"][:kept]
    state = json.dumps({"spec": spec, "slices": slices, "chosen": first_choice(grid)})
    left_out = len(first.options) - kept
    note = (
        f'<p class="note">{left_out} more of {html.escape(first.label)} are in the run folder, '
        "too many for this page.</p>"
        if left_out
        else ""
    )
    data = state.replace("<", "\\u003c")  # JSON must neither end its script nor open a comment
    return (
        f'<div>{picture}</div><script type="application/json" data-hopscope>{data}</script>{note}'
    )


def page_script() -> str:
    """The style and the script of all grids in a page; it stands after the last."""
    script = "".join(map(static, ("dom.js", "grid.js", "page.js")))
    return f'<style>{static("view.css")}</style><script type="module">{script}</script>'
