"""Draws how many keys the heads of models retrieve, and whether ranks are drawn to neighbours."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope.errors import ResultError
from hopscope.experiments.two_hop import head_plots
from hopscope.experiments.two_hop.head_retrieval import HeadRetrieval
from hopscope.experiments.two_hop.rank_neighbours import RankNeighbours
from hopscope.plots import figures
from hopscope.plots.style import figure_style, panels
from hopscope.results.run_folder import is_run
from hopscope.study.standalone_figures import HEADS


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure, a row a model, from `runs/head_classes/MODEL` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    root = runs / "head_classes"
    folders = [each for each in sorted(root.glob("*")) if is_run(each / "head_classes")]
    if not folders:
        raise ResultError(f"{root} holds no result of a model: run `hopscope figures head_classes`")
    folders.sort(key=lambda each: HEADS.index(each.name) if each.name in HEADS else len(HEADS))
    tables = []
    with figure_style():
        figure, axes = panels(len(folders), 3, 2.2 * len(folders), width_ratios=(2.6, 0.7, 1.1))
        for row, folder in zip(axes, folders, strict=True):
            neighbours = RankNeighbours.load(folder / "rank_neighbours")
            heads = HeadRetrieval.load(folder / "head_classes")
            model = heads.run["model"]["name"]
            by_layer, accuracy, drawn = heads.by_layer(), neighbours.accuracy(), neighbours.drawn()
            head_plots.class_bars(by_layer, row[0], model)
            head_plots.drawn_bars(drawn, row[1])
            head_plots.neighbour_points(accuracy, row[2])
            if folder != folders[-1]:
                row[2].get_legend().remove()
            classes = by_layer.reset_index().melt("layer", value_name="share")
            tables += [each.assign(model=model) for each in (classes, drawn, accuracy)]
        paths = figures.save_figure(figure, pd.concat(tables), rendered, "head_classes")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
