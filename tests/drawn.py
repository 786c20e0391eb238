"""What a picture shows, and a table to draw: for tests of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection, PolyCollection


def over_layers(value: str, **groups: Sequence[object]) -> pd.DataFrame:
    """A made table: for each combination of the groups three layers with a value of their own."""
    keys = pd.MultiIndex.from_product(groups.values(), names=list(groups)).to_frame(index=False)
    table = keys.merge(pd.DataFrame({"layer": [0, 1, 2]}), how="cross")
    table[value] = np.linspace(0, 1, len(table))
    return table.assign(low=table[value] - 0.1, high=table[value] + 0.1, n=5)


def lines(ax: Axes) -> dict[str, list[float]]:
    """The heights of each line with a label."""
    named = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in named}


def values(table: pd.DataFrame, value: str, **where: object) -> list[float]:
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    return table[value].tolist()


def ticks(axis: Axis) -> dict[float, str]:
    """The label of each tick, by its place."""
    labels = [label.get_text() for label in axis.get_ticklabels()]
    return dict(zip(np.asarray(axis.get_ticklocs()).tolist(), labels, strict=True))


def bands(ax: Axes) -> list[PolyCollection]:
    """The bands of intervals."""
    return [each for each in ax.collections if isinstance(each, PolyCollection)]


def whiskers(ax: Axes) -> list[dict[float, tuple[float, float]]]:
    """For each line with whiskers their ends, by layer."""
    found = [each for each in ax.collections if isinstance(each, LineCollection)]
    return [
        {float(ends[0, 0]): (float(ends[0, 1]), float(ends[1, 1])) for ends in each.get_segments()}
        for each in found
    ]


def labels_of(ax: Axes) -> list[str]:
    return [label.get_text() for label in ax.get_xticklabels()]
