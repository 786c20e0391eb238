"""Draws how well one of several shuffles of the documents is chosen: from saved results."""

from __future__ import annotations

import pandas as pd

from hopscope.experiments.documents import plots as document_plots
from hopscope.experiments.documents.order_choice import OrderChoice
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import COLUMN, legend_below, panels
from hopscope.study.figures import figure_script, main, of_documents
from hopscope.study.reference_marks import marks


@figure_script("order_choice", of_documents("order_choice", OrderChoice))
def draw(result: OrderChoice) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    table = result.summary()
    figure, ((ax,),) = panels(1, 1, 2.6, width=COLUMN)
    document_plots.strategy_points(table, ax)
    place = list(table["strategy"]).index("peak") + 0.2
    reported = marks(ax, result, "order_choice", {("", ""): place})
    if len(reported):
        legend_below(ax)
    k, n = result.run["settings"]["k"], result.details["query"].nunique()
    title = figures.title_of(result, f"One of {k} shuffles")
    figure.suptitle(f"{title} (n = {n})")
    return figure, pd.concat([table, reported]) if len(reported) else table


if __name__ == "__main__":
    main(draw)
