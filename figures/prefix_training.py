"""Draws what models answer that were trained under different masks: from a saved result."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope.experiments.documents import training_plots
from hopscope.experiments.documents.prefix_training import PrefixTraining
from hopscope.plots import figures
from hopscope.plots.style import figure_style, panels


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/prefix_training` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    result = PrefixTraining.load(runs / "prefix_training")
    summary, by_seed, paired = result.summary(), result.by_seed(), result.paired()
    with figure_style():
        figure, ((left, right),) = panels(1, 2, 3.0, width_ratios=[2.2, 1])
        seeds = int(summary["n_seeds"].max())
        title = figures.title_of(result, "Training with a mask")
        training_plots.mask_arms(
            summary, by_seed, left, f"{title}\n{seeds} seeds, 95 % t intervals over them"
        )
        training_plots.mask_gains(
            paired, by_seed, right, "Each under its own mask,\npaired by seed"
        )
        accuracy = summary.rename(columns={"accuracy": "value"}).assign(measure="accuracy")
        gains = paired.rename(columns={"difference": "value"}).assign(measure="difference")
        table = pd.concat([accuracy, gains], ignore_index=True)
        paths = figures.save_figure(figure, table, rendered, "prefix_training")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
