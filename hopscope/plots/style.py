"""Provides the look that all pictures share: colours by meaning, sizes on the page.

Colours are those of Okabe and Ito, which can be told apart without colour vision. All controls have
the same grey; among themselves they differ in hatches, dashes or marks.
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
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.transforms import ScaledTranslation

COLUMN, PAGE = 3.5, 7.2
"""Widths of one and of two columns of a journal, in inches; text is drawn in its final size."""

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
PINK, ORANGE, SKY, BLACK = "#CC79A7", "#E69F00", "#56B4E9", "#222222"
GREY = "#8C8C8C"
"""Of every control, and of what is there to compare with."""
FAINT = "#E5E5E5"
"""Of the lines of a grid."""
TEXT = "#444444"
"""Of words and lines that explain a drawing."""
COLORS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, BLACK)
"""Of what has no colour of its own, in turn."""
HATCH = "/////"
"""Of bars of one control beside those of another."""


class Look(NamedTuple):
    """How one of several things that are compared is drawn.

    Attributes:
        label: in the legend.
        color: of lines; of the edges of bars.
        fill: of bars.
        dash: of lines.
        hatch: of bars.
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
"""What is put in by a patch: the query's own vector, or a control's."""

TEXT_SIZE = 7.0
"""Of legends and ticks in figures, in points."""
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
    """The context in which hopscope's figures are drawn; the same on every machine."""
    rc: dict[Any, Any] = {**mpl.rcParamsDefault, "backend": mpl.get_backend(), **STYLE}
    return mpl.rc_context(rc)


def panels(
    rows: int, columns: int, height: float, *, width: float = PAGE, **kwargs: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of several axes, as wide as a page or a column.

    Args:
        rows, columns: of axes.
        height: of the whole figure, in inches.
        width: `PAGE` or `COLUMN`. Both grow with the text of the style that holds now.
        **kwargs: passed on to `plt.subplots`.

    Returns:
        The figure and its axes, shape (rows, columns).
    """
    grown = text_size() / TEXT_SIZE
    size = width * grown, height * grown
    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **kwargs)


def axes_or_new(ax: Axes | None, height: float = 2.4, width: float = COLUMN) -> Axes:
    """Axes that were given, or those of a new figure."""
    if ax is None:
        ax = panels(1, 1, height, width=width)[1][0, 0]
    return ax


def text_size() -> float:
    """The size of the text of legends in the style that holds now, in points."""
    return FontProperties(size=mpl.rcParams["legend.fontsize"]).get_size_in_points()


def color_of_each(names: Any) -> dict[str, str]:
    """A colour for each different name, in the order in which they come."""
    found = dict.fromkeys(names)
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(found)}


def bar_look(look: Look) -> dict[str, Any]:
    """What `Axes.bar` takes for bars of a look."""
    edges = {"color": look.fill, "edgecolor": look.color, "hatch": look.hatch, "linewidth": 0.6}
    return {**edges, "label": look.label}


def errors_of(table: pd.DataFrame, value: str) -> np.ndarray:
    """Distances from the value down to `low` and up to `high`, shape (2, rows)."""
    below, above = table[value] - table["low"], table["high"] - table[value]
    errors: np.ndarray = np.nan_to_num(np.stack([below, above])).clip(min=0)
    return errors


def size_of(ax: Axes) -> tuple[float, float]:
    """Width and height of axes in inches, before the figure is laid out."""
    box, dpi = ax.get_window_extent(), ax.figure.dpi
    return box.width / dpi, box.height / dpi


ROOM = 1.4
"""The width that a legend may have, in widths of its axes before the figure is laid out."""


def legend_below(ax: Axes, gap: float = 0.36, **kwargs: Any) -> None:
    """A legend under the axes, where it hides nothing, in as many columns as there is room for.

    Args:
        ax: the axes.
        gap: for ticks and their labels, in inches of a figure in `figure_style`.
        **kwargs: passed on to `Axes.legend`.
    """
    given = kwargs.get("handles") or ax.get_legend_handles_labels()[0]
    longest = max((len(str(each.get_label())) for each in given), default=0)
    entry = (0.55 * longest + 3.5) * text_size() / 72
    rows = -(-len(given) // max(1, int(ROOM * size_of(ax)[0] / entry)))
    lower = ScaledTranslation(0, -gap * text_size() / TEXT_SIZE, ax.figure.dpi_scale_trans)
    ax.legend(
        ncols=-(-len(given) // max(1, rows)),
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=ax.transAxes + lower,
        **kwargs,
    )


def shared_legend(figure: Figure, axes: np.ndarray) -> None:
    """One legend under a figure for all that its axes show, in place of theirs."""
    handles: dict[str, Any] = {}
    for ax in axes.flat:
        handles |= {name: each for each, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    names = list(handles)
    figure.legend(handles.values(), names, loc="outside lower center", ncols=len(names))
