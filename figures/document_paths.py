"""Draws which edges between documents and question carry the answer: from saved results."""

from __future__ import annotations

import pandas as pd

from hopscope.experiments.documents import plots as document_plots
from hopscope.experiments.documents.masked_paths import MaskedPaths
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels, shared_legend
from hopscope.study.figures import figure_script, main, of_documents


@figure_script("document_paths", of_documents("document_paths", MaskedPaths))
def draw(result: MaskedPaths) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
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
    return figure, table


if __name__ == "__main__":
    main(draw)
