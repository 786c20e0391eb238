"""Draws what worlds compose that were trained with zero-hop facts: from a saved result."""

from __future__ import annotations

import pandas as pd

from hopscope.experiments.worlds.identity_bridge import IdentityBridge
from hopscope.experiments.worlds.identity_plots import zero_hop_bars
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.study.figures import alone, figure_script, main


@figure_script("identity_bridge", alone("identity_bridge", IdentityBridge))
def draw(result: IdentityBridge) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    summary, gains = result.summary(), result.gains()
    figure, ((axes,),) = panels(1, 1, 2.6)
    n_seeds = summary["n_seeds"].max()
    title = f"Zero-hop facts in training ({n_seeds} seeds, 95 % t intervals over them)"
    zero_hop_bars(summary, result.frame, axes, title)
    accuracy = summary.rename(columns={"accuracy": "value"}).assign(measure="accuracy")
    differences = gains.rename(columns={"difference": "value"}).assign(measure="difference")
    return figure, pd.concat([accuracy, differences], ignore_index=True)


if __name__ == "__main__":
    main(draw)
