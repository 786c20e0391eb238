"""Draws how well a linear probe reads the bridge, by layer: from a saved result."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot as plt

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.probing import Probing
from hopscope.plots import figures
from hopscope.plots.style import COLUMN, figure_style, panels
from hopscope.study.figures import results_of


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/probing.*` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    results = results_of(runs, "probing", Probing)
    first = next(iter(results.values()))
    with figure_style():
        figure, ((ax,),) = panels(1, 1, 2.9, width=COLUMN)
        settings, n = first.run["settings"], len(first.details)
        classes = first.details["label"].nunique()
        table = first.summary()
        plots.probe_lines(
            table,
            ax,
            f"{settings['target']} at {settings['position']}: {n} queries, {classes} classes",
        )
        figure.suptitle(figures.title_of(first, "Linear probe"))
        paths = figures.save_figure(figure, table, rendered, "probing")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
