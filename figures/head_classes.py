"""Draws how many keys the heads of models retrieve, and whether ranks are drawn to neighbours."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hopscope.errors import NoResultError
from hopscope.experiments.two_hop import head_plots
from hopscope.experiments.two_hop.head_retrieval import HeadRetrieval
from hopscope.experiments.two_hop.rank_neighbours import RankNeighbours
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.results.run_folder import is_run
from hopscope.study.figures import figure_script, main, runs_folder
from hopscope.study.standalone_figures import HEADS


@figure_script("head_classes", runs_folder)
def draw(runs: Path) -> Drawn:
    """Draw a row for each model, from `runs/head_classes/MODEL`."""
    root = runs / "head_classes"
    folders = [each for each in sorted(root.glob("*")) if is_run(each / "head_classes")]
    if not folders:
        raise NoResultError(
            f"{root} holds no result of a model: run `hopscope figures head_classes`"
        )
    folders.sort(key=lambda each: HEADS.index(each.name) if each.name in HEADS else len(HEADS))
    tables = []
    figure, axes = panels(len(folders), 3, 2.0 * len(folders) + 0.4, width_ratios=(2, 1, 1.2))
    for row, folder in zip(axes, folders, strict=True):
        neighbours = RankNeighbours.load(folder / "rank_neighbours")
        heads = HeadRetrieval.load(folder / "head_classes")
        model = heads.run["model"]["name"]
        by_layer, accuracy, drawn = heads.by_layer(), neighbours.accuracy(), neighbours.drawn()
        head_plots.class_bars(by_layer, row[0], model)
        head_plots.drawn_bars(drawn, row[1])
        head_plots.neighbour_points(accuracy, row[2])
        if folder != folders[-1]:
            for ax in (row[0], row[2]):
                ax.get_legend().remove()
        classes = by_layer.reset_index().melt("layer", value_name="share")
        tables += [each.assign(model=model) for each in (classes, drawn, accuracy)]
    return figure, pd.concat(tables)


if __name__ == "__main__":
    main(draw)
