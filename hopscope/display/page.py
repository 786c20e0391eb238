"""Provides interactive grids in an HTML page, which contains all data and needs no server."""

from __future__ import annotations

import html
import json
from dataclasses import replace

from hopscope.display.grid import Grid, Json, all_chosen, first_choice, key_of, slice_json, spec_of
from hopscope.display.static_files import static

MOST_BYTES = 2_000_000
"""The most bytes of slices of one grid in a page; further options are left out."""


def grid_html(grid: Grid, picture: str, *, heading: str = "", most_bytes: int = MOST_BYTES) -> str:
    """Return the HTML of a grid, for a page that ends with `page_script()`.

    Args:
        grid: the grid.
        picture: HTML to show where scripts do not run.
        heading: heading of the view; the title of the grid if empty.
        most_bytes: the most bytes of slices. Options of the first choice that do not fit are left
            out, except the first; the page then says how many are missing.
    """
    slices: dict[str, Json] = {}
    first, *others = grid.choices
    size = n_options = 0
    for option in first.options:
        chosen = list(all_chosen((replace(first, options=(option,)), *others)))
        of_option = {key_of(grid, each): slice_json(grid, each) for each in chosen}
        size += len(json.dumps(of_option))
        if size > most_bytes and n_options:
            break
        slices |= of_option
        n_options += 1
    spec = spec_of(grid)
    spec["title"] = heading or spec["title"]
    spec["choices"][0]["options"] = spec["choices"][0]["options"][:n_options]
    state = json.dumps({"spec": spec, "slices": slices, "chosen": first_choice(grid)})
    left_out = len(first.options) - n_options
    note = (
        f'<p class="note">{left_out} more of {html.escape(first.label)} are in the run folder, '
        "too many for this page.</p>"
        if left_out
        else ""
    )
    data = state.replace("<", "\\u003c")  # so that the JSON cannot close its script element
    return (
        f'<div>{picture}</div><script type="application/json" data-hopscope>{data}</script>{note}'
    )


def page_script() -> str:
    """Return the style and the script of all grids in a page, to be placed after the last grid."""
    script = "".join(map(static, ("dom.js", "grid.js", "page.js")))
    return f'<style>{static("view.css")}</style><script type="module">{script}</script>'
