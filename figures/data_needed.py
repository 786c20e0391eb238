"""Draws how many examples a composition takes by the size of its tables: from a saved result."""

from __future__ import annotations

from hopscope.experiments.worlds.coverage_plots import examples_curves
from hopscope.experiments.worlds.data_needed import LEARNED, DataNeeded
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.study.figures import alone, figure_script, main


@figure_script("data_needed", alone("data_needed", DataNeeded))
def draw(result: DataNeeded) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    figure, (axes,) = panels(1, 2, 2.6)
    examples_curves(result.frame, LEARNED, axes[0])
    result.plot(axes[1])
    table = result.frame.drop(columns="seconds")
    return figure, table


if __name__ == "__main__":
    main(draw)
