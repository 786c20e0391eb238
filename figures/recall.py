"""Draws how often t1 recalls the bridge better than in another question: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope import plots
from hopscope.experiments import Recall
from hopscope.study import results_of


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/recall.*` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    results = results_of(runs, "recall", Recall)
    first = next(iter(results.values()))
    with plots.figure_style():
        figure, axes = plt.subplots(
            1,
            len(results),
            figsize=(4.8 * len(results), 3.4),
            layout="constrained",
            squeeze=False,
            sharey=True,
        )
        numbers = []
        for ax, (subset, result) in zip(axes[0], results.items(), strict=True):
            summary = result.summary()
            plots.recall_lines(summary, ax, plots.panel_title(result, subset))
            ax.get_legend().remove()
            numbers.append(summary.assign(subset=subset))
        handles = axes[0][0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]))
        figure.suptitle(plots.title_of(first, "Entity recall at t1"), fontsize=11)
        table = pd.concat(numbers, ignore_index=True)
        paths = plots.save_figure(figure, table, rendered, "recall")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
