"""Draws how many examples a composition takes by the size of its tables: from a saved result."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot as plt

from hopscope.experiments.worlds.coverage_plots import examples_curves
from hopscope.experiments.worlds.data_needed import LEARNED, DataNeeded
from hopscope.plots import figures
from hopscope.plots.style import figure_style, panels


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/data_needed` into `rendered`.

    Raises:
        ResultError: if there is no such result.
        UsageError: if too few sizes were learned for an exponent.
    """
    result = DataNeeded.load(runs / "data_needed")
    with figure_style():
        figure, (axes,) = panels(1, 2, 2.6)
        examples_curves(result.frame, LEARNED, axes[0])
        result.plot(axes[1])
        table = result.frame.drop(columns="seconds")
        paths = figures.save_figure(figure, table, rendered, "data_needed")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
