"""Draws how many queries back-patching repairs, beside chance, and where: from saved results."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

import pandas as pd

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.back_patching import BackPatching
from hopscope.plots import figures, heatmaps
from hopscope.plots.figures import Drawn
from hopscope.plots.style import CONTROLS, parts, shared_legend
from hopscope.study.figures import by_subset, figure_script, main
from hopscope.study.reference_marks import marks

ANY, MEAN = "any cell", "mean of cells"
MEASURES = {
    ANY: "queries with the answer\nin any cell",
    MEAN: "cells with the answer,\nmean of queries",
}
DRAWN = {"incorrect": ANY, "correct": MEAN}
"""Right compositions have their answer in some cell, whatever is patched: that tells nothing."""


@figure_script("back_patching", by_subset("back_patching", BackPatching))
def draw(results: Mapping[str, BackPatching]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    numbers = pd.concat(_tables(results), ignore_index=True)
    heights = [1.25, *(1 for _ in results)]
    figure, (top, *below) = parts(len(heights), 1.8 * sum(heights) + 0.6, height_ratios=heights)
    axes = top.subplots(1, len(results), squeeze=False)
    for ax, (subset, result) in zip(axes[0], results.items(), strict=True):
        panel = DRAWN[subset]
        rates = numbers[(numbers["panel"] == panel) & (numbers["subset"] == subset)]
        plots.success_bars(rates, ax, figures.panel_title(result, subset), MEASURES[panel])
        if subset == "incorrect":  # of t1 and t2 together, so beside both
            reported = marks(ax, result, "back_patching", {("", ""): 0.5}, subset=subset)
            drawn = [numbers, *([reported.assign(panel="reference")] if len(reported) else [])]
            numbers = pd.concat(drawn, ignore_index=True)
    shared_legend(figure, axes)
    for part, (subset, result) in zip(below, results.items(), strict=True):
        cells = numbers[(numbers["panel"] == "cell") & (numbers["subset"] == subset)]
        shares = {
            textwrap.fill(f"{position}, {look.label}", 15): result.heatmap(position, control)
            for position in cells["position"].unique()
            for control, look in CONTROLS.items()
            if control in set(cells["control"])
        }
        heatmaps.layer_heatmaps(part, shares, cells["rate"].max(), "queries answered")
        part.suptitle(figures.panel_title(result, subset))
    figure.suptitle(_title(next(iter(results.values()))))
    return figure, numbers


def _title(result: BackPatching) -> str:
    hits = {"generation": "answer generated", "first_token": "answer ranked 1"}
    return (
        f"{figures.title_of(result, 'Back-patching')}: {hits[result.run['settings']['criterion']]}"
    )


def _tables(results: Mapping[str, BackPatching]) -> Iterator[pd.DataFrame]:
    """Every drawn number in tidy tables; `cell` rows are the heatmaps."""
    keys = ["panel", "subset", "position", "control", "source_layer", "target_layer"]
    for subset, result in results.items():
        frame = result.frame
        where = ["position", "control", "source_layer", "target_layer"]
        cells = frame.groupby(where, sort=False)["hit"].agg(n="size", rate="mean").reset_index()
        for panel, table in (
            (ANY, result.success_rate()),
            (MEAN, result.cell_rate()),
            ("cell", cells),
        ):
            rows = table.assign(subset=subset, panel=panel)
            rows = rows.reindex(columns=[*keys, "n", "rate", "low", "high"])
            yield rows.astype({"source_layer": "Int64", "target_layer": "Int64"})


if __name__ == "__main__":
    main(draw)
