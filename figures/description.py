"""Draws what states are described as, beside chance, and from which layers: from saved results."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import pandas as pd

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.description import Description
from hopscope.plots import figures, heatmaps
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels, shared_legend
from hopscope.study.figures import by_subset, figure_script, main

PANELS = (("e2", "t1"), ("e2", "t2"), ("e3", "t2"))


@figure_script("description", by_subset("description", Description))
def draw(results: Mapping[str, Description]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    first = next(iter(results.values()))
    figure, axes = panels(1 + len(results), 3, 2.0 * (1 + len(results)) + 0.5)
    numbers = []
    for ax, (subset, result) in zip(axes[0], results.items(), strict=False):
        described = result.described()
        title = textwrap.fill(figures.panel_title(result, subset), 26)
        plots.described_bars(described, ax, title)
        numbers.append(described.assign(subset=subset, panel="any cell"))
    for ax in axes[0][len(results) :]:
        ax.axis("off")
    shared_legend(figure, axes)
    for row, (subset, result) in zip(axes[1:], results.items(), strict=True):
        for ax, (entity, position) in zip(row, PANELS, strict=True):
            share = result.heatmap(entity, position)
            title = f"{entity} at {position}, {subset}"
            heatmaps.layer_heatmap(share, ax, title, label="texts that name it")
            cells = share.melt(ignore_index=False, value_name="share").reset_index()
            numbers.append(
                cells.assign(subset=subset, panel="cell", entity=entity, position=position)
            )
    figure.suptitle(figures.title_of(first, "What states are described as"))
    table = pd.concat(numbers, ignore_index=True)
    return figure, table


if __name__ == "__main__":
    main(draw)
