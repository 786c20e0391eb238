"""Provides the picture of worlds that were trained with zero-hop facts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from hopscope.plots.lines import share_axis
from hopscope.plots.style import BLACK, BLUE, GREY, VERMILION, axes_or_new, bars, legend_below

LOOKS = {
    "none": ("no zero-hop facts", GREY),
    "identity": ("identities, h → h", BLUE),
    "shuffled": ("control: h → another entity", VERMILION),
}
TICKS = {
    "in_distribution": "held out",
    "first_hop_ood": "first hop\nnever composed",
    "second_hop_ood": "second hop\nnever composed",
}


def zero_hop_bars(
    summary: pd.DataFrame, by_seed: pd.DataFrame, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Accuracy by split, one bar a kind of zero-hop facts with its interval, and one dot a seed.

    Args:
        summary: `IdentityBridge.summary()`.
        by_seed: `IdentityBridge.frame`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    places, width = np.arange(len(TICKS)), 0.27
    for index, (arm, (label, color)) in enumerate(LOOKS.items()):
        own = places + (index - 1) * width
        rows = summary[summary["zero_hop"] == arm].set_index("split").reindex(list(TICKS))
        bars(ax, own, rows, "accuracy", width * 0.9, color=color, alpha=0.85, label=label)
        seeds = by_seed[by_seed["zero_hop"] == arm].set_index("split")["accuracy"]
        for place, split in zip(own, TICKS, strict=True):
            dots = seeds[seeds.index == split].to_numpy()
            spread = place + np.linspace(-0.2, 0.2, len(dots)) * width
            ax.plot(spread, dots, "o", ms=3.2, color="white", mec=BLACK, mew=0.8, zorder=3)
    ax.set_xticks(places, list(TICKS.values()))
    ax.set(title=title, ylabel="compositions right")
    share_axis(ax)
    legend_below(ax)
    return ax
