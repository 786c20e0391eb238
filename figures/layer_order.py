"""Draws from which layer on each entity of a chain is decoded: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.layer_order import LayerOrder
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.results.wording import row_where, with_interval
from hopscope.study.figures import by_subset, figure_script, main


@figure_script("layer_order", by_subset("layer_order", LayerOrder))
def draw(results: Mapping[str, LayerOrder]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    first = next(iter(results.values()))
    figure, axes = panels(1, len(results), 1.05 + 0.75 * first.n_hops)
    numbers = []
    for ax, (subset, result) in zip(axes[0], results.items(), strict=True):
        here, inversions = result.frame["position"] == result.end, result.inversions()
        title = figures.panel_title(result, subset)
        plots.first_layer_strips(result.frame[here], result.n_hops, ax, title)
        ax.set_xlim(-0.5, first.run["model"]["n_layers"] - 0.5)
        told = []
        for control, whose in (("none", "own"), ("other", "another query's")):
            row = row_where(
                inversions, position=result.end, control=control, earlier="any", later="any"
            )
            if row is not None and row["n"]:
                share = with_interval(row["share"], row["low"], row["high"])
                told.append(f"{whose} {share} of {row['n']}")
        joined = ",\n".join(told)
        ax.set_xlabel(f"first layer at {result.end}\ninverted: {joined or 'none to tell'}")
        numbers.append(result.decoded().assign(subset=subset, panel="first layer"))
        numbers.append(inversions.assign(subset=subset, panel="inversions"))
    figure.suptitle(figures.title_of(first, "From which layer on entities are decoded"))
    return figure, pd.concat(numbers, ignore_index=True)


if __name__ == "__main__":
    main(draw)
