"""Draws how often t1 recalls the bridge better than in another question: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.entity_recall import Recall
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.results.wording import SUBSTITUTES
from hopscope.study.figures import by_subset, figure_script, main


@figure_script("recall", by_subset("recall", Recall))
def draw(results: Mapping[str, Recall]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    return figures.summary_panels(
        results, plots.recall_lines, "Entity recall at t1", "substitute", SUBSTITUTES
    )


if __name__ == "__main__":
    main(draw)
