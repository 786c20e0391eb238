"""What a picture shows, and a table to draw: for tests of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes


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


def labels_of(ax: Axes) -> list[str]:
    return [label.get_text() for label in ax.get_xticklabels()]
