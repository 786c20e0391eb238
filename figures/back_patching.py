"""Draws how many queries back-patching repairs, beside chance, and where: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.back_patching import BackPatching
from hopscope.plots import figures, heatmaps
from hopscope.plots.style import figure_style, panels, shared_legend
from hopscope.study.figures import results_of

TITLES = {
    "incorrect": "Both hops right, composition wrong",
    "correct": "Composition right",
}


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/back_patching.{incorrect,correct}` into `rendered`.

    Raises:
        ResultError: if neither result is there.
    """
    there = results_of(runs, "back_patching", BackPatching)
    with figure_style():
        figure = _figure(there)
        paths = figures.save_figure(figure, _numbers(there), rendered, "back_patching")
        plt.close(figure)
    return paths


def _figure(results: dict[str, BackPatching]) -> Figure:
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


def _numbers(results: dict[str, BackPatching]) -> pd.DataFrame:
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
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
