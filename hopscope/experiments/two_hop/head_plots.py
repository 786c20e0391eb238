"""Provides the pictures of what heads and rankings retrieve."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from hopscope.plots.lines import layer_axis, share_axis
from hopscope.plots.style import BLUE, GREY, axes_or_new, bars, errors_of, legend_below

CLUSTERS = {
    "none": (BLUE, "clusters (k-means of the unembedding)"),
    "shuffled": (GREY, "shuffled clusters"),
}


def class_bars(by_layer: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """The share of a layer's heads in each Hopfield class, stacked, the sharpest on top.

    Args:
        by_layer: `HeadRetrieval.by_layer()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.2)
    labels = {"I": "> 1/2", "II": "> 1/8", "III": "> 1/32", "IV": "≤ 1/32"}
    colors = sns.color_palette("mako_r", len(labels))
    bottom = np.zeros(len(by_layer))
    for color, (name, share) in zip(colors, labels.items(), strict=True):
        heights = by_layer[name].to_numpy()
        ax.bar(by_layer.index, heights, 0.92, bottom, color=color, label=f"{name} ({share})")
        bottom += heights
    layer_axis(ax, "layer", "heads", title)
    share_axis(ax)
    ax.set_xlim(by_layer.index.min() - 0.6, by_layer.index.max() + 0.6)
    legend_below(ax, title="class (share of the keys that are held)")
    return ax


def neighbour_points(accuracy: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """The share of right tokens among middle ranks inside and outside the top's clusters.

    Args:
        accuracy: `RankNeighbours.accuracy()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.2)
    for control, (color, label) in CLUSTERS.items():
        rows = accuracy[accuracy["control"] == control].sort_values("inside", ascending=False)
        places = (~rows["inside"].astype(bool)).astype(int) + (0.1 if control != "none" else -0.1)
        ax.errorbar(
            places,
            rows["accuracy"],
            errors_of(rows, "accuracy"),
            fmt="o" if control == "none" else "s",
            ms=4,
            color=color,
            label=label,
            capsize=2,
        )
    ax.set_xticks([0, 1], ["near a\ntop token", "elsewhere"])
    ax.set(xlim=(-0.5, 1.5), ylabel="right per middle rank", title=title)
    ax.set_ylim(bottom=-0.03 * ax.get_ylim()[1])
    legend_below(ax)
    return ax


def drawn_bars(drawn: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """The share of middle ranks that lie in a cluster of a top token, beside shuffled clusters.

    Args:
        drawn: `RankNeighbours.drawn()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.2)
    rows = drawn.set_index("control").reindex(list(CLUSTERS))
    colors = [color for color, _ in CLUSTERS.values()]
    bars(ax, range(len(rows)), rows, "share", 0.7, color=colors)
    ax.set_xticks(range(len(rows)), ["clusters", "shuffled"])
    ax.set(ylabel="middle ranks near the top", title=title)
    share_axis(ax)
    return ax
