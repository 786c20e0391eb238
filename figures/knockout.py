"""Draws what happens when edges of attention are blocked, by layer: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.attention_knockout import Knockouts, Measure
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels, shared_legend
from hopscope.study.figures import by_subset, figure_script, main

MEASURES: tuple[Measure, ...] = ("changed", "prediction_change")


@figure_script("knockout", by_subset("knockout", Knockouts))
def draw(results: Mapping[str, Knockouts]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    first = next(iter(results.values()))
    figure, axes = panels(len(results), 2, 2.2 * len(results) + 0.5)
    numbers = []
    for row, (subset, result) in zip(axes, results.items(), strict=True):
        for ax, measure in zip(row, MEASURES, strict=True):
            effect = result.effect(measure)
            plots.knockout_lines(effect, ax, figures.panel_title(result, subset), measure)
            numbers.append(effect.assign(subset=subset, measure=measure))
    shared_legend(figure, axes)
    window = 2 * first.run["settings"]["window"] + 1
    figure.suptitle(figures.title_of(first, f"Attention knockout in {window} layers"))
    table = pd.concat(numbers, ignore_index=True)
    return figure, table


if __name__ == "__main__":
    main(draw)
