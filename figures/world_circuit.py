"""Draws what the analyses read off worlds, where the truth is known: from a saved result."""

from __future__ import annotations

from hopscope.experiments.worlds.circuit import Circuit
from hopscope.experiments.worlds.circuit_plots import circuit_figure
from hopscope.plots.figures import Drawn
from hopscope.study.figures import alone, figure_script, main


@figure_script("world_circuit", alone("world_circuit", Circuit))
def draw(result: Circuit) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    figure = circuit_figure(result.frame)
    return figure, result.summary()


if __name__ == "__main__":
    main(draw)
