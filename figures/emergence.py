"""Draws when a world learns to compose, and when each instrument sees it: from a saved result."""

from __future__ import annotations

from hopscope.experiments.worlds.emergence import Emergence
from hopscope.experiments.worlds.emergence_plots import circuit_curves, with_intervals
from hopscope.plots.figures import Drawn
from hopscope.study.figures import alone, figure_script, main


@figure_script("emergence", alone("emergence", Emergence))
def draw(result: Emergence) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    frame = with_intervals(result.frame)
    return circuit_curves(frame), frame


if __name__ == "__main__":
    main(draw)
