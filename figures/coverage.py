"""Draws what is learned when, by how well it is covered, and what states are grouped by."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope import plots
from hopscope.style import figure_style, panels
from hopscope.worlds import Emergence
from hopscope.worlds.coverage_plot import cutoff_curves, gap_curves


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/coverage/coverage` and `.../coverage-path-ambiguity`.

    Raises:
        ResultError: if there is no such result.
    """
    plain = Emergence.load(runs / "coverage" / "coverage").frame
    ambiguous = Emergence.load(runs / "coverage" / "coverage-path-ambiguity").frame
    with figure_style():
        figure, (axes,) = panels(1, 3, 3.0)
        cutoff_curves(plain[plain["measure"] == "accuracy"], axes[0], "two hops")
        gap_curves(plain, axes[1], "two hops")
        gap_curves(ambiguous, axes[2], "x2 also leads to the answer")
        table = pd.concat([plain.assign(world="coverage"), ambiguous.assign(world="ambiguous")])
        paths = plots.save_figure(figure, table, rendered, "coverage")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
