"""Provides line plots over layers with interval bands, and the labels of their axes."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes

from hopscope.plots.style import GREY, axes_or_new, color_of_each, legend_below


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
    for edge in colors:
        rows = effect[(effect["edge"] == edge) & (effect["control"] == control)]
        layer_line(ax, rows, "effect", GREY, ":", None, mark=colors[edge])
    for edge, color in colors.items():
        rows = effect[(effect["edge"] == edge) & (effect["control"] == "none")]
        layer_line(ax, rows, "effect", color, "-", edge.replace("->", " → "))
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


def layer_line(
    ax: Axes,
    rows: pd.DataFrame,
    value: str,
    color: str,
    dash: str,
    label: str | None,
    mark: str | None = None,
) -> None:
    """Draw a line over layers with its interval as a band; dotted lines have no band.

    Args:
        ax: the axes to draw on.
        rows: columns `layer`, `low`, `high` and the one named by `value`.
        value: the column of the line.
        color: colour of the line and the band.
        dash: line style.
        label: label in the legend.
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
    if dash != ":":
        ax.fill_between(layers, low, high, color=color, alpha=0.12, lw=0)


def layer_axis(ax: Axes, x: str, y: str, title: str) -> None:
    """Label the axes of a plot over layers, with integer ticks for layers."""
    ax.set(xlabel=x, ylabel=y, title=title)
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))


def share_axis(ax: Axes, low: float = -0.02, high: float = 1.02) -> None:
    """Show shares from 0 to 1 in per cent on the y axis, which runs from `low` to `high`."""
    ax.set_ylim(low, high)
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
