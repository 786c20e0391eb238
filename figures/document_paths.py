"""Draws which edges between documents and question carry the answer: from saved results."""

from __future__ import annotations

import pandas as pd

from hopscope.experiments.documents.masked_paths import MaskedPaths
from hopscope.experiments.documents.plots import PATH_LABELS
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.lines import edge_legend, edge_panels
from hopscope.plots.style import parts
from hopscope.study.figures import figure_script, main, of_documents


@figure_script("document_paths", of_documents("document_paths", MaskedPaths))
def draw(result: MaskedPaths) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    figure, (place,) = parts(1, 3.5)
    effects = {measure: result.effect(measure) for measure in ("changed", "answer_change")}
    control = "the same edge to a distractor blocked"
    edge_panels(place, effects, PATH_LABELS, "distractor", control)
    edge_legend(figure)
    window = 2 * result.run["settings"]["window"] + 1
    figure.suptitle(figures.title_of(result, f"Masked paths in windows of {window} layers"))
    table = pd.concat(
        [each.assign(measure=name) for name, each in effects.items()], ignore_index=True
    )
    return figure, table


if __name__ == "__main__":
    main(draw)
