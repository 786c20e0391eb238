"""Draws how hard right and wrong answers look at a document: from saved results."""

from __future__ import annotations

import pandas as pd

from hopscope.experiments.documents import plots as document_plots
from hopscope.experiments.documents.attention import DocumentAttention
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import legend_below, parts
from hopscope.study.figures import figure_script, main, of_documents
from hopscope.study.reference_marks import marks


@figure_script("attention_peaks", of_documents("attention_peaks", DocumentAttention))
def draw(result: DocumentAttention) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    peaks, compare, layers = result.peaks(), result.compare(), result.by_layer()
    order, mask = compare["order"].iloc[0], compare["mask"].iloc[0]
    here = layers[(layers["order"] == order) & (layers["mask"] == mask)]
    hops = document_plots.hops_of(here)
    figure, (top, below) = parts(2, 4.8)
    ax = top.subplots()
    document_plots.peak_strips(peaks, compare, ax)
    orders = list(compare["order"])
    place = orders.index("original") if "original" in orders else 0  # the paper does not say
    sides = {
        ("right" if right else "wrong",): place + 2 * side
        for right, side in document_plots.ANSWER_SIDES.items()
    }
    reported = marks(ax, result, "attention_peaks", sides, by=("subset",))
    if len(reported):
        legend_below(ax, gap=0.48)
    axes = below.subplots(1, len(hops), sharex=True, sharey=True, squeeze=False)
    for ax, hop in zip(axes[0], hops, strict=True):
        document_plots.hop_lines(here[here["hop"] == hop], ax, f"order {order}")
        ax.set_ylabel("" if hop != hops[0] else ax.get_ylabel())
    n = result.details["query"].nunique()
    title = figures.title_of(result, "Attention of the answer to documents")
    figure.suptitle(f"{title} (n = {n})")
    table = pd.concat(
        [
            peaks.assign(what="peak"),
            layers.assign(what="layer"),
            *([reported.assign(what="reference")] if len(reported) else []),
        ]
    )
    return figure, table


if __name__ == "__main__":
    main(draw)
