"""Draws how often t1 recalls the bridge better than in another question: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot as plt

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.entity_recall import Recall
from hopscope.plots import figures
from hopscope.plots.style import figure_style
from hopscope.study.figures import results_of


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/recall.*` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    results = results_of(runs, "recall", Recall)
    with figure_style():
        figure, table = figures.summary_panels(
            results, plots.recall_lines, "Entity recall at t1", height=2.6, shared=True
        )
        paths = figures.save_figure(figure, table, rendered, "recall")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
