"""Draws what a search through a graph is computed by, and how much of it is explained."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope.experiments.worlds import graph_plots
from hopscope.experiments.worlds.computation_graph import ComputationGraph
from hopscope.plots import figures
from hopscope.plots.style import figure_style, panels


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/search_graph/trained` and `untrained` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    trained = ComputationGraph.load(runs / "search_graph" / "trained")
    untrained = ComputationGraph.load(runs / "search_graph" / "untrained")
    models = {"trained": trained.explained(), "untrained": untrained.explained()}
    table = pd.concat([each.assign(model=name) for name, each in models.items()])
    with figure_style():
        figure, (axes,) = panels(1, 2, 3.0, width_ratios=(2.6, 1))
        trained.plot(_farthest(trained), axes[0])
        graph_plots.explained_lines(table, axes[1])
        paths = figures.save_figure(figure, table, rendered, "search_graph")
        plt.close(figure)
    return paths


def _farthest(result: ComputationGraph) -> str:
    """A prompt with the largest lookahead of those that are explained and right."""
    details = result.details.sort_values(["joined", "correct", "group"], ascending=False)
    return str(details["query"].iloc[0])


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
