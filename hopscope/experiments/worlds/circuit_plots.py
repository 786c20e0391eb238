"""Provides the picture of what the analyses read off worlds."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hopscope.plots.lines import share_axis
from hopscope.plots.style import GREY, MARKS, color_of_each, panels

SPLIT_LABELS = {
    "trained": "trained",
    "in_distribution": "held\nout",
    "first_hop_ood": "1st hop\nunseen",
    "second_hop_ood": "2nd hop\nunseen",
}
PATCH_LABELS = {"clean": "none", "none": "own", "other": "other's", "random": "random"}
Colors = Mapping[str, str]
"""The colour of each world."""


def circuit_figure(frame: pd.DataFrame) -> Figure:
    """Accuracy, back-patching, knock-out and the bridge's rank; a colour a world, a dot a seed.

    Args:
        frame: `Circuit.frame`.
    """
    worlds = list(dict.fromkeys(frame["world"]))
    colors = color_of_each(worlds)
    figure, grid = panels(2, 2, 4.2)
    axes = grid.flat
    accuracy_points(frame, colors, axes[0])
    patched_points(frame, colors, axes[1])
    knockout_lines(frame, colors, axes[2])
    bridge_lines(frame, colors, axes[3])
    handles = [
        Line2D([], [], marker=mark, ls="-", ms=4, color=color, label=world)
        for (world, color), mark in zip(colors.items(), cycle(MARKS), strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def accuracy_points(frame: pd.DataFrame, colors: Colors, ax: Axes) -> None:
    """Share of right answers in each split."""
    table = frame[frame["measure"] == "accuracy"]
    _points(table, "split", SPLIT_LABELS, colors, ax)
    ax.set(title="answers", ylabel="two-hop questions right")


def patched_points(frame: pd.DataFrame, colors: Colors, ax: Axes) -> None:
    """First-hop OOD before and after the patch that did best on the other half, with controls."""
    table = frame[(frame["measure"] == "patched") & (frame["split"] == "first_hop_ood")]
    _points(table, "control", PATCH_LABELS, colors, ax)
    ax.set(title="1st hop unseen, r1 back-patched", xlabel="state that is put in")


def knockout_lines(frame: pd.DataFrame, colors: Colors, ax: Axes) -> None:
    """Share that stays right without one edge in one block."""
    table = frame[frame["measure"] == "knockout"]
    _lines(table, "control", {"t2->t1": "-", "t2->e1": ":"}, colors, ax)
    ax.set(title="one edge knocked out", xlabel="block", ylabel="still right")
    _styles(ax, {"r2 → r1": "-", "r2 → entity": ":"})


def bridge_lines(frame: pd.DataFrame, colors: Colors, ax: Axes) -> None:
    """How well the bridge can be read at r1 after each block."""
    table = frame[frame["measure"] == "bridge"]
    _lines(table, "split", {"in_distribution": "-", "first_hop_ood": "--"}, colors, ax)
    ax.set(title="bridge read at r1", xlabel="after block", ylabel="mean reciprocal rank")
    _styles(ax, {"held out": "-", "1st hop unseen": "--"})


def _points(table: pd.DataFrame, by: str, labels: dict[str, str], colors: Colors, ax: Axes) -> None:
    """For each kind a column with a dot a seed and a bar at their mean, the worlds side by side."""
    there = [kind for kind in labels if kind in set(table[by])]
    for index, ((world, color), mark) in enumerate(zip(colors.items(), cycle(MARKS), strict=False)):
        shift = (index - (len(colors) - 1) / 2) * min(0.26, 0.8 / len(colors))
        for place, kind in enumerate(there):
            values = table[(table["world"] == world) & (table[by] == kind)]["value"].to_numpy()
            if not len(values):
                continue
            spread = place + shift + np.linspace(-0.05, 0.05, len(values))
            ax.plot(spread, values, mark, ms=3.5, color=color, mec="white", mew=0.4, zorder=3)
            at = place + shift
            ax.hlines(values.mean(), at - 0.11, at + 0.11, color=color, lw=2)
    ax.set_xticks(range(len(there)), [labels[kind] for kind in there])
    share_axis(ax)


def _lines(table: pd.DataFrame, by: str, styles: dict[str, str], colors: Colors, ax: Axes) -> None:
    """Lines over blocks: a thin one a seed, a thick one for their mean."""
    for (world, color), mark in zip(colors.items(), cycle(MARKS), strict=False):
        for kind, style in styles.items():
            own = table[(table["world"] == world) & (table[by] == kind)]
            if own.empty:
                continue
            wide = own.pivot_table(index="layer", columns="seed", values="value")
            ax.plot(wide.index, wide, ls=style, color=color, lw=0.7, alpha=0.45)
            ax.plot(wide.index, wide.mean(axis=1), ls=style, color=color, lw=2, marker=mark, ms=4)
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    share_axis(ax)


def _styles(ax: Axes, styles: dict[str, str]) -> None:
    handles = [Line2D([], [], color=GREY, ls=style, label=name) for name, style in styles.items()]
    ax.legend(handles=handles, loc="best")
