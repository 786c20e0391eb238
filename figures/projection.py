"""Draws where attention, MLP and residual stream say bridge and answer: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.projection import Projection
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels, shared_legend
from hopscope.study.figures import by_subset, figure_script, main

RANK = 9
"""Drawn; rank 0, the paper's criterion, stands in the numbers beside it."""


@figure_script("projection", by_subset("projection", Projection))
def draw(results: Mapping[str, Projection]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    first = next(iter(results.values()))
    subset, result = (
        ("correct", results["correct"]) if "correct" in results else (next(iter(results.items())))
    )
    by_layer = result.by_layer(RANK)
    positions, sites = (list(dict.fromkeys(by_layer[key])) for key in ("position", "site"))
    figure, axes = panels(len(positions), len(sites), 1.9 * len(positions) + 0.5, sharey=True)
    for row, position in zip(axes, positions, strict=True):
        here = by_layer[by_layer["position"] == position]
        for ax, site in zip(row, sites, strict=True):
            plots.projection_lines(here, ax, position, site)
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    shared_legend(figure, axes)
    what = f"Among the {RANK + 1} likeliest tokens"
    title = f"{figures.title_of(first, what)}; {figures.panel_title(result, subset)}"
    figure.suptitle(title)
    table = pd.concat(
        [
            each.by_layer(rank).assign(subset=name, rank=rank)
            for name, each in results.items()
            for rank in (0, RANK)
        ],
        ignore_index=True,
    )
    return figure, table


if __name__ == "__main__":
    main(draw)
