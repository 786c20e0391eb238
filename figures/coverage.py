"""Draws what is learned when, by how well it is covered, and what states are grouped by."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hopscope.experiments.worlds.coverage_plots import cutoff_curves, gap_curves, gaps_at_x2
from hopscope.experiments.worlds.emergence import Emergence
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.study import standalone_figures
from hopscope.study.figures import figure_script, main, runs_folder

TITLES = {
    "coverage": "two hops, 20 bridges",
    "coverage-few-bridges": "two hops, 4 bridges",
    "coverage-path-ambiguity": "4 bridges, x2 also leads to the answer",
}


@figure_script("coverage", runs_folder)
def draw(runs: Path) -> Drawn:
    """Draw a row for each world, from `runs/coverage/coverage.seed-0` and so on."""
    numbers = []
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
    return figure, pd.concat(numbers)


if __name__ == "__main__":
    main(draw)
