"""Draws which states of another question carry its answer along: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.activation_patching import ActivationPatching
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels, shared_legend
from hopscope.study.figures import by_subset, figure_script, main


@figure_script("patching", by_subset("patching", ActivationPatching))
def draw(results: Mapping[str, ActivationPatching]) -> Drawn:
    """Draw the figure, and give the numbers that it shows.

    Recovery counts that the own answer is gone, which random vectors do, too; flips count that the
    other answer is there.
    """
    first = next(iter(results.values()))
    positions = list(first.frame["position"].unique())
    rows = 2 * len(results)
    figure, axes = panels(rows, len(positions), 2.0 * rows + 0.6, sharex=True, sharey="row")
    numbers = []
    for number, (subset, result) in enumerate(results.items()):
        summary = result.summary()
        drawn = summary[summary["site"] != "z"]
        for column, position in enumerate(positions):
            here = drawn[drawn["position"] == position]
            title = position if len(results) == 1 else f"{position}, {subset}"
            plots.recovery_lines(here, axes[2 * number, column], title)
            plots.flip_lines(here, axes[2 * number + 1, column])
        numbers.append(summary.assign(subset=subset))
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    shared_legend(figure, axes)
    queries = ", ".join(figures.panel_title(result, subset) for subset, result in results.items())
    figure.suptitle(f"{figures.title_of(first, 'Activation patching')}; {queries}")
    return figure, pd.concat(numbers, ignore_index=True)


if __name__ == "__main__":
    main(draw)
