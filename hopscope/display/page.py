"""Provides views in an HTML page, which contains all data and needs no server and no kernel."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hopscope.display.grid import Grid, Json, all_chosen, first_choice, key_of, slice_json, spec_of
from hopscope.display.static_files import static
from hopscope.files import write_text

logger = logging.getLogger(__name__)

MOST_BYTES = 2_000_000
"""The most bytes of slices of one grid in a page of many; further options are left out."""
MOST_BYTES_ALONE = 50_000_000
"""The most bytes of slices of a grid that has a page of its own, which browsers still open."""


def view_html(kind: str, state: Json, picture: str) -> str:
    """Return the HTML of a view, for a page that ends with `page_script()`.

    Args:
        kind: the kind of view, as `page.js` calls it.
        state: the traits of its model.
        picture: HTML to show where scripts do not run.
    """
    data = json.dumps(state).replace("<", "\\u003c")  # the JSON cannot close its script element
    return (
        f'<div>{picture}</div><script type="application/json" data-hopscope="{kind}">{data}'
        "</script>"
    )


def grid_html(
    grid: Grid,
    picture: str,
    *,
    heading: str = "",
    chosen: Mapping[str, str] | None = None,
    most_bytes: int = MOST_BYTES,
) -> str:
    """Return the HTML of a grid, for a page that ends with `page_script()`.

    Args:
        grid: the grid.
        picture: HTML to show where scripts do not run.
        heading: heading of the view; the title of the grid if empty.
        chosen: the option of each choice that is shown first; the default ones if None.
        most_bytes: the most bytes of slices. Options of the first choice that do not fit are left
            out, except the one that is shown first; the page then says how many are missing.
    """
    spec, slices = spec_of(grid), dict[str, Json]()
    chosen = dict(chosen or first_choice(grid))
    left_out = 0
    if grid.choices:
        first, *others = grid.choices
        kept, size = set[str](), 0
        for option in sorted(first.options, key=lambda each: each.value != chosen[first.name]):
            combinations = all_chosen((replace(first, options=(option,)), *others))
            of_option = {key_of(grid, each): slice_json(grid, each) for each in combinations}
            size += len(json.dumps(of_option))
            if size > most_bytes and kept:
                break
            slices |= of_option
            kept.add(option.value)
        options = [each for each in spec["choices"][0]["options"] if each["value"] in kept]
        spec["choices"][0]["options"] = options
        left_out = len(first.options) - len(options)
    else:
        slices[key_of(grid, chosen)] = slice_json(grid, chosen)
    spec["title"] = heading or spec["title"]
    view = view_html("grid", {"spec": spec, "slices": slices, "chosen": chosen}, picture)
    if not left_out:
        return view
    note = f"{left_out} more of {first.label} are left out: too many for this page."
    logger.warning("%s: %s", spec["title"], note)
    return f'{view}<p class="note">{html.escape(note)}</p>'


def write_page(path: str | Path, title: str, view: str, made: Mapping[str, str]) -> Path:
    """Write a view as an HTML file that asks nothing outside and opens without a kernel.

    Scripts other than those of the views, and any request, are forbidden to the page by its content
    security policy.

    Args:
        path: the file, which is replaced if it is there; its folder must be there.
        title: title of the page.
        view: HTML of the view.
        made: how it was made: texts by their names.

    Returns:
        The path.

    Raises:
        PlaceError, WriteError: if it cannot be written.
    """
    path, script = Path(path), _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    told = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in made.items()
    )
    write_text(
        path,
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{static('page.css')}</style>\n</head>\n"
        f"<body>\n{view}\n<dl>{told}</dl>\n{page_script()}\n</body>\n</html>\n",
    )
    return path


def page_script() -> str:
    """Return the style and the script of all views in a page, to be placed after the last view."""
    return f'<style>{static("view.css")}</style><script type="module">{_script()}</script>'


def _script() -> str:
    scripts = ("dom.js", "grid.js", "explorer.js", "mask.js", "page.js")
    return "".join(map(static, scripts))
