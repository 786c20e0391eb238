"""Draws how well one of several shuffles of the documents is chosen: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot as plt

from hopscope.experiments.documents import plots as document_plots
from hopscope.experiments.documents.order_choice import OrderChoice
from hopscope.plots import figures
from hopscope.plots.style import COLUMN, figure_style, panels
from hopscope.study.figures import results_of


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/order_choice.documents` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    result = results_of(runs, "order_choice", OrderChoice)["documents"]
    with figure_style():
        table = result.summary()
        figure, ((ax,),) = panels(1, 1, 2.6, width=COLUMN)
        document_plots.strategy_points(table, ax)
        k, n = result.run["settings"]["k"], result.details["query"].nunique()
        title = figures.title_of(result, f"One of {k} shuffles")
        figure.suptitle(f"{title} (n = {n})")
        paths = figures.save_figure(figure, table, rendered, "order_choice")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
