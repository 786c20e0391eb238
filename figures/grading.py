"""Draws how many queries pass each hop, the composition and the shortcuts: from a saved result."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot as plt

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.grading import Grading
from hopscope.plots import figures
from hopscope.plots.style import COLUMN, figure_style, panels


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/grading` into `rendered`."""
    result = Grading.load(runs / "grading")
    summary = result.summary()
    with figure_style():
        figure, ((ax,),) = panels(1, 1, 2.6, width=COLUMN)
        run = result.run
        plots.grading_bars(summary, ax, f"{run['model']['name']} on “{run['queries']['name']}”")
        paths = figures.save_figure(figure, summary, rendered, "grading")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
