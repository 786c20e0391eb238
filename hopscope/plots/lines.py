"""Provides line plots over layers with interval bands, and the labels of their axes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D

from hopscope.plots.style import BLACK, FAINT, GREY, axes_or_new, color_of_each, legend_below

BAND: Literal["band"] = "band"
MOST = 6
"""Layers with whiskers, at most."""


class Whiskers(NamedTuple):
    """Intervals as whiskers at some layers.

    Attributes:
        which: of the lines on the same axes, from 0; each has whiskers at other layers.
        number: of these lines.
    """

    which: int = 0
    number: int = 1

    def some(self, n_layers: int) -> slice:
        """Return which layers have whiskers."""
        step = max(self.number, -(-n_layers // MOST))
        return slice(step * (2 * self.which + 1) // (2 * self.number), None, step)


Interval = Literal["band"] | Whiskers | None
"""How the interval of a line is drawn; None if it is not."""


def lone_band(number: int) -> list[Interval]:
    """Return how the intervals of lines on the same axes are drawn: as a band if there is one."""
    return [BAND] if number == 1 else [Whiskers(index, number) for index in range(number)]


def edge_lines(ax: Axes, effect: pd.DataFrame, control: str, label: str) -> None:
    """Draw the effect of each knocked-out edge over layers, with its control.

    An edge has a coloured line; its control is dotted in grey, with markers in the edge's colour.

    Args:
        ax: the axes to draw on.
        effect: columns `edge`, `control`, `layer`, `effect`, `low` and `high`.
        control: the value of `control` to draw besides `none`.
        label: label of the control in the legend.
    """
    colors = color_of_each(effect["edge"])
    intervals = lone_band(len(colors))
    for edge in colors:
        rows = effect[(effect["edge"] == edge) & (effect["control"] == control)]
        layer_line(ax, rows, "effect", GREY, ":", None, None, mark=colors[edge])
    for (edge, color), interval in zip(colors.items(), intervals, strict=True):
        rows = effect[(effect["edge"] == edge) & (effect["control"] == "none")]
        layer_line(ax, rows, "effect", color, "-", edge.replace("->", " → "), interval)
    if (effect["control"] == control).any():
        ax.plot([], [], ":", color=GREY, marker="o", ms=2.2, mfc="none", label=label)


def edge_effects(
    effect: pd.DataFrame, ax: Axes | None, title: str, control: str, label: str, measure: str
) -> Axes:
    """Draw `edge_lines` on labelled axes.

    Args:
        effect, control, label: as of `edge_lines`.
        ax: where to draw.
        title: of the axes.
        measure: what the effect is, for the axis; it is a share unless that ends in `nats`.
    """
    ax = axes_or_new(ax, 2.6)
    edge_lines(ax, effect, control, label)
    layer_axis(ax, "layer (middle of the window)", measure, title)
    if not measure.endswith("nats"):
        share_axis(ax)
    legend_below(ax)
    return ax


OWN_EDGE = "this edge blocked"
"""Label of the line of an edge, where it has axes of its own."""


def edge_panels(
    figure: FigureBase,
    effects: Mapping[str, pd.DataFrame],
    labels: Mapping[str, str],
    control: str,
    label: str,
) -> np.ndarray:
    """Draw the effect of each knocked-out edge beside its own control, in axes of its own.

    The interval of the effect is a band, that of its control whiskers.

    Args:
        figure: the figure, or the part of one, that gets the axes.
        effects: of each measure, columns `edge`, `control`, `layer`, `n`, `effect`, `low` and
            `high`.
        labels: label of the y axis, by measure; it is a share unless that ends in `nats`.
        control: the value of `control` to draw besides `none`.
        label: label of the control in `edge_legend`.

    Returns:
        The axes, shape (measure, edge). Rows share the y axis.
    """
    first = next(iter(effects.values()))
    colors, queries = color_of_each(first["edge"]), first.groupby("edge")["n"].max()
    shape = len(effects), len(colors)
    axes: np.ndarray = figure.subplots(*shape, sharex=True, sharey="row", squeeze=False)
    for row, (measure, effect) in zip(axes, effects.items(), strict=True):
        for ax, (edge, color) in zip(row, colors.items(), strict=True):
            rows = effect[effect["edge"] == edge]
            ax.axhline(0, color=FAINT, lw=0.6, zorder=0)
            beside = rows[rows["control"] == control]
            layer_line(ax, beside, "effect", GREY, "--", label, Whiskers())
            layer_line(ax, rows[rows["control"] == "none"], "effect", color, "-", OWN_EDGE)
            ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
        row[0].set_ylabel(textwrap.fill(labels[measure], 19))
        if not labels[measure].endswith("nats"):
            share_axis(row[0])
    space = " " if len(colors) <= 4 else "\n"
    for ax, edge in zip(axes[0], colors, strict=True):
        ax.set_title(f"{edge.replace('->', ' → ')}{space}(n = {queries[edge]})")
    figure.supxlabel("layer (middle of the window)", fontsize=mpl.rcParams["axes.labelsize"])
    return axes


def edge_legend(figure: Figure) -> None:
    """Explain the lines of `edge_panels` below a figure."""
    found = {name for ax in figure.axes for name in ax.get_legend_handles_labels()[1]}
    names = [OWN_EDGE, *sorted(found - {OWN_EDGE})]
    own = Line2D([], [], color=BLACK, lw=1.2)
    controls = [Line2D([], [], color=GREY, ls="--", lw=1.2) for _ in names[1:]]
    figure.legend([own, *controls], names, loc="outside lower center", ncols=len(names))


def layer_line(
    ax: Axes,
    rows: pd.DataFrame,
    value: str,
    color: str,
    dash: str,
    label: str | None,
    interval: Interval = BAND,
    *,
    mark: str | None = None,
) -> None:
    """Draw a line over layers with its interval.

    Args:
        ax: the axes to draw on.
        rows: columns `layer`, `low`, `high` and the one named by `value`.
        value: the column of the line.
        color: colour of the line and the band.
        dash: line style.
        label: label in the legend.
        interval: how the interval is drawn. Of several lines on the same axes one at most has a
            band, so that none lies on another.
        mark: colour of the markers; None for no markers.
    """
    if rows.empty:
        return
    layers, middle, low, high = (
        rows[name].to_numpy(dtype=float) for name in ("layer", value, "low", "high")
    )
    marks: dict[str, Any] = {}
    if mark is not None:
        every = max(1, len(layers) // 10)
        marks = {"marker": "o", "ms": 2.2, "mfc": mark, "mec": mark, "markevery": every}
    ax.plot(layers, middle, dash, color=color, lw=1.2, label=label, **marks)
    if interval == BAND:
        ax.fill_between(layers, low, high, color=color, alpha=0.15, lw=0)
    elif interval is not None:
        some = interval.some(len(layers))
        ax.vlines(layers[some], low[some], high[some], color=color, lw=0.7)


def layer_axis(ax: Axes, x: str, y: str, title: str) -> None:
    """Label the axes of a plot over layers, with integer ticks for layers."""
    ax.set(xlabel=x, ylabel=y, title=title)
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))


def share_axis(ax: Axes, axis: Literal["x", "y"] = "y") -> None:
    """Show shares in per cent on an axis from 0 to 100 %, wider where what is drawn goes further.

    There is some room beyond both ends, so that the ends of intervals are seen. Call it when all is
    drawn, also on axes that share this one.
    """
    both = ax.get_shared_x_axes() if axis == "x" else ax.get_shared_y_axes()
    drawn = [getattr(each.dataLim, f"interval{axis}") for each in both.get_siblings(ax)]
    low, high = min(0.0, *(each[0] for each in drawn)), max(1.0, *(each[1] for each in drawn))
    margin = 0.03 * (high - low)
    ax.set(**{f"{axis}lim": (low - margin, high + margin)})
    getattr(ax, f"{axis}axis").set_major_formatter(mpl.ticker.PercentFormatter(1.0))
