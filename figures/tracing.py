"""Draws which states bring the answer back when the source is noised: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot as plt

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.causal_tracing import Tracing
from hopscope.plots import figures
from hopscope.plots.style import figure_style
from hopscope.study.figures import results_of


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/tracing.*` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    results = results_of(runs, "tracing", Tracing)
    with figure_style():
        figure, table = figures.summary_panels(results, plots.tracing_lines, "Causal tracing")
        paths = figures.save_figure(figure, table, rendered, "tracing")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
