"""Draws what is learned when, by how well it is covered, and what states are grouped by."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope.experiments.worlds.coverage_plots import cutoff_curves, gap_curves, gaps_at_x2
from hopscope.experiments.worlds.emergence import Emergence
from hopscope.plots import figures
from hopscope.plots.style import figure_style, panels
from hopscope.study import standalone_figures

TITLES = {
    "coverage": "two hops, 20 bridges",
    "coverage-few-bridges": "two hops, 4 bridges",
    "coverage-path-ambiguity": "4 bridges, x2 also leads to the answer",
}


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/coverage/coverage.seed-0` and so on, a row for each world.

    Raises:
        ResultError: if a result is not there.
    """
    numbers = []
    with figure_style():
        figure, axes = panels(len(standalone_figures.COVERED), 2, 8.4)
        for row, name in zip(axes, standalone_figures.COVERED, strict=True):
            seeds = {
                seed: Emergence.load(runs / "coverage" / f"{name}.seed-{seed}").frame
                for seed in standalone_figures.SEEDS
            }
            table = pd.concat([frame.assign(seed=seed) for seed, frame in seeds.items()])
            accuracy = table[table["measure"] == "accuracy"]
            cutoff_curves(accuracy, row[0], TITLES[name])
            gap_curves(table, row[1], TITLES[name])
            numbers.append(pd.concat([accuracy, gaps_at_x2(table)]).assign(world=name))
        paths = figures.save_figure(figure, pd.concat(numbers), rendered, "coverage")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
