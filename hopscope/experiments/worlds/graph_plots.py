"""Provides the pictures of searches through graphs: what is computed, and what thoughts hold."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hopscope.plots.lines import layer_axis, share_axis
from hopscope.plots.style import (
    BLUE,
    FAINT,
    GREY,
    MARKS,
    PAGE,
    SKY,
    VERMILION,
    axes_or_new,
    color_of_each,
    errors_of,
    legend_below,
    panels,
    shared_legend,
)
from hopscope.results.wording import with_interval

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
    "attention": "attention to an edge\n(summed over heads)",
}
MEASURE_TITLES = {
    "product": "what the state points to",
    "attention": "what the last block attends to",
}


def operations(
    table: pd.DataFrame, details: pd.Series, n_layers: int, ax: Axes | None = None
) -> Axes:
    """The operations of one prompt over layers and tokens, from the embeddings up.

    The longest chain of explained operations that ends at the last token is drawn strong.

    Args:
        table: its rows of `ComputationGraph.frame`.
        details: its row of `ComputationGraph.details`.
        n_layers: of the model.
        ax: where to draw.
    """
    tokens = str(details["tokens"]).split(" ")
    ax = axes_or_new(ax, 2.6, PAGE)
    used: dict[int, int] = {}
    chain = longest_chain(table, len(tokens) - 1)
    layers, sources = table["layer"].to_dict(), table["from_token"].to_dict()
    for later, earlier in pairwise(chain):  # what stays at a token until it is read
        stays = layers[earlier] + 1, layers[later]
        ax.plot([sources[later]] * 2, stays, color=EXPLAINED, lw=2.4, zorder=3)
    columns = ["layer", "from_token", "to_token", "explained", "words", "sign"]
    for index, layer, source, to, explained, words, sign in table[columns].itertuples(name=None):
        named = index in chain
        ax.plot(
            [source, to],
            [layer, layer + 1],
            color=EXPLAINED if explained else UNEXPLAINED,
            ls="-" if words else ":",
            lw=2.4 if named else 0.7,
            alpha=1 if named else 0.45,
            zorder=3 if named else 2,
            marker="o" if sign > 0 else "x",
            ms=4 if named or sign < 0 else 2,
        )
        used[source] = min(used.get(source, n_layers), layer)
        used.setdefault(to, layer + 1)
    for token, first in used.items():
        ax.plot([token, token], [0, n_layers], color=FAINT, lw=0.5, zorder=0)
        ax.plot(token, first, ".", color=GREY, ms=2, zorder=0)
    ax.set_xticks(range(len(tokens)), tokens, rotation=90)
    for place, label in enumerate(ax.get_xticklabels()):
        label.set_color("black" if place in used else "#A8A8A8")
    ax.set_yticks(range(n_layers + 1), ["embedding", *range(n_layers)])
    ax.set(ylabel="after block", xlim=(-0.7, len(tokens) - 0.3))
    handles = [
        Line2D([], [], color=EXPLAINED, lw=2.4, label="longest chain to the end"),
        Line2D([], [], color=EXPLAINED, label="explained"),
        Line2D([], [], color=UNEXPLAINED, label="not explained"),
        Line2D([], [], color="black", label="depends on words"),
        Line2D([], [], color="black", ls=":", label="on places alone"),
    ]
    if (table["sign"] < 0).any():
        handles.append(Line2D([], [], color="black", marker="x", ms=4, label="negative"))
    ax.legend(handles=handles, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return ax


def longest_chain(table: pd.DataFrame, last: int) -> list[int]:
    """The longest chain of operations, each reading what an earlier one wrote, to the last token.

    Args:
        table: operations, as in `operations`; only those count that are explained.
        last: the place of the last token.

    Returns:
        Their labels in the index of the table, the last one first; of equally long chains the one
        whose operations come latest.
    """
    chains: dict[int, dict[int, list[int]]] = {}  # by token, then by the layer that wrote
    found = table[table["explained"].astype(bool)].sort_values("layer", kind="stable")
    for index, layer, source, to in found[["layer", "from_token", "to_token"]].itertuples(
        name=None
    ):
        before = [each for written, each in chains.get(source, {}).items() if written < layer]
        chain = [index, *max(before[::-1], key=len, default=[])]
        here = chains.setdefault(to, {})
        if len(chain) > len(here.get(layer, [])):
            here[layer] = chain
    return max(list(chains.get(last, {}).values())[::-1], key=len, default=[])


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
    legend_below(ax, handles=[*handles, *styles])
    return ax


def superposition_figure(summary: pd.DataFrame, read_at: str = "at") -> Figure:
    """What each world points to (left) and attends to (right) at thoughts or where they are formed.

    Args:
        summary: `Superposition.summary()`.
        read_at: the tokens: `at` the thoughts, or `before`, where they are formed.
    """
    worlds = list(dict.fromkeys(summary["world"]))
    figure, axes = panels(len(worlds), 2, 2.1 * len(worlds))
    right = summary[summary["measure"] == "correct"].set_index("world")
    for row, world in enumerate(worlds):
        own = summary[(summary["world"] == world) & (summary["read_at"] == read_at)]
        for column, measure in enumerate(MEASURE_LABELS):
            thought_lines(own[own["measure"] == measure], measure, axes[row][column])
            axes[row][column].set_title(f"{world}: {MEASURE_TITLES[measure]}")
    label = "thought" if read_at == "at" else "thought, read at the token that forms it"
    for column in range(2):
        limits = [axes[row][column].get_ylim() for row in range(len(worlds))]
        low, high = min(each[0] for each in limits), max(each[1] for each in limits)
        for row in range(len(worlds)):
            axes[row][column].set_ylim(low, high)
            axes[row][column].set_xlabel(label if row == len(worlds) - 1 else "")
    shared_legend(figure, axes)
    told = right[["value", "low", "high"]]
    shares = [f"{world} {with_interval(*told.loc[world])}" for world in worlds]
    n_seeds = int(right["n_seeds"].max())
    seeds = f" (mean of {n_seeds} seeds)" if n_seeds > 1 else ""
    figure.suptitle(f"Questions right: {', '.join(shares)}{seeds}")
    return figure


def thought_lines(summary: pd.DataFrame, measure: str, ax: Axes | None = None) -> Axes:
    """One measure over thoughts, a line for each kind of vertex.

    Args:
        summary: its rows of `Superposition.summary()`, of one world.
        measure: what is drawn.
        ax: where to draw.
    """
    ax = axes_or_new(ax, 2.1)
    for index, ((kind, color), mark) in enumerate(zip(VERTEX_COLORS.items(), MARKS, strict=False)):
        rows = summary[summary["vertices"] == kind].sort_values("thought")
        ax.errorbar(
            rows["thought"] + 0.04 * (index - 1.5),
            rows["value"],
            np.asarray(errors_of(rows, "value")),
            color=color,
            marker=mark,
            ms=4,
            lw=1.4,
            label=VERTEX_LABELS[kind],
        )
    layer_axis(ax, "", MEASURE_LABELS[measure], "")
    return ax
