"""Draws how the order of documents and the mask change the answers: from saved results."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from hopscope.experiments.documents import plots as document_plots
from hopscope.experiments.documents.permutation import Permutation
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import legend_below, panels
from hopscope.results.references import references
from hopscope.study.figures import figure_script, main, of_documents
from hopscope.study.reference_marks import marks

SETTINGS = {
    "paper": "answer only",
    "paper_cot": "chain of thought",
    "paper_cot_last_line": "chain of thought",
}
"""What the paper calls the templates of its authors."""
ENCODER_DECODERS = "Flan-T5"


@figure_script("document_order", of_documents("document_order", Permutation))
def draw(result: Permutation) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    table = result.accuracy()
    figure, ((ax,),) = panels(1, 1, 3.0)
    n = result.details["query"].nunique()
    document_plots.order_points(table, ax)
    reported = _reported(ax, result, list(dict.fromkeys(table["order"])))
    title = figures.title_of(result, "Order of documents and masks")
    figure.suptitle(f"{title} (n = {n})")
    return figure, pd.concat([table, reported]) if len(reported) else table


def _reported(ax: Axes, result: Permutation, orders: Sequence[str]) -> pd.DataFrame:
    """The paper's numbers, which are of the original order, of models of the same kind."""
    template = result.run["settings"].get("template")
    setting = SETTINGS.get(template) if isinstance(template, str) else None
    if setting is None or "original" not in orders:
        return pd.DataFrame()
    encodes, place = result.run["model"]["family"] == "t5", orders.index("original") + 0.42
    models = references("document_order", setting=setting)["model"]
    places = {(each,): place for each in models if each.startswith(ENCODER_DECODERS) == encodes}
    same = {"template": template}
    reported = marks(
        ax, result, "document_order", places, by=("model",), instead=same, setting=setting
    )
    if len(reported):
        ax.set_ylim(top=max(ax.get_ylim()[1], 1.08 * reported["value"].max()))
        legend_below(ax, gap=0.5 if len(orders) > 6 else 0.22)
    return reported


if __name__ == "__main__":
    main(draw)
