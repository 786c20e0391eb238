"""Draws when each stage of the computation first shows: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.stages import Stages
from hopscope.plots import figures
from hopscope.plots.style import figure_style, panels
from hopscope.study.figures import results_of


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/stages.*` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    results = results_of(runs, "stages", Stages)
    first = next(iter(results.values()))
    with figure_style():
        figure, axes = panels(len(results), 1, 2.4 * len(results))
        numbers = []
        for ax, (subset, result) in zip(axes[:, 0], results.items(), strict=True):
            plots.stage_axis(
                result.frame, result.summary(), ax, figures.panel_title(result, subset)
            )
            ax.set_xlim(-0.5, first.run["model"]["n_layers"] - 0.5)
            numbers.append(result.summary().assign(subset=subset, panel="first layer"))
            numbers.append(result.broken().assign(subset=subset, panel="broken order"))
        figure.suptitle(figures.title_of(first, "Stages"))
        table = pd.concat(numbers, ignore_index=True)
        paths = figures.save_figure(figure, table, rendered, "stages")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
