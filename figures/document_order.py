"""Draws how the order of documents and the mask change the answers: from saved results."""

from __future__ import annotations

from hopscope.experiments.documents import plots as document_plots
from hopscope.experiments.documents.permutation import Permutation
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.study.figures import figure_script, main, of_documents


@figure_script("document_order", of_documents("document_order", Permutation))
def draw(result: Permutation) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    table = result.accuracy()
    figure, ((ax,),) = panels(1, 1, 3.0)
    n = result.details["query"].nunique()
    document_plots.order_points(table, ax)
    title = figures.title_of(result, "Order of documents and masks")
    figure.suptitle(f"{title} (n = {n})")
    return figure, table


if __name__ == "__main__":
    main(draw)
