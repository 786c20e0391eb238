"""Provides heatmaps over layers and heads."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from hopscope.plots.style import TEXT_SIZE, axes_or_new, size_of, text_size


def layer_heatmap(
    share: pd.DataFrame,
    ax: Axes | None = None,
    title: str = "",
    vmax: float | None = None,
    label: str = "queries answered",
) -> Axes:
    """Draw a heatmap of source and target layers; cells that were not run are blank.

    Args:
        share: shares of queries, with target layers as rows and source layers as columns, such as
            `BackPatching.heatmap()`.
        ax: the axes to draw on; new ones if None.
        title: title of the axes.
        vmax: share at the dark end of the colour scale; the largest share if None.
        label: label of the colour bar.

    Returns:
        The axes.
    """
    ax = axes_or_new(ax, 2.9)
    top = max(float(np.nanmax(share.to_numpy())) if vmax is None else vmax, 1e-9)
    table = share.sort_index(ascending=False)
    width, height = size_of(ax)
    sns.heatmap(
        table,
        ax=ax,
        cmap="mako_r",
        vmin=0,
        vmax=top,
        xticklabels=_tick_labels([int(layer) for layer in table.columns], width),
        yticklabels=_tick_labels([int(layer) for layer in table.index], height)[::-1],
        cbar_kws={
            "label": label,
            "format": mpl.ticker.PercentFormatter(1.0, decimals=0),
        },
    )
    ax.tick_params(rotation=0, length=2)
    ax.set(xlabel="source layer (read)", ylabel="target layer (replaced)", title=title)
    return ax


def head_heatmap(table: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw a heatmap of the mean recovery of heads, red towards the partner's answer.

    Args:
        table: mean recovery, with layers as rows and heads as columns, such as
            `ActivationPatching.heads()`.
        ax: the axes to draw on; new ones if None.
        title: title of the axes.

    Returns:
        The axes.
    """
    ax = axes_or_new(ax, 2.9)
    names = _tick_labels([int(head) for head in table.columns], size_of(ax)[0])
    return diverging_heatmap(table, names, ax, title, "mean recovery", "head")


def diverging_heatmap(
    table: pd.DataFrame,
    names: list[str],
    ax: Axes | None = None,
    title: str = "",
    label: str = "",
    xlabel: str = "",
) -> Axes:
    """Draw a heatmap of numbers by layer that is white at 0, red above and blue below.

    Args:
        table: the numbers, with layers as rows.
        names: tick labels of the columns.
        ax: the axes to draw on; new ones if None.
        title: title of the axes.
        label: label of the colour bar.
        xlabel: label of the columns.

    Returns:
        The axes.
    """
    ax = axes_or_new(ax, 2.9)
    top = np.nan_to_num(np.abs(table.to_numpy(float))).max(initial=1e-9)
    sns.heatmap(
        table.sort_index(ascending=False),
        ax=ax,
        cmap="vlag",
        vmin=-top,
        vmax=top,
        xticklabels=names,
        yticklabels=_tick_labels([int(layer) for layer in table.index], size_of(ax)[1])[::-1],
        cbar_kws={"label": label},
    )
    ax.tick_params(rotation=0, length=2)
    ax.set(xlabel=xlabel, ylabel="layer", title=title)
    return ax


def token_heatmap(
    weights: np.ndarray,
    tokens: Sequence[str],
    ax: Axes | None = None,
    title: str = "",
    label: str = "",
) -> Axes:
    """Draw numbers from 0 to 1 of query tokens (rows) and the key tokens up to each (columns).

    Args:
        weights: shape (query, key); later keys are left blank.
        tokens: texts of the tokens.
        ax: the axes to draw on; new ones if None.
        title: title of the axes.
        label: label of the colour bar.

    Returns:
        The axes.
    """
    ax = axes_or_new(ax, 2.9)
    names = [repr(token)[1:-1].replace("$", r"\$") for token in tokens]
    width, height = size_of(ax)
    sns.heatmap(
        weights,
        mask=~np.tri(len(weights), dtype=bool),
        ax=ax,
        cmap="mako_r",
        vmin=0,
        vmax=1,
        xticklabels=_thinned(names, width),
        yticklabels=_thinned(names, height),
        cbar_kws={"label": label},
    )
    ax.tick_params(length=2)
    ax.tick_params("x", rotation=90)
    ax.tick_params("y", rotation=0)
    ax.set(xlabel="key", ylabel="query", title=title)
    return ax


LETTERS = 7
"""Letters of a predicted token that a cell of the logit lens has room for."""


def lens_heatmap(
    top: pd.DataFrame,
    words: pd.DataFrame,
    tokens: Sequence[str],
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw the likeliest next token of each state of a prompt, shaded by its probability.

    Args:
        top: probability of the likeliest token, with layers as rows and tokens as columns.
        words: the likeliest tokens, of the same shape.
        tokens: the tokens of the prompt.
        ax: the axes to draw on; new ones if None.
        title: title of the axes.

    Returns:
        The axes.
    """
    ax = axes_or_new(ax, 2.9)
    _, height = size_of(ax)
    top, words = (table.sort_index(ascending=False) for table in (top, words))
    sns.heatmap(
        top,
        ax=ax,
        cmap="mako_r",
        vmin=0,
        vmax=1,
        annot=words.map(lambda word: word[:LETTERS]),
        fmt="",
        annot_kws={"size": 0.75 * text_size()},
        yticklabels=_tick_labels([int(layer) for layer in top.index], height)[::-1],
        cbar_kws={"label": "P(likeliest)"},
    )
    ax.set_xticks(np.arange(len(tokens)) + 0.5, tokens, rotation=40, ha="right")
    ax.tick_params(axis="y", rotation=0, length=2)
    ax.set(xlabel="token", ylabel="layer", title=title)
    return ax


LABEL = 0.22
"""Space that a tick label needs along an axis, in inches."""


def _tick_labels(layers: list[int], inches: float) -> list[str]:
    """Return the tick labels of an axis of numbers, leaving out as many as needed."""
    return _thinned([str(layer) for layer in sorted(layers)], inches)


def _thinned(labels: list[str], inches: float) -> list[str]:
    """Return the tick labels of an axis, leaving out as many as needed to avoid overlaps."""
    most = max(2, int(inches * TEXT_SIZE / text_size() / LABEL))
    step = -(-len(labels) // most)
    return [label if index % step == 0 else "" for index, label in enumerate(labels)]
