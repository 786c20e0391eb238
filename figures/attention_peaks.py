"""Draws how hard right and wrong answers look at a document: from saved results."""

from __future__ import annotations

import pandas as pd

from hopscope.experiments.documents import plots as document_plots
from hopscope.experiments.documents.attention import DocumentAttention
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.study.figures import figure_script, main, of_documents


@figure_script("attention_peaks", of_documents("attention_peaks", DocumentAttention))
def draw(result: DocumentAttention) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
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
    return figure, table


if __name__ == "__main__":
    main(draw)
