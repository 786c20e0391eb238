"""Draws how well a linear probe reads the bridge, by layer: from a saved result."""

from __future__ import annotations

from collections.abc import Mapping

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.probing import Probing
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import COLUMN, panels
from hopscope.study.figures import by_subset, figure_script, main


@figure_script("probing", by_subset("probing", Probing))
def draw(results: Mapping[str, Probing]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    first = next(iter(results.values()))
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
    return figure, table


if __name__ == "__main__":
    main(draw)
