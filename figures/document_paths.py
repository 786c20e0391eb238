"""Draws which edges between documents and question carry the answer: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope.experiments.documents import plots as document_plots
from hopscope.experiments.documents.masked_paths import MaskedPaths
from hopscope.plots import figures
from hopscope.plots.style import figure_style, panels, shared_legend
from hopscope.study.figures import results_of


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/document_paths.documents` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    result = results_of(runs, "document_paths", MaskedPaths)["documents"]
    with figure_style():
        figure, axes = panels(1, 2, 2.7)
        numbers = []
        for ax, measure in zip(axes[0], ("changed", "answer_change"), strict=True):
            effect = result.effect(measure)
            document_plots.path_lines(effect, ax, measure=measure)
            numbers.append(effect.assign(measure=measure))
        shared_legend(figure, axes)
        window = 2 * result.run["settings"]["window"] + 1
        n = result.details["query"].nunique()
        title = figures.title_of(result, f"Masked paths in {window} layers")
        figure.suptitle(f"{title} (n = {n})")
        table = pd.concat(numbers, ignore_index=True)
        paths = figures.save_figure(figure, table, rendered, "document_paths")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
