"""Draws how hard right and wrong answers look at a document: from saved results."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from hopscope.experiments.documents import plots as document_plots
from hopscope.experiments.documents.attention import DocumentAttention
from hopscope.plots import figures
from hopscope.plots.style import figure_style, panels
from hopscope.study.figures import results_of


def draw(runs: Path, rendered: Path) -> list[Path]:
    """Draw the figure from `runs/attention_peaks.documents` into `rendered`.

    Raises:
        ResultError: if there is no such result.
    """
    result = results_of(runs, "attention_peaks", DocumentAttention)["documents"]
    with figure_style():
        peaks, compare, layers = result.peaks(), result.compare(), result.by_layer()
        figure, (axes,) = panels(1, 2, 3.1)
        document_plots.peak_strips(peaks, compare, axes[0])
        order, mask = compare["order"].iloc[0], compare["mask"].iloc[0]
        here = layers[(layers["order"] == order) & (layers["mask"] == mask)]
        document_plots.hop_lines(here, axes[1], f"order {order}")
        n = result.details["query"].nunique()
        title = figures.title_of(result, "Attention of the answer to documents")
        figure.suptitle(f"{title} (n = {n})")
        table = pd.concat([peaks.assign(what="peak"), layers.assign(what="layer")])
        paths = figures.save_figure(figure, table, rendered, "attention_peaks")
        plt.close(figure)
    return paths


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(__file__).parent / "rendered"):
        print(drawn)
