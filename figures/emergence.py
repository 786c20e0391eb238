"""Draws when a world learns to compose, and when each instrument sees it: from a saved result."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot as plt

from hopscope.experiments.worlds.emergence import Emergence
from hopscope.experiments.worlds.emergence_plots import circuit_curves
from hopscope.plots import figures
from hopscope.plots.style import figure_style


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/emergence` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    result = Emergence.load(runs / "emergence")
    with figure_style():
        figure = circuit_curves(result.frame)
        paths = figures.save_figure(figure, result.frame, rendered, "emergence")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
