"""Draws when each stage of the computation first shows: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.stages import Stages
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.study.figures import by_subset, figure_script, main


@figure_script("stages", by_subset("stages", Stages))
def draw(results: Mapping[str, Stages]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    first = next(iter(results.values()))
    compared = {"correct", "incorrect"} <= set(results)
    n_panels = len(results) + compared
    figure, axes = panels(n_panels, 1, 2.4 * n_panels)
    numbers = []
    for ax, (subset, result) in zip(axes[:, 0], results.items(), strict=False):
        plots.stage_axis(result.frame, result.summary(), ax, figures.panel_title(result, subset))
        ax.set_xlim(-0.5, first.run["model"]["n_layers"] - 0.5)
        numbers.append(result.summary().assign(subset=subset, panel="first layer"))
        numbers.append(result.broken().assign(subset=subset, panel="broken order"))
    if compared:
        later = results["incorrect"].later_than(results["correct"])
        title = "later where the composition is wrong (all relations together)"
        plots.later_axis(later, axes[-1, 0], title)
        numbers.append(later.assign(subset="incorrect", panel="later than correct"))
    figure.suptitle(figures.title_of(first, "Stages"))
    table = pd.concat(numbers, ignore_index=True)
    return figure, table


if __name__ == "__main__":
    main(draw)
