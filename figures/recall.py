"""Draws how often t1 recalls the bridge better than in another question: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope import plots
from hopscope.experiments import Recall
from hopscope.study import results_of
from hopscope.style import figure_style, panels, shared_legend


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/recall.*` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    results = results_of(runs, "recall", Recall)
    first = next(iter(results.values()))
    with figure_style():
        figure, axes = panels(1, len(results), 2.6, sharey=True)
        numbers = []
        for ax, (subset, result) in zip(axes[0], results.items(), strict=True):
            summary = result.summary()
            plots.recall_lines(summary, ax, plots.panel_title(result, subset))
            numbers.append(summary.assign(subset=subset))
        shared_legend(figure, axes)
        figure.suptitle(plots.title_of(first, "Entity recall at t1"))
        table = pd.concat(numbers, ignore_index=True)
        paths = plots.save_figure(figure, table, rendered, "recall")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
