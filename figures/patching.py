"""Draws which states of another question carry its answer along: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.activation_patching import ActivationPatching
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.study.figures import by_subset, figure_script, main


@figure_script("patching", by_subset("patching", ActivationPatching))
def draw(results: Mapping[str, ActivationPatching]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    return figures.summary_panels(results, plots.recovery_lines, "Activation patching")


if __name__ == "__main__":
    main(draw)
