"""Draws what the analyses read off worlds, where the truth is known: from a saved result."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot as plt

from hopscope.experiments.worlds.circuit import Circuit
from hopscope.experiments.worlds.circuit_plots import circuit_figure
from hopscope.plots import figures
from hopscope.plots.style import figure_style


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/world_circuit` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    result = Circuit.load(runs / "world_circuit")
    with figure_style():
        figure = circuit_figure(result.frame)
        paths = figures.save_figure(figure, result.summary(), rendered, "world_circuit")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
