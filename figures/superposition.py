"""Draws which vertices thoughts hold and attend to, beside pauses: from a saved result."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot as plt

from hopscope.experiments.worlds import graph_plots
from hopscope.experiments.worlds.superposition import Superposition
from hopscope.plots import figures
from hopscope.plots.style import figure_style


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/superposition` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    summary = Superposition.load(runs / "superposition").summary()
    with figure_style():
        figure = graph_plots.superposition_figure(summary)
        paths = figures.save_figure(figure, summary, rendered, "superposition")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
