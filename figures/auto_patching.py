"""Draws what patching by a probe repairs and breaks, beside its controls: from saved results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from hopscope.errors import ResultError
from hopscope.experiments.two_hop.auto_patching import AutoPatching
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.results.run_folder import is_run
from hopscope.study.figures import figure_script, main


def load(runs: Path) -> dict[str, AutoPatching]:
    """The results that lie in `runs/auto_patching`, by the name of their folder.

    Raises:
        ResultError: if there is none.
    """
    folders = sorted((runs / "auto_patching").glob(f"*/{AutoPatching.kind}"))
    found = {each.parent.name: AutoPatching.load(each) for each in folders if is_run(each)}
    if not found:
        raise ResultError(f"{runs / 'auto_patching'} holds no result: run `hopscope figures`")
    return found


@figure_script("auto_patching", load)
def draw(results: Mapping[str, AutoPatching]) -> Drawn:
    """Draw a panel for each result."""
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure, axes = panels(rows, columns, 2.5 * rows, sharey=True)
    for ax in axes.flat[len(results) :]:
        ax.set_visible(False)
    tables = []
    for ax, (name, result) in zip(axes.flat, results.items(), strict=False):
        result.plot(ax)
        tables += [result.rates().assign(run=name), result.net().assign(run=name)]
    figure.suptitle("Auto-patching: a probe of the clean states decides what is patched")
    return figure, pd.concat(tables, ignore_index=True)


if __name__ == "__main__":
    main(draw)
