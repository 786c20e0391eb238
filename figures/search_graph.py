"""Draws what a search through a graph is computed by, and how much of it is explained."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hopscope.experiments.worlds import graph_plots
from hopscope.experiments.worlds.computation_graph import ComputationGraph
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.study.figures import figure_script, main, runs_folder


@figure_script("search_graph", runs_folder)
def draw(runs: Path) -> Drawn:
    """Draw from `runs/search_graph/trained` and `untrained`."""
    trained = ComputationGraph.load(runs / "search_graph" / "trained")
    untrained = ComputationGraph.load(runs / "search_graph" / "untrained")
    models = {"trained": trained.explained(), "untrained": untrained.explained()}
    table = pd.concat([each.assign(model=name) for name, each in models.items()])
    figure, (axes,) = panels(1, 2, 3.2, width_ratios=(2.2, 1.2))
    trained.plot(_farthest(trained), axes[0])
    axes[0].set_xlabel(
        "E u v: edge from u to v;  Q s g: from start s to goal g;  P: the path begins"
    )
    graph_plots.explained_lines(table, axes[1])
    return figure, table


def _farthest(result: ComputationGraph) -> str:
    """A prompt with the largest lookahead of those that are explained and right."""
    details = result.details.sort_values(["joined", "correct", "group"], ascending=False)
    return str(details["query"].iloc[0])


if __name__ == "__main__":
    main(draw)
