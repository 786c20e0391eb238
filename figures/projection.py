"""Draws where attention, MLP and residual stream say bridge and answer: from saved results."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import matplotlib as mpl
import pandas as pd

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.projection import Projection
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels, shared_legend
from hopscope.results.wording import entity_name
from hopscope.study.figures import by_subset, figure_script, main

RANK = 9
"""Drawn; rank 0, the paper's criterion, stands in the numbers beside it."""


@figure_script("projection", by_subset("projection", Projection))
def draw(results: Mapping[str, Projection]) -> Drawn:
    """Draw the figure, and give the numbers that it shows: a row for each target."""
    first = next(iter(results.values()))
    subset, result = (
        ("correct", results["correct"]) if "correct" in results else (next(iter(results.items())))
    )
    by_layer = result.by_layer(RANK)
    n_hops = result.n_hops
    targets = [each for each in plots.target_colors(n_hops) if each in set(by_layer["target"])]
    positions, sites = (list(dict.fromkeys(by_layer[key])) for key in ("position", "site"))
    places = list(product(positions, sites))
    shape, height = (len(targets), len(places)), 1.35 * len(targets) + 0.7
    figure, axes = panels(*shape, height, sharex=True, sharey=True)
    for row, target in zip(axes, targets, strict=True):
        named = by_layer["target"].isin([target, f"{target}_other"])
        for ax, (position, site) in zip(row, places, strict=True):
            here = by_layer[named & (by_layer["position"] == position)]
            plots.projection_lines(here, ax, position, site, n_hops)
            ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))
            ax.set_ylabel(f"queries that resolve\nthe {entity_name(target, n_hops)}")
            ax.label_outer()
    for ax in axes[1:].flat:
        ax.set_title("")
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
