"""Draws what models answer that were trained under different masks: from a saved result."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot as plt

from hopscope import plots, training_plots
from hopscope.style import figure_style, panels
from hopscope.training_runs import PrefixTraining


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/prefix_training` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    result = PrefixTraining.load(runs / "prefix_training")
    summary = result.summary()
    with figure_style():
        figure, ((ax,),) = panels(1, 1, 3.0)
        seeds = int(summary["n_seeds"].max())
        title = plots.title_of(result, "Training with a mask")
        training_plots.mask_arms(
            summary, result.by_seed(), ax, f"{title}\n{seeds} seeds, 95 % t intervals over them"
        )
        paths = plots.save_figure(figure, summary, rendered, "prefix_training")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
