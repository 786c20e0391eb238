"""Draws what models answer that were trained under different masks: from a saved result."""

from __future__ import annotations

import pandas as pd

from hopscope.experiments.documents import training_plots
from hopscope.experiments.documents.prefix_training import PrefixTraining
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.study.figures import alone, figure_script, main


@figure_script("prefix_training", alone("prefix_training", PrefixTraining))
def draw(result: PrefixTraining) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    summary, by_seed, paired = result.summary(), result.by_seed(), result.paired()
    figure, ((left, right),) = panels(1, 2, 3.0, width_ratios=[2.2, 1])
    seeds = int(summary["n_seeds"].max())
    title = figures.title_of(result, "Training with a mask")
    training_plots.mask_arms(
        summary, by_seed, left, f"{title}\n{seeds} seeds, 95 % t intervals over them"
    )
    training_plots.mask_gains(paired, by_seed, right, "Each under its own mask,\npaired by seed")
    accuracy = summary.rename(columns={"accuracy": "value"}).assign(measure="accuracy")
    gains = paired.rename(columns={"difference": "value"}).assign(measure="difference")
    table = pd.concat([accuracy, gains.drop(columns="p_holm")], ignore_index=True)
    return figure, table


if __name__ == "__main__":
    main(draw)
