"""Draws what happens when edges of attention are blocked, by layer: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.attention_knockout import Knockouts, Measure
from hopscope.plots import figures
from hopscope.plots.style import figure_style, panels, shared_legend
from hopscope.study.figures import results_of

MEASURES: tuple[Measure, ...] = ("changed", "prediction_change")


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/knockout.*` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    results = results_of(runs, "knockout", Knockouts)
    first = next(iter(results.values()))
    with figure_style():
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
        paths = figures.save_figure(figure, table, rendered, "knockout")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
