"""Draws what conditions of the prompt repair and break: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.prompt_conditions import LABELS, PromptConditions
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.study.figures import by_subset, figure_script, main


@figure_script("prompt_conditions", by_subset("prompt_conditions", PromptConditions))
def draw(results: Mapping[str, PromptConditions]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    figure, axes = panels(1, len(results), 2.6, sharey=True)
    numbers = []
    for ax, (subset, result) in zip(axes[0], results.items(), strict=True):
        accuracy, gains = result.accuracy(), result.gains()
        plots.condition_bars(accuracy, gains, LABELS, ax, figures.panel_title(result, subset))
        ax.label_outer(remove_inner_ticks=True)
        tables = {"accuracy": accuracy, "gains": gains}
        numbers += [each.assign(subset=subset, panel=name) for name, each in tables.items()]
    first = next(iter(results.values()))
    figure.suptitle(figures.title_of(first, "Answers under conditions of the prompt"))
    return figure, pd.concat(numbers, ignore_index=True)


if __name__ == "__main__":
    main(draw)
