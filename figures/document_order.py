"""Draws how the order of documents and the mask change the answers: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot as plt

from hopscope.experiments.documents import plots as document_plots
from hopscope.experiments.documents.permutation import Permutation
from hopscope.plots import figures
from hopscope.plots.style import figure_style, panels
from hopscope.study.figures import results_of


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/document_order.documents` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    result = results_of(runs, "document_order", Permutation)["documents"]
    with figure_style():
        table = result.accuracy()
        figure, ((ax,),) = panels(1, 1, 3.0)
        n = result.details["query"].nunique()
        document_plots.order_points(table, ax)
        title = figures.title_of(result, "Order of documents and masks")
        figure.suptitle(f"{title} (n = {n})")
        paths = figures.save_figure(figure, table, rendered, "document_order")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
