"""Draws what happens when edges of attention are blocked, by layer: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from hopscope.experiments.two_hop.attention_knockout import Knockouts, Measure
from hopscope.experiments.two_hop.plots import KNOCKOUT_LABELS
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.lines import edge_legend, edge_panels
from hopscope.plots.style import parts
from hopscope.study.figures import by_subset, figure_script, main

MEASURES: tuple[Measure, ...] = ("changed", "prediction_change")


@figure_script("knockout", by_subset("knockout", Knockouts))
def draw(results: Mapping[str, Knockouts]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    first = next(iter(results.values()))
    figure, places = parts(len(results), 3.1 * len(results) + 0.5)
    numbers = []
    for place, (subset, result) in zip(places, results.items(), strict=True):
        effects: dict[str, pd.DataFrame] = {each: result.effect(each) for each in MEASURES}
        control = "as many random edges from the same token"
        edge_panels(place, effects, KNOCKOUT_LABELS, "random", control)
        place.suptitle(figures.panel_title(result, subset))
        numbers += [each.assign(subset=subset, measure=name) for name, each in effects.items()]
    edge_legend(figure)
    window = 2 * first.run["settings"]["window"] + 1
    figure.suptitle(figures.title_of(first, f"Attention knockout in windows of {window} layers"))
    table = pd.concat(numbers, ignore_index=True)
    return figure, table


if __name__ == "__main__":
    main(draw)
