"""Provides the picture of models trained under different masks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hopscope.plots.lines import share_axis
from hopscope.plots.style import (
    BLACK,
    COLORS,
    GREY,
    HATCH,
    TEXT,
    axes_or_new,
    bars,
    errors_of,
    legend_below,
)


def mask_arms(
    summary: pd.DataFrame,
    by_seed: pd.DataFrame,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Held-out accuracy by order of the documents, one bar an arm, one dot a seed.

    Beside the bar of each arm stands, in grey and with the arm's edge, what the same models answer
    under a mask that they were not trained for. A line across a bar is the model that its arm went
    on from, read under the same mask.

    Args:
        summary: `PrefixTraining.summary()`.
        by_seed: `PrefixTraining.by_seed()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.7)
    base = summary[summary["control"] == "base"]
    orders = list(dict.fromkeys(summary["order"]))
    arms = list(dict.fromkeys(summary.loc[summary["control"] == "none", "mask"]))
    shown = [(arm, read) for arm in arms for read in _own_first(arm, arms)]
    width = 0.84 / len(shown)
    for index, (arm, read) in enumerate(shown):
        color = COLORS[arms.index(arm) % len(COLORS)]
        places = np.arange(len(orders)) + (index - (len(shown) - 1) / 2) * width
        rows = _of_bar(summary, arm, read).set_index("order").reindex(orders)
        look = {"color": color, "edgecolor": color, "linewidth": 1.2}
        if read != arm:
            look |= {"color": GREY, "hatch": HATCH}
        bars(ax, places, rows, "accuracy", width * 0.9, alpha=0.85, **look)
        if len(base):
            level = base[base["read_under"] == read].set_index("order").reindex(orders)
            ends = places - width * 0.45, places + width * 0.45
            ax.hlines(level["accuracy"], *ends, color=BLACK, lw=1.6, zorder=4)
        seeds = _of_bar(by_seed, arm, read)
        for place, order in zip(places, orders, strict=True):
            dots = seeds.loc[seeds["order"] == order, "accuracy"].to_numpy()
            spread = place + np.linspace(-0.22, 0.22, len(dots)) * width
            ax.plot(spread, dots, "o", ms=3.2, color="white", mec=BLACK, mew=0.8, zorder=3)
    ax.set_xticks(range(len(orders)), orders)
    ax.set(xlabel="order of the gold documents", title=title)
    ax.set_ylabel("held-out questions answered")
    share_axis(ax)
    legend_below(ax, handles=_handles(arms, len(base) > 0))
    return ax


def mask_gains(
    paired: pd.DataFrame, by_seed: pd.DataFrame, ax: Axes | None = None, title: str = ""
) -> Axes:
    """How much better further arms answer than the first, by order: the mean, and a dot a seed.

    Args:
        paired: `PrefixTraining.paired()`.
        by_seed: `PrefixTraining.by_seed()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.7)
    orders, arms = (list(dict.fromkeys(paired[each])) for each in ("order", "mask"))
    own = by_seed[by_seed["control"] == "none"].set_index(["order", "seed", "mask"])["accuracy"]
    of_arms = own.unstack()
    for index, arm in enumerate(arms):
        rows = paired[paired["mask"] == arm].set_index("order").reindex(orders)
        first = str(rows["minus"].iloc[0])
        color = COLORS[(index + 1) % len(COLORS)]  # as in `mask_arms`
        places = np.arange(len(orders)) + (index - (len(arms) - 1) / 2) * 0.7 / len(arms)
        label = f"{arm} minus {first}".replace("_", " ")
        errors = errors_of(rows, "difference")
        ax.errorbar(
            places, rows["difference"], errors, fmt="_", ms=11, mew=2, color=color, label=label
        )
        for place, order in zip(places, orders, strict=True):
            dots = (of_arms[arm] - of_arms[first]).loc[order].dropna().to_numpy()
            spread = place + (0.2 + np.linspace(0, 0.16, len(dots))) / len(arms)
            ax.plot(spread, dots, "o", ms=3.2, color="white", mec=BLACK, mew=0.8, zorder=3)
    ax.axhline(0, color=TEXT, lw=0.8)
    ax.set_xticks(range(len(orders)), orders)
    ax.set(xlim=(-0.6, len(orders) - 0.4), xlabel="order of the gold documents", title=title)
    ax.set_ylabel("difference in accuracy")
    legend_below(ax)
    return ax


def _own_first(arm: str, arms: list[str]) -> list[str]:
    return [arm, *(each for each in arms if each != arm)]


def _of_bar(table: pd.DataFrame, arm: str, read: str) -> pd.DataFrame:
    return table[(table["mask"] == arm) & (table["read_under"] == read)]


def _handles(arms: list[str], base: bool) -> list[Patch | Line2D]:
    handles: list[Patch | Line2D] = [
        Patch(color=COLORS[index % len(COLORS)], label=f"trained {arm.replace('_', ' ')}")
        for index, arm in enumerate(arms)
    ]
    if len(arms) > 1:
        grey = Patch(fc=GREY, ec=BLACK, hatch=HATCH, label="the same, under another mask")
        handles.append(grey)
    if base:
        handles.append(Line2D([], [], color=BLACK, lw=1.6, label="before fine-tuning"))
    return handles
