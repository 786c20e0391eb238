"""Provides heatmaps over layers and heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import FigureBase

from hopscope.plots.style import TEXT_SIZE, axes_or_new, size_of, text_size


def layer_heatmap(
    share: pd.DataFrame,
    ax: Axes | None = None,
    title: str = "",
    vmax: float | None = None,
    label: str | None = "queries answered",
) -> Axes:
    """Draw a heatmap of source and target layers; cells that were not run are blank.

    Args:
        share: shares of queries, with target layers as rows and source layers as columns, such as
            `BackPatching.heatmap()`.
        ax: the axes to draw on; new ones if None.
        title: title of the axes.
        vmax: share at the dark end of the colour scale; the largest share if None.
        label: label of the colour bar; None for no colour bar.

    Returns:
        The axes.
    """
    ax = axes_or_new(ax, 2.9)
    top = max(float(share.max().max()) if vmax is None else vmax, 1e-9)
    table = share.sort_index(ascending=False).astype(float)
    sns.heatmap(
        table,
        ax=ax,
        cmap="mako_r",
        vmin=0,
        vmax=top,
        xticklabels=False,
        yticklabels=False,
        cbar=label is not None,
        cbar_kws={"label": label, "format": PERCENT},
    )
    _name_cells(ax, table)
    ax.set(xlabel=SOURCE, ylabel=TARGET, title=title)
    return ax


def layer_heatmaps(
    figure: FigureBase, shares: Mapping[str, pd.DataFrame], vmax: float, label: str
) -> np.ndarray:
    """Draw a row of heatmaps of source and target layers that share axes and colours.

    Args:
        figure: the figure, or the part of one, that gets the axes.
        shares: of each title, shares of queries as in `layer_heatmap`, all of the same cells.
        vmax: share at the dark end of the colour scale.
        label: label of the colour bar.

    Returns:
        The axes, shape (heatmap,).
    """
    axes: np.ndarray = figure.subplots(1, len(shares), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (title, share) in zip(axes, shares.items(), strict=True):
        layer_heatmap(share, ax, title, vmax, label=None)
        ax.set(xlabel="", ylabel="")
        ax.label_outer(remove_inner_ticks=True)
    axes[0].set_ylabel(TARGET)
    figure.supxlabel(SOURCE, fontsize=mpl.rcParams["axes.labelsize"])
    figure.colorbar(axes[0].collections[0], ax=axes.tolist(), label=label, format=PERCENT)
    return axes


SOURCE, TARGET = "source layer (read)", "target layer (replaced)"
PERCENT = mpl.ticker.PercentFormatter(1.0, decimals=0)


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
    return diverging_heatmap(table, None, ax, title, "mean recovery", "head")


def diverging_heatmap(
    table: pd.DataFrame,
    names: list[str] | None = None,
    ax: Axes | None = None,
    title: str = "",
    label: str = "",
    xlabel: str = "",
) -> Axes:
    """Draw a heatmap of numbers by layer that is white at 0, red above and blue below.

    Args:
        table: the numbers, with layers as rows.
        names: tick labels of the columns; their numbers, as many as fit, if None.
        ax: the axes to draw on; new ones if None.
        title: title of the axes.
        label: label of the colour bar.
        xlabel: label of the columns.

    Returns:
        The axes.
    """
    ax = axes_or_new(ax, 2.9)
    top = np.nan_to_num(np.abs(table.to_numpy(float))).max(initial=1e-9)
    table = table.sort_index(ascending=False)
    sns.heatmap(
        table,
        ax=ax,
        cmap="vlag",
        vmin=-top,
        vmax=top,
        xticklabels=False,
        yticklabels=False,
        cbar_kws={"label": label},
    )
    _name_cells(ax, table)
    if names is not None:
        ax.set_xticks(np.arange(len(names)) + 0.5, names)
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
        yticklabels=False,
        cbar_kws={"label": "P(likeliest)"},
    )
    _ticks(ax.yaxis, top.index, height)
    ax.set_xticks(np.arange(len(tokens)) + 0.5, tokens, rotation=40, ha="right")
    ax.tick_params(axis="y", rotation=0, length=2)
    ax.set(xlabel="token", ylabel="layer", title=title)
    return ax


LABEL = 0.22
"""Space that a tick label needs along an axis, in inches."""


def _name_cells(ax: Axes, table: pd.DataFrame) -> None:
    """Number columns and rows, as many as fit, from the lowest on; only these have ticks."""
    width, height = size_of(ax)
    _ticks(ax.xaxis, table.columns, width)
    _ticks(ax.yaxis, table.index, height)
    ax.tick_params(rotation=0, length=2)


def _ticks(axis: Axis, numbers: pd.Index, inches: float) -> None:
    places = np.argsort(numbers)[:: _every(len(numbers), inches)]
    axis.set_ticks((places + 0.5).tolist(), [str(numbers[place]) for place in places])


def _thinned(labels: list[str], inches: float) -> list[str]:
    """Return the tick labels of an axis, leaving out as many as needed to avoid overlaps."""
    step = _every(len(labels), inches)
    return [label if index % step == 0 else "" for index, label in enumerate(labels)]


def _every(n: int, inches: float) -> int:
    """Every how many of `n` tick labels has room on an axis of so many inches."""
    most = max(2, int(inches * TEXT_SIZE / text_size() / LABEL))
    return -(-n // most)
