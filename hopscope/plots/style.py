"""Provides the style that all figures share: colours by meaning, and sizes as on the page.

The colours are those of Okabe and Ito, which people with colour vision deficiency can distinguish.
All controls have the same grey, and differ from each other in hatches, dashes or markers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.transforms import ScaledTranslation

COLUMN, PAGE = 3.5, 7.2
"""Widths of one column and of a page of a journal, in inches; text has its final size."""

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
PINK, ORANGE, SKY, BLACK = "#CC79A7", "#E69F00", "#56B4E9", "#222222"
GREY = "#8C8C8C"
"""Colour of all controls and baselines."""
FAINT = "#E5E5E5"
"""Colour of grid lines."""
TEXT = "#444444"
"""Colour of annotations."""
COLORS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, BLACK)
"""Colours of other things, in this order."""
MARKS = "os^Dv*PX"
"""Marks of the same things, where colours alone would look alike in grey."""
HATCH = "/////"
"""Hatch that distinguishes the bars of one control from those of another."""


class Look(NamedTuple):
    """The look of one of several conditions in a figure.

    Attributes:
        label: label in the legend.
        color: colour of lines, and of the edges of bars.
        fill: colour of bars.
        dash: style of lines.
        hatch: hatch of bars.
    """

    label: str
    color: str
    fill: str
    dash: str = "-"
    hatch: str = ""


CONTROLS: Mapping[str, Look] = {
    "none": Look("own later state", BLUE, BLUE),
    "other": Look("another query's state", GREY, "white", "--", HATCH),
    "random": Look("random vector", GREY, GREY, ":"),
}
"""Looks by the source of the patched vector: the query itself (`none`), or a control."""

TEXT_SIZE = 7.0
"""Size of legends and tick labels, in points."""
ERROR_BARS: Mapping[str, Any] = {"elinewidth": 0.8, "capsize": 1.5, "ecolor": BLACK}
STYLE: Mapping[str, object] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": TEXT_SIZE,
    "ytick.labelsize": TEXT_SIZE,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": TEXT_SIZE,
    "legend.title_fontsize": TEXT_SIZE,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "figure.titlesize": 8.5,
    "hatch.linewidth": 0.7,
    "figure.dpi": 130,
    "savefig.dpi": 300,
    "svg.fonttype": "none",
    "svg.hashsalt": "hopscope",
    "font.family": "DejaVu Sans",
}


def figure_style() -> AbstractContextManager[None]:
    """Return the context in which figures are drawn, which is the same on every machine."""
    rc: dict[Any, Any] = {**mpl.rcParamsDefault, "backend": mpl.get_backend(), **STYLE}
    return mpl.rc_context(rc)


def panels(
    rows: int, columns: int, height: float, *, width: float = PAGE, **kwargs: Any
) -> tuple[Figure, np.ndarray]:
    """Create a figure with several axes, as wide as a page or a column.

    Args:
        rows, columns: numbers of axes.
        height: height of the figure, in inches.
        width: `PAGE` or `COLUMN`. Width and height scale with the text size of the current style.
        **kwargs: passed on to `plt.subplots`.

    Returns:
        The figure and its axes, shape (rows, columns).
    """
    factor = text_size() / TEXT_SIZE
    size = width * factor, height * factor
    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **kwargs)


def parts(rows: int, height: float, **kwargs: Any) -> tuple[Figure, list[SubFigure]]:
    """Create a figure as wide as a page, of parts below each other that have titles of their own.

    Args:
        rows: number of parts.
        height: height of the figure, in inches; sizes scale as in `panels`.
        **kwargs: passed on to `Figure.subfigures`.

    Returns:
        The figure and its parts.
    """
    factor = text_size() / TEXT_SIZE
    figure = plt.figure(figsize=(PAGE * factor, height * factor), layout="constrained")
    return figure, list(figure.subfigures(rows, 1, squeeze=False, **kwargs)[:, 0])


def axes_or_new(ax: Axes | None, height: float = 2.4, width: float = COLUMN) -> Axes:
    """Return the given axes, or those of a new figure if None; sizes are in inches."""
    if ax is None:
        ax = panels(1, 1, height, width=width)[1][0, 0]
    return ax


def text_size() -> float:
    """Return the size of legend text in the current style, in points."""
    return FontProperties(size=mpl.rcParams["legend.fontsize"]).get_size_in_points()


def color_of_each(names: Any) -> dict[str, str]:
    """Return a colour for each distinct name, in the order of first appearance."""
    distinct = dict.fromkeys(names)
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(distinct)}


def bar_look(look: Look) -> dict[str, Any]:
    """Return the arguments of `Axes.bar` for a look."""
    edges = {"color": look.fill, "edgecolor": look.color, "hatch": look.hatch, "linewidth": 0.6}
    return {**edges, "label": look.label}


def errors_of(table: pd.DataFrame, value: str) -> np.ndarray:
    """Return the distances from a value to its `low` and `high` for error bars, shape (2, row).

    They are NaN where there is no interval: then no bar is drawn, nor its caps.
    """
    below, above = table[value] - table["low"], table["high"] - table[value]
    errors: np.ndarray = np.stack([below, above]).astype(float).clip(min=0)
    return errors


def bars(ax: Axes, places: Any, rows: pd.DataFrame, value: str, width: float, **look: Any) -> None:
    """Draw bars with the intervals from `low` to `high`.

    Args:
        ax: where to draw.
        places: of the bars, one a row.
        rows: the numbers.
        value: the column of the bars' heights.
        width: of a bar.
        **look: further arguments of `Axes.bar`.
    """
    errors = errors_of(rows, value)
    ax.bar(places, rows[value], width, yerr=errors, error_kw=ERROR_BARS, **look)


def difference_mark(
    ax: Axes, place: float, row: Mapping[Any, Any], mark: str, color: str, *, across: bool = False
) -> None:
    """Draw a difference with its interval; the mark is filled if it is told apart from zero.

    Args:
        ax: where to draw.
        place: where on the other axis.
        row: `difference`, `low`, `high`, and `p_holm`, its corrected p value.
        mark: of matplotlib.
        color: of the mark and its interval.
        across: whether differences lie on the horizontal axis.
    """
    errors = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
    x, y = (row["difference"], place) if across else (place, row["difference"])
    ax.errorbar(
        [x],
        [y],
        xerr=errors if across else None,
        yerr=None if across else errors,
        fmt=mark,
        ms=4,
        mfc=color if row["p_holm"] < 0.05 else "white",
        color=color,
        **{**ERROR_BARS, "ecolor": color},
    )


def size_of(ax: Axes) -> tuple[float, float]:
    """Return width and height of axes in inches, before the layout of the figure."""
    box, dpi = ax.get_window_extent(), ax.figure.dpi
    return box.width / dpi, box.height / dpi


ROOM = 1.4
"""Largest width of a legend, relative to its axes before the layout of the figure."""


def legend_below(ax: Axes, gap: float = 0.36, **kwargs: Any) -> None:
    """Place a legend below the axes, in as many columns as fit.

    Args:
        ax: the axes.
        gap: space for ticks and their labels, in inches at the text size of `figure_style`.
        **kwargs: passed on to `Axes.legend`.
    """
    handles = kwargs.get("handles") or ax.get_legend_handles_labels()[0]
    longest = max((len(str(each.get_label())) for each in handles), default=0)
    entry = (0.55 * longest + 3.5) * text_size() / 72
    rows = -(-len(handles) // max(1, int(ROOM * size_of(ax)[0] / entry)))
    lower = ScaledTranslation(0, -gap * text_size() / TEXT_SIZE, ax.figure.dpi_scale_trans)
    ax.legend(
        ncols=-(-len(handles) // max(1, rows)),
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=ax.transAxes + lower,
        **kwargs,
    )


def shared_legend(figure: Figure, axes: np.ndarray) -> None:
    """Replace the legends of all axes by one legend below the figure."""
    handles: dict[str, Any] = {}
    for ax in axes.flat:
        handles |= {name: each for each, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    names = list(handles)
    figure.legend(handles.values(), names, loc="outside lower center", ncols=len(names))
