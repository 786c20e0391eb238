"""Draws what a trained attention to a higher layer repairs and breaks: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

from hopscope.experiments.two_hop.back_attention import BackAttending
from hopscope.plots.figures import Drawn, result_panels
from hopscope.study.figures import by_folder, figure_script, main


@figure_script("back_attention", by_folder("back_attention", BackAttending))
def draw(results: Mapping[str, BackAttending]) -> Drawn:
    """Draw a panel for each result."""
    title = "Back attention: a module trained to see a higher layer and later tokens, or not"
    return result_panels(results, title, "rates", "net")


if __name__ == "__main__":
    main(draw)
