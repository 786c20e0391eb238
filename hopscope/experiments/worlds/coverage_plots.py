"""Provides the pictures of coverage: what is learned when, and how much data it takes."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis

from hopscope.experiments.worlds.coverage import GROUPINGS
from hopscope.plots.lines import share_axis
from hopscope.plots.style import (
    BLUE,
    GREEN,
    GREY,
    MARKS,
    TEXT,
    VERMILION,
    axes_or_new,
    legend_below,
    text_size,
)

if TYPE_CHECKING:
    from hopscope.statistics import Exponent


def needed_points(
    needed: pd.DataFrame, exponent: Exponent, ax: Axes | None = None, title: str = ""
) -> Axes:
    """The examples that are needed by the number of tokens, with the fitted power.

    Args:
        needed: `DataNeeded.needed()`; bars reach to the numbers tried on both sides.
        exponent: `DataNeeded.exponent()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    table = needed.dropna()
    tokens, examples = table["n_tokens"], table["examples"]
    errors = np.stack([examples - table["below"], table["above"] - examples])
    ax.errorbar(tokens, examples, errors, fmt="o", ms=4, color=BLUE, capsize=2, zorder=3)
    line = np.array([tokens.min(), tokens.max()], dtype=float)
    fitted = f"fitted: {_power(exponent.value)} ({exponent.low:.2f} to {exponent.high:.2f})"
    ax.plot(line, exponent.factor * line**exponent.value, color=BLUE, lw=1.4, label=fitted)
    if exponent.published is not None:
        middle = np.exp(np.log(line).mean())
        through = exponent.factor * middle**exponent.value
        ax.plot(
            line,
            through * (line / middle) ** exponent.published,
            color=GREY,
            ls="--",
            lw=1.2,
            label=f"published: {_power(exponent.published)}",
        )
    ax.set(xscale="log", yscale="log", title=title)
    ax.set(xlabel="tokens n of each table", ylabel="examples needed")
    _plain_log(ax.yaxis)
    ax.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    ax.set_xticks(tokens.tolist(), [str(each) for each in tokens])
    ax.legend(loc="best")
    return ax


def _power(exponent: float) -> str:
    return rf"$n^{{{exponent:.2f}}}$"


def examples_curves(
    frame: pd.DataFrame, learned: float, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Held-out accuracy by the number of examples, a line for each size of the tables.

    Args:
        frame: `DataNeeded.frame`.
        learned: the accuracy at which a size counts as learned.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    means = frame.groupby(["n_tokens", "n_examples"])["accuracy"].mean().reset_index()
    _accuracy_lines(means, "n_examples", "accuracy", "n_tokens", ax)
    ax.axhline(learned, color=GREY, lw=0.8, ls=":")
    size, where = text_size(), ax.get_yaxis_transform()
    ax.text(0.01, learned, "learned", va="bottom", fontsize=size, color=TEXT, transform=where)
    ax.set(xscale="log", xlabel="examples", title=title)
    _plain_log(ax.xaxis)
    ax.legend(title="tokens n", loc="best")
    return ax


def _accuracy_lines(table: pd.DataFrame, x: str, y: str, by: str, ax: Axes) -> None:
    """A line for each value of a column, the darker the larger it is, with a mark of its own."""
    kinds = sorted(table[by].unique())
    colors = mpl.colormaps["gnuplot2_r"](np.linspace(0.22, 0.92, len(kinds)))
    for kind, color, mark in zip(kinds, colors, cycle(MARKS), strict=False):
        rows = table[table[by] == kind].sort_values(x)
        ax.plot(rows[x], rows[y], color=color, marker=mark, ms=3.5, lw=1.2, label=str(kind))
    ax.set_ylabel("held-out inputs right")
    share_axis(ax)


def _plain_log(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 times powers of ten."""
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


CUTOFF = (
    "cutoff: contexts seen that support an input's weakest link\n(in brackets: number of inputs)"
)
LEAST = 0.1
"""The share of the inputs that a line of `cutoff_curves` has at least."""


def cutoff_curves(accuracy: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Accuracy over steps by cutoff; darker lines are better covered.

    The cutoff of an input is in how many contexts the examples show that the weakest of the
    substitutions which lead to it changes nothing, see `coverage_cutoffs`.

    Neighbouring cutoffs of few inputs share a line, but for 0: what is not covered stands alone.

    Args:
        accuracy: columns step, cutoff, value, n (inputs with that cutoff); those of several
            seeds are put together.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    first = accuracy[accuracy["step"] == accuracy["step"].min()]
    bins = _bins(first.groupby("cutoff")["n"].sum())
    right = accuracy.assign(
        right=accuracy["value"] * accuracy["n"], bin=accuracy["cutoff"].map(bins)
    )
    sums = right.groupby(["step", "bin"])[["right", "n"]].sum().reset_index()
    sums["value"] = sums["right"] / sums["n"]
    _accuracy_lines(sums, "step", "value", "bin", ax)
    for line, (number, own) in zip(ax.get_lines(), bins.groupby(bins), strict=True):
        ends = dict.fromkeys((own.index.min(), own.index.max()))
        n = sums.loc[sums["bin"] == number, "n"].iloc[0]
        line.set_label(f"{' to '.join(map(str, ends))} ({n:.0f})")
    ax.set(xlabel="step of the training", title=title)
    legend_below(ax, title=CUTOFF)
    return ax


def _bins(sizes: pd.Series) -> pd.Series:
    """The number of each cutoff's line, by the number of inputs with each cutoff."""
    covered, least = sizes[sizes.index > 0].sort_index(), LEAST * sizes.sum()
    bins = dict.fromkeys(sizes.index, 0)
    number, held = 1, 0
    for cutoff, size in covered.items():
        left = covered[covered.index >= cutoff].sum()
        if held >= least and left >= least:
            number, held = number + 1, 0
        bins[cutoff], held = number, held + size
    return pd.Series(bins)


def gaps_at_x2(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a frame of `coverage` with the gaps at the second token, over all inputs."""
    return frame[(frame["measure"] == "iicg") & (frame["cutoff"] == -1) & (frame["position"] == 1)]


def gap_curves(frame: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """The intra-inter cosine gap at the second token over steps, in the block where it is largest.

    Args:
        frame: of `over_checkpoints(..., coverage)`, with all `GROUPINGS`; with a column `seed`,
            each seed is a thin line and their mean a thick one.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    gaps = gaps_at_x2(frame)
    if "seed" not in gaps:
        gaps = gaps.assign(seed=0)
    best = gaps.groupby(["grouping", "seed", "step"])["value"].max().unstack("step")
    looks = zip(GROUPINGS, (BLUE, VERMILION, GREEN), MARKS, strict=False)
    for grouping, color, mark in looks:
        rows = best.loc[grouping]
        ax.plot(rows.columns, rows.T, color=color, lw=0.6, alpha=0.5)
        ax.plot(rows.columns, rows.mean(), color=color, marker=mark, ms=3.5, label=grouping)
    ax.axhline(0, color=GREY, lw=0.8, ls=":")
    ax.set(xlabel="step of the training", ylabel="cosine gap at x2 (best block)", title=title)
    ax.set_ylim(-0.08, max(1.03, 1.05 * float(best.to_numpy().max())))
    thin = " (thin: seeds)" if gaps["seed"].nunique() > 1 else ""
    legend_below(ax, title=f"states grouped by{thin}")
    return ax
