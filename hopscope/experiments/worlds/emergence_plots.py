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
    GREY,
    PAGE,
    VERMILION,
    axes_or_new,
    legend_below,
    panels,
)
from hopscope.statistics import wilson


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


PATCHES = {
    "clean": ("not patched", BLACK, "-"),
    **{name: (look.label, look.color, look.dash) for name, look in CONTROLS.items()},
}
SPLITS = {
    "trained": ("trained on", BLACK, "o"),
    "in_distribution": ("held out", BLUE, "s"),
    "first_hop_ood": ("1st hop unseen", GREEN, "^"),
    "second_hop_ood": ("2nd hop unseen", VERMILION, "D"),
}


FEWEST = 10
"""Questions that are right before an edge is cut; fewer are not drawn."""


def with_intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """The shares of a circuit over checkpoints with their Wilson 95 % intervals.

    Args:
        frame: of `over_checkpoints(..., lambda world: circuit([world]))`.

    Returns:
        The frame with columns `low` and `high`, which are NaN for `bridge`, a mean of ranks.
    """
    ends = [
        wilson(round(row["value"] * row["n"]), int(row["n"]))[1:]
        if row["measure"] != "bridge" and row["value"] == row["value"]
        else (float("nan"), float("nan"))
        for row in frame.to_dict("records")
    ]
    return frame.assign(low=[low for low, _ in ends], high=[high for _, high in ends])


def circuit_curves(frame: pd.DataFrame) -> Figure:
    """When a world answers, when its instruments see how, and what back-patching repairs.

    Args:
        frame: of `with_intervals`.
    """
    figure, grid = panels(2, 2, 5.0, sharex=True)
    answers, bridges, edges, patches = grid.flat
    accuracy = frame[frame["measure"] == "accuracy"]
    for split, (label, color, mark) in SPLITS.items():
        _curve(accuracy[accuracy["split"] == split], answers, label, color, mark=mark)
    answers.set(title="answers", ylabel="two-hop questions right")
    bridge = frame[(frame["measure"] == "bridge") & (frame["split"] == "in_distribution")]
    cut = frame[(frame["measure"] == "knockout") & (frame["control"] == "t2->t1")]
    cut = cut[cut["n"] >= FEWEST]
    last = int(frame["layer"].max())
    read = bridge[bridge["layer"] == last - 1]
    where = cut[cut["step"] == cut["step"].max()].sort_values("value")["layer"]
    late = cut[cut["layer"] == (where.iloc[0] if len(where) else last)]
    _curve(read, bridges, f"after block {last - 1}", BLUE)
    bridges.set(title="bridge read at r1", ylabel="mean reciprocal rank")
    _curve(late, edges, "in the block where it costs most", VERMILION)
    _curve(cut[cut["layer"] == 0], edges, "in the first block", GREY, ":")
    edges.set(title="edge r2 → r1 knocked out", ylabel="questions still right")
    patched = frame[(frame["measure"] == "patched") & (frame["split"] == "first_hop_ood")]
    beside = patched["step"].max() / 110
    for index, (control, (label, color, style)) in enumerate(PATCHES.items()):
        rows = patched[patched["control"] == control]
        rows = rows.assign(step=rows["step"] + beside * (index - 1.5))
        _curve(rows, patches, label, color, style)
    patches.set(title="1st hop unseen, r1 back-patched", ylabel="questions right")
    for ax in grid.flat:
        ax.set_xlabel("step of the training")
        ax.tick_params(labelbottom=True)
        share_axis(ax)
        legend_below(ax)
    bridges.yaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    return figure


def _curve(
    rows: pd.DataFrame, ax: Axes, label: str, color: str, style: str = "-", mark: str = "o"
) -> None:
    rows = rows.sort_values("step")
    ax.plot(rows["step"], rows["value"], color=color, ls=style, marker=mark, ms=3, label=label)
    ax.vlines(rows["step"], rows["low"], rows["high"], color=color, lw=0.8)
