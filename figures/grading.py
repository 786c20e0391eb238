"""Draws how many queries pass each hop, the composition and the shortcuts: from a saved result."""

from __future__ import annotations

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.grading import Grading
from hopscope.plots.figures import Drawn
from hopscope.plots.style import COLUMN, panels
from hopscope.study.figures import alone, figure_script, main


@figure_script("grading", alone("grading", Grading))
def draw(result: Grading) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    summary = result.summary()
    figure, ((ax,),) = panels(1, 1, 2.6, width=COLUMN)
    run = result.run
    plots.grading_bars(summary, ax, f"{run['model']['name']} on “{run['queries']['name']}”")
    return figure, summary


if __name__ == "__main__":
    main(draw)
