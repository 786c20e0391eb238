"""Provides what a notebook shows of a result: a widget, and a picture where scripts do not run."""

from __future__ import annotations

import base64
import html
import inspect
import io
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from hopscope.display.grid import Grid
from hopscope.errors import HopscopeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hopscope.display.widgets import GridWidget

Bundle = Mapping[str, Any]
WIDGET = "application/vnd.jupyter.widget-view+json"


class Shown(Protocol):
    """What a notebook shows: a table that may have a grid of cells, and perhaps a `plot`."""

    @property
    def frame(self) -> pd.DataFrame: ...
    def grid(self) -> Grid | None: ...
    def view(self) -> GridWidget: ...


def in_notebook() -> bool:
    """Whether this runs in a kernel, so that there may be a page that shows widgets."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def bundle_of(result: Shown) -> Bundle:
    """What a notebook shows: the widget of a result that has a grid, and its picture.

    A front end takes the richest that it can show: JupyterLab the widget, GitHub and nbconvert the
    picture. A result without a picture shows the first rows of its table.
    """
    bundle: dict[str, Any] = {"text/plain": repr(result)}
    if in_notebook() and result.grid() is not None:
        data, _ = result.view()._repr_mimebundle_()
        bundle |= {key: data[key] for key in (WIDGET, "image/png") if key in data}
    elif (picture := picture_of(result)) is not None:
        bundle["image/png"] = picture
    if "image/png" not in bundle:
        table = result.frame.head(10).to_html(index=False)
        bundle["text/html"] = f"<p>{html.escape(repr(result))}</p>{table}"
    return bundle


def picture_of(result: Shown) -> str | None:
    """A result's picture as PNG in base64; None if it has none that needs no choice."""
    from matplotlib.figure import Figure

    from hopscope.plots.style import COLUMN, figure_style

    plot = getattr(result, "plot", None)
    if plot is None:
        return None
    needed = [
        each
        for each in inspect.signature(plot).parameters.values()
        if each.default is inspect.Parameter.empty
    ]
    if needed:
        return None
    with figure_style():
        try:
            if "ax" in inspect.signature(plot).parameters:
                figure = Figure(figsize=(COLUMN, 2.7), layout="constrained")
                plot(ax=figure.subplots())
            else:
                figure = plot()
        except HopscopeError:
            return None
        return png(figure)


def png(figure: Figure) -> str:
    """A figure as PNG in base64, as front ends take it."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=200, bbox_inches="tight")
    return base64.b64encode(image.getvalue()).decode()
