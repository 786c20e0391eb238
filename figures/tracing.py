"""Draws which states bring the answer back when the source is noised: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.causal_tracing import Tracing
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.study.figures import by_subset, figure_script, main


@figure_script("tracing", by_subset("tracing", Tracing))
def draw(results: Mapping[str, Tracing]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    layers = 2 * next(iter(results.values())).run["settings"]["window"] + 1
    title = f"Causal tracing (attention and MLP in windows of {layers} layers)"
    return figures.summary_panels(results, plots.tracing_lines, title, "position")


if __name__ == "__main__":
    main(draw)
