"""Provides the pictures of an analysis over the steps of a training."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hopscope.plots.lines import share_axis
from hopscope.plots.style import (
    BLACK,
    BLUE,
    CONTROLS,
    GREEN,
    PAGE,
    VERMILION,
    axes_or_new,
    legend_below,
    panels,
)


def curves(table: pd.DataFrame, value: str, ax: Axes | None = None, title: str = "") -> Axes:
    """A line for each combination of what tells curves apart, over steps.

    Args:
        table: `Emergence.curves()`.
        value: its column that is drawn.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
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
    figure, axes = panels(1, len(chosen), 1.5, width=PAGE * min(1, (len(chosen) + 0.6) / most))
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


INSTRUMENTS = {
    "bridge read at r1": (BLUE, "-"),
    "right without r2 → r1, late": (VERMILION, "-"),
    "right without r2 → r1, first block": (VERMILION, ":"),
}
PATCHES = {
    "clean": ("not patched", BLACK, "-"),
    **{name: (look.label, look.color, look.dash) for name, look in CONTROLS.items()},
}
SPLITS = {
    "trained": ("trained on", BLACK),
    "in_distribution": ("held out", BLUE),
    "first_hop_ood": ("1st hop unseen", GREEN),
    "second_hop_ood": ("2nd hop unseen", VERMILION),
}


FEWEST = 10
"""Questions that are right before an edge is cut; fewer are not drawn."""


def circuit_curves(frame: pd.DataFrame) -> Figure:
    """When a world answers, when its instruments see how, and what back-patching repairs.

    Args:
        frame: of `over_checkpoints(..., lambda world: circuit([world]))`.
    """
    figure, (axes,) = panels(1, 3, 2.7, sharex=True)
    accuracy = frame[frame["measure"] == "accuracy"]
    for split, (label, color) in SPLITS.items():
        _curve(accuracy[accuracy["split"] == split], axes[0], label, color)
    axes[0].set(title="answers", ylabel="two-hop questions right")
    bridge = frame[(frame["measure"] == "bridge") & (frame["split"] == "in_distribution")]
    cut = frame[(frame["measure"] == "knockout") & (frame["control"] == "t2->t1")]
    cut = cut[cut["n"] >= FEWEST]
    last = int(frame["layer"].max())
    read = bridge[bridge["layer"] == last - 1]
    where = cut[cut["step"] == cut["step"].max()].sort_values("value")["layer"]
    late = cut[cut["layer"] == (where.iloc[0] if len(where) else last)]
    seen: list[pd.DataFrame] = [read, late, cut[cut["layer"] == 0]]
    for rows, (label, (color, style)) in zip(seen, INSTRUMENTS.items(), strict=True):
        _curve(rows, axes[1], label, color, style)
    axes[1].set(title="instruments", ylabel="reciprocal rank, or still right")
    patched = frame[(frame["measure"] == "patched") & (frame["split"] == "first_hop_ood")]
    for control, (label, color, style) in PATCHES.items():
        _curve(patched[patched["control"] == control], axes[2], label, color, style)
    axes[2].set(title="1st hop unseen, r1 back-patched", ylabel="questions right")
    for ax in axes:
        ax.set_xlabel("step of the training")
        share_axis(ax)
        legend_below(ax)
    axes[1].yaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    return figure


def _curve(rows: pd.DataFrame, ax: Axes, label: str, color: str, style: str = "-") -> None:
    rows = rows.sort_values("step")
    ax.plot(rows["step"], rows["value"], color=color, ls=style, marker="o", ms=2.5, label=label)
