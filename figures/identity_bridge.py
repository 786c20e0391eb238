"""Draws what worlds compose that were trained with zero-hop facts: from saved results."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hopscope.experiments.worlds.identity_bridge import IdentityBridge
from hopscope.experiments.worlds.identity_plots import zero_hop_bars
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels, shared_legend
from hopscope.study.figures import figure_script, main, runs_folder
from hopscope.study.standalone_figures import BRIDGED


@figure_script("identity_bridge", runs_folder)
def draw(runs: Path) -> Drawn:
    """Draw from `runs/identity_bridge/WORLD`, a panel for each shape of the models."""
    figure, axes = panels(1, len(BRIDGED), 2.9, sharey=True)
    tables = []
    for ax, name in zip(axes[0], BRIDGED, strict=True):
        result = IdentityBridge.load(runs / "identity_bridge" / name)
        summary, gains = result.summary(), result.gains()
        zero_hop_bars(summary, result.frame, ax, f"{name}, {summary['n_seeds'].max()} seeds")
        accuracy = summary.rename(columns={"accuracy": "value"}).assign(measure="accuracy")
        differences = gains.rename(columns={"difference": "value"}).assign(measure="difference")
        tables += [each.assign(world=name) for each in (accuracy, differences)]
    for ax in axes[0, 1:]:
        ax.set_ylabel("")
    shared_legend(figure, axes)
    return figure, pd.concat(tables, ignore_index=True)


if __name__ == "__main__":
    main(draw)
