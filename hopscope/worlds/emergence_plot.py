"""Provides the pictures of an analysis over the steps of a training."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hopscope.plots import _axes


def curves(table: pd.DataFrame, value: str, ax: Axes | None = None, title: str = "") -> Axes:
    """A line for each combination of what tells curves apart, over steps.

    Args:
        table: `Emergence.curves()`.
        value: its column that is drawn.
        ax: where to draw.
        title: of the axes.
    """
    ax = _axes(ax, (4.2, 3.0))
    keys = [column for column in table if column not in ("step", value, "n")]
    label = table[keys].astype(str).agg(" ".join, axis=1) if keys else pd.Series("", table.index)
    sns.lineplot(
        x=table["step"],
        y=table[value],
        hue=label.rename(" ".join(map(str, keys))),
        palette="colorblind",
        legend="auto" if keys else False,
        errorbar=None,
        ax=ax,
    )
    ax.set(xlabel="step of the training", ylabel=value.replace("_", " "), title=title)
    return ax


def film_strip(film: Mapping[int, pd.DataFrame], value: str, most: int = 6) -> Figure:
    """The table of each step as a heatmap, all with the same colours.

    Args:
        film: `Emergence.film()`.
        value: what the tables hold.
        most: how many steps are drawn; evenly spaced ones, the first and the last among them.
    """
    steps = list(film)
    places = np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int)
    chosen = [steps[place] for place in dict.fromkeys(places.tolist())]
    values = np.concatenate([film[step].to_numpy(dtype=float).ravel() for step in chosen])
    values = values[np.isfinite(values)]
    low, high = min([0.0, *values]), max([0.0, *values])
    width = 1.5 * len(chosen) + 0.9
    figure, axes = plt.subplots(
        1, len(chosen), figsize=(width, 1.9), layout="constrained", squeeze=False
    )
    norm = mpl.colors.Normalize(low, high if high > low else low + 1)
    for ax, step in zip(axes[0], chosen, strict=True):
        table = film[step].sort_index(ascending=False)
        last = ax is axes[0][-1]
        sns.heatmap(table, ax=ax, cmap="mako_r", norm=norm, cbar=last)
        ax.set_title(f"step {step}")
        first = ax is axes[0][0]
        ax.set_xlabel(str(table.columns.name).replace("_", " "))
        ax.set_ylabel(str(table.index.name).replace("_", " ") if first else "")
        ax.tick_params(rotation=0, length=2, left=first, labelleft=first)
    figure.axes[-1].set_ylabel(value.replace("_", " "))
    return figure
