"""Draws what patching by a probe repairs and breaks, beside its controls: from saved results."""

from __future__ import annotations

from collections.abc import Mapping

from hopscope.experiments.two_hop.auto_patching import AutoPatching
from hopscope.plots.figures import Drawn, result_panels
from hopscope.study.figures import by_folder, figure_script, main


@figure_script("auto_patching", by_folder("auto_patching", AutoPatching))
def draw(results: Mapping[str, AutoPatching]) -> Drawn:
    """Draw a panel for each result."""
    title = "Auto-patching: a probe of the clean states decides what is patched"
    return result_panels(results, title, "rates", "net")


if __name__ == "__main__":
    main(draw)
