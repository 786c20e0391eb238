"""Draws what states are described as, beside chance, and from which layers: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope import plots
from hopscope.experiments import Description
from hopscope.study import results_of

PANELS = (("e2", "t1"), ("e2", "t2"), ("e3", "t2"))


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/description.*` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    results = results_of(runs, "description", Description)
    first = next(iter(results.values()))
    with plots.figure_style():
        figure, axes = plt.subplots(
            1 + len(results),
            3,
            figsize=(11.4, 2.9 + 3.1 * len(results)),
            layout="constrained",
            squeeze=False,
        )
        numbers = []
        for ax, (subset, result) in zip(axes[0], results.items(), strict=False):
            described = result.described()
            plots.described_bars(described, ax, plots.panel_title(result, subset))
            numbers.append(described.assign(subset=subset, panel="any cell"))
        for ax in axes[0][len(results) :]:
            ax.axis("off")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        for row, (subset, result) in zip(axes[1:], results.items(), strict=True):
            for ax, (entity, position) in zip(row, PANELS, strict=True):
                share = result.heatmap(entity, position)
                title = f"{entity} at {position}, {subset}"
                plots.layer_heatmap(share, ax, title, label="texts that name it")
                cells = share.melt(ignore_index=False, value_name="share").reset_index()
                numbers.append(
                    cells.assign(subset=subset, panel="cell", entity=entity, position=position)
                )
        figure.suptitle(plots.title_of(first, "What states are described as"), fontsize=11)
        table = pd.concat(numbers, ignore_index=True)
        paths = plots.save_figure(figure, table, rendered, "description")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
