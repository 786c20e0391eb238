"""Draws which vertices thoughts hold that cannot lag behind: from a saved result."""

from __future__ import annotations

from hopscope.experiments.worlds import graph_plots
from hopscope.experiments.worlds.superposition import Superposition
from hopscope.plots.figures import Drawn
from hopscope.study.figures import alone, figure_script, main


@figure_script("thoughts_ahead", alone("thoughts_ahead", Superposition))
def draw(result: Superposition) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    summary = result.summary()
    return graph_plots.superposition_figure(summary, "before"), summary


if __name__ == "__main__":
    main(draw)
