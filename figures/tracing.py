"""Draws which states bring the answer back when the source is noised: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope import plots
from hopscope.experiments import Tracing
from hopscope.study import results_of
from hopscope.style import figure_style, panels


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/tracing.*` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    results = results_of(runs, "tracing", Tracing)
    first = next(iter(results.values()))
    with figure_style():
        figure, axes = panels(1, len(results), 3.0)
        numbers = []
        for ax, (subset, result) in zip(axes[0], results.items(), strict=True):
            summary = result.summary()
            plots.tracing_lines(summary, ax, plots.panel_title(result, subset))
            numbers.append(summary.assign(subset=subset))
        figure.suptitle(plots.title_of(first, "Causal tracing"))
        table = pd.concat(numbers, ignore_index=True)
        paths = plots.save_figure(figure, table, rendered, "tracing")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
