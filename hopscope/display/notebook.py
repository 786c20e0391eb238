"""Provides the notebook display of a result: a widget, and an image where widgets do not work."""

from __future__ import annotations

import base64
import html
import inspect
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from hopscope.display.front_end import in_notebook
from hopscope.display.grid import Grid
from hopscope.errors import HopscopeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hopscope.display.widgets import GridWidget

Bundle = Mapping[str, Any]


class Shown(Protocol):
    """A result as a notebook displays it: a table, possibly with a grid and a `plot` method."""

    @property
    def frame(self) -> pd.DataFrame: ...
    def grid(self) -> Grid | None: ...
    def view(self) -> GridWidget: ...


def bundle_of(result: Shown) -> Bundle:
    """Return the MIME bundle of a result: its view if it has a grid, its image, or its first rows.

    A front end shows the richest form that it supports: JupyterLab the view while there is a
    kernel, and the image in its place afterwards; GitHub and nbconvert the image.
    """
    bundle: dict[str, Any] = {"text/plain": repr(result)}
    if in_notebook() and result.grid() is not None:
        data, _ = result.view()._repr_mimebundle_()
        return {**data, **bundle}
    if (picture := picture_of(result)) is not None:
        return {**bundle, "image/png": picture}
    return {**bundle, "text/html": f"<p>{html.escape(repr(result))}</p>{_rows_of(result)}"}


def still_of(result: Shown, findings: Sequence[str]) -> str:
    """Return what a page shows of a result without cells: what was found, and its picture.

    Of one that has no picture, its first rows.
    """
    told = [repr(result), *findings]
    picture = picture_of(result)
    shown = (
        _rows_of(result)
        if picture is None
        else (f'<img alt="{html.escape(repr(result))}" src="data:image/png;base64,{picture}">')
    )
    return "".join(f"<p>{html.escape(each)}</p>" for each in told) + shown


def _rows_of(result: Shown) -> str:
    return result.frame.head(10).to_html(index=False)


def picture_of(result: Shown) -> str | None:
    """Return the plot of a result as PNG in base64; None without a plot that needs no arguments."""
    from matplotlib.figure import Figure

    from hopscope.plots.style import COLUMN, figure_style

    plot = getattr(result, "plot", None)
    if plot is None:
        return None
    parameters = inspect.signature(plot).parameters
    if any(each.default is inspect.Parameter.empty for each in parameters.values()):
        return None
    with figure_style():
        try:
            if "ax" in parameters:
                figure = Figure(figsize=(COLUMN, 2.7), layout="constrained")
                plot(ax=figure.subplots())
            else:
                figure = plot()
        except HopscopeError:
            return None
        return png(figure)


def png(figure: Figure) -> str:
    """Return a figure as PNG in base64, as in a MIME bundle."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=200, bbox_inches="tight")
    return base64.b64encode(image.getvalue()).decode()
