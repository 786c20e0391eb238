"""Draws how many queries back-patching repairs, beside chance, and where: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.back_patching import BackPatching
from hopscope.plots import heatmaps
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels, shared_legend
from hopscope.study.figures import by_subset, figure_script, main

TITLES = {
    "incorrect": "Both hops right, composition wrong",
    "correct": "Composition right",
}


@figure_script("back_patching", by_subset("back_patching", BackPatching))
def draw(results: Mapping[str, BackPatching]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    figure = _figure(results)
    return figure, _numbers(results)


def _figure(results: Mapping[str, BackPatching]) -> Figure:
    first = next(iter(results.values()))
    positions = list(first.frame["position"].unique())
    columns = max(len(positions), 2)
    figure, axes = panels(1 + len(results), columns, 2.1 * (1 + len(results)) + 0.5)
    for ax, (name, result) in zip(axes[0], results.items(), strict=False):
        n = result.frame["query"].nunique()
        plots.success_bars(result.success_rate(), ax, f"{TITLES[name]} (n = {n})")
    for ax in axes[0][len(results) :]:
        ax.axis("off")
    shared_legend(figure, axes)
    for row, (name, result) in zip(axes[1:], results.items(), strict=True):
        shares = {position: result.heatmap(position) for position in positions}
        vmax = max(float(share.max().max()) for share in shares.values())
        for ax, position in zip(row, positions, strict=False):
            heatmaps.layer_heatmap(shares[position], ax, f"{TITLES[name]}, {position}", vmax)
    figure.suptitle(_title(first))
    return figure


def _title(result: BackPatching) -> str:
    run = result.run
    hits = "answer generated" if run["settings"]["criterion"] == "generation" else "answer ranked 1"
    return f"Back-patching {run['model']['name']} on “{run['queries']['name']}”: {hits}"


def _numbers(results: Mapping[str, BackPatching]) -> pd.DataFrame:
    """Every drawn number in one tidy table; `cell` rows are the heatmaps."""
    tables = []
    for name, result in results.items():
        tables.append(result.success_rate().assign(subset=name, panel="any cell"))
        for position in result.frame["position"].unique():
            shares = result.heatmap(position).melt(ignore_index=False, value_name="rate")
            cells = shares.dropna().reset_index()
            n = result.frame["query"].nunique()
            tables.append(
                cells.assign(subset=name, panel="cell", position=position, control="none", n=n)
            )
    keys = ["panel", "subset", "position", "control", "source_layer", "target_layer"]
    table = pd.concat(tables, ignore_index=True)[[*keys, "n", "rate", "low", "high"]]
    return table.astype({"source_layer": "Int64", "target_layer": "Int64"})


if __name__ == "__main__":
    main(draw)
