"""Provides the pictures of searches through graphs: what is computed, and what thoughts hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hopscope.plots.lines import layer_axis, share_axis
from hopscope.plots.style import (
    BLUE,
    GREY,
    PAGE,
    SKY,
    VERMILION,
    axes_or_new,
    color_of_each,
    errors_of,
    panels,
)

EXPLAINED, UNEXPLAINED = BLUE, VERMILION
VERTEX_COLORS = {
    "optimal": VERMILION,
    "frontier": BLUE,
    "reachable": SKY,
    "unreachable": GREY,
}
VERTEX_LABELS = {
    "optimal": "on the way",
    "frontier": "reached at this step",
    "reachable": "reached before",
    "unreachable": "not reached",
}
MEASURE_LABELS = {
    "product": "logit of the vertex",
    "attention": "attention to its edges",
}


def operations(
    table: pd.DataFrame, details: pd.Series, n_layers: int, ax: Axes | None = None
) -> Axes:
    """The operations of one prompt over layers and tokens, from the embeddings up.

    Args:
        table: its rows of `ComputationGraph.frame`.
        details: its row of `ComputationGraph.details`.
        n_layers: of the model.
        ax: where to draw.
    """
    tokens = str(details["tokens"]).split(" ")
    ax = axes_or_new(ax, 2.6, PAGE)
    used: dict[int, int] = {}
    columns = ["layer", "from_token", "to_token", "explained", "words"]
    for layer, source, to, explained, words in table[columns].itertuples(index=False, name=None):
        ax.plot(
            [source, to],
            [layer, layer + 1],
            color=EXPLAINED if explained else UNEXPLAINED,
            ls="-" if words else ":",
            lw=1.1,
            marker="o",
            ms=2.5,
        )
        used[source] = min(used.get(source, n_layers), layer)
        used.setdefault(to, layer + 1)
    for token, first in used.items():
        ax.plot([token, token], [0, n_layers], color=GREY, lw=0.5, zorder=0)
        ax.plot(token, first, ".", color=GREY, ms=2, zorder=0)
    ax.set_xticks(range(len(tokens)), tokens, rotation=90)
    for place, label in enumerate(ax.get_xticklabels()):
        label.set_color("black" if place in used else "#A8A8A8")
    ax.set_yticks(range(n_layers + 1), ["embedding", *range(n_layers)])
    ax.set(ylabel="after block", xlim=(-0.7, len(tokens) - 0.3))
    handles = [
        Line2D([], [], color=EXPLAINED, label="explained"),
        Line2D([], [], color=UNEXPLAINED, label="not explained"),
        Line2D([], [], color="black", label="depends on words"),
        Line2D([], [], color="black", ls=":", label="on places alone"),
    ]
    ax.legend(handles=handles, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return ax


def explained_lines(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The share of right and of explained prompts by lookahead, for each model.

    Args:
        table: rows of `ComputationGraph.explained()`, with a column `model`; the first is the
            trained one.
        ax: where to draw.
    """
    ax = axes_or_new(ax, 2.4)
    colors = color_of_each(table["model"]) | {"untrained": GREY}
    for model, rows in table.groupby("model", sort=False):
        color = colors[str(model)]
        ax.plot(rows["group"], rows["correct"], color=color, ls="--", lw=1.2)
        ax.plot(rows["group"], rows["other"], color=color, ls=":", lw=1.2)
        errors = errors_of(rows, "explained")
        ax.errorbar(
            rows["group"], rows["explained"], errors, color=color, marker="o", ms=4, label=model
        )
    layer_axis(ax, "lookahead", "prompts", "")
    share_axis(ax)
    handles, _ = ax.get_legend_handles_labels()
    styles = [
        Line2D([], [], color="black", marker="o", ms=4, label="explained"),
        Line2D([], [], color="black", ls="--", label="right"),
        Line2D([], [], color="black", ls=":", label="wrong end joined"),
    ]
    ax.legend(handles=[*handles, *styles], loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return ax


def superposition_figure(summary: pd.DataFrame) -> Figure:
    """What each world points to (left) and attends to (right) at its thoughts' own tokens.

    Args:
        summary: `Superposition.summary()`.
    """
    worlds = list(dict.fromkeys(summary["world"]))
    figure, axes = panels(len(worlds), 2, 2.1 * len(worlds))
    right = summary[summary["measure"] == "correct"].set_index("world")
    for row, world in enumerate(worlds):
        own = summary[(summary["world"] == world) & (summary["read_at"] == "at")]
        for column, measure in enumerate(MEASURE_LABELS):
            thought_lines(own[own["measure"] == measure], measure, axes[row][column])
        share, n_seeds = right.loc[world, ["value", "n_seeds"]]
        seeds = f" (mean of {n_seeds:.0f} seeds)" if n_seeds > 1 else ""
        axes[row][0].set_title(f"{world}: {share:.0%} right{seeds}", loc="left")
    for column in range(2):
        limits = [axes[row][column].get_ylim() for row in range(len(worlds))]
        low, high = min(each[0] for each in limits), max(each[1] for each in limits)
        for row in range(len(worlds)):
            axes[row][column].set_ylim(low, high)
            axes[row][column].set_xlabel("thought" if row == len(worlds) - 1 else "")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def thought_lines(summary: pd.DataFrame, measure: str, ax: Axes | None = None) -> Axes:
    """One measure over thoughts, a line for each kind of vertex.

    Args:
        summary: its rows of `Superposition.summary()`, of one world.
        measure: what is drawn.
        ax: where to draw.
    """
    ax = axes_or_new(ax, 2.1)
    for index, (kind, color) in enumerate(VERTEX_COLORS.items()):
        rows = summary[summary["vertices"] == kind].sort_values("thought")
        ax.errorbar(
            rows["thought"] + 0.04 * (index - 1.5),
            rows["value"],
            np.asarray(errors_of(rows, "value")),
            color=color,
            marker="o",
            ms=4,
            lw=1.4,
            label=VERTEX_LABELS[kind],
        )
    layer_axis(ax, "", MEASURE_LABELS[measure], "")
    return ax
