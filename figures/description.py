"""Draws what states are described as, beside chance, and from which layers: from saved results."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import pandas as pd

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.description import Description
from hopscope.plots import figures, heatmaps
from hopscope.plots.figures import Drawn
from hopscope.plots.style import parts, shared_legend
from hopscope.results.wording import entity_name
from hopscope.study.figures import by_subset, figure_script, main
from hopscope.study.reference_marks import marks


def panels_of(result: Description) -> dict[tuple[str, str], str]:
    """The heatmaps with their names, each beside that of its control."""
    n_hops, found = len(result.entities) - 1, {}
    for entity, position in result.places():
        name = entity_name(entity, n_hops)
        found[entity, position] = f"{name} at {position}"
        found[f"{entity}_other", position] = f"another {name} at {position}"
    return found


@figure_script("description", by_subset("description", Description))
def draw(results: Mapping[str, Description]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    heights = [1.25, *(1 for _ in results)]
    figure, (top, *below) = parts(len(heights), 1.8 * sum(heights) + 0.6, height_ratios=heights)
    axes = top.subplots(1, len(results), sharey=True, squeeze=False)
    named_panels = panels_of(next(iter(results.values())))
    shares = {
        subset: {panel: result.heatmap(*panel) for panel in named_panels}
        for subset, result in results.items()
    }
    darkest = max(float(share.max().max()) for each in shares.values() for share in each.values())
    numbers = []
    for ax, part, (subset, result) in zip(axes[0], below, results.items(), strict=True):
        described, title = result.described(), figures.panel_title(result, subset)
        plots.described_bars(described, ax, title)
        own = plots.described_places(described)
        places = {(at, entity): place + plots.OWN_BAR for (entity, at), place in own.items()}
        reported = marks(ax, result, "description", places, measure="share", subset=subset)
        numbers += [reported.assign(panel="reference")] if len(reported) else []
        ax.label_outer(remove_inner_ticks=True)
        numbers.append(described.assign(subset=subset, panel="any cell"))
        named = {
            textwrap.fill(named_panels[each], 16): share for each, share in shares[subset].items()
        }
        heatmaps.layer_heatmaps(part, named, darkest, "texts that name it")
        part.suptitle(title)
        for (entity, position), share in shares[subset].items():
            cells = share.melt(ignore_index=False, value_name="share").reset_index()
            numbers.append(
                cells.assign(subset=subset, panel="cell", entity=entity, position=position)
            )
    shared_legend(figure, axes)
    figure.suptitle(figures.title_of(next(iter(results.values())), "What states are described as"))
    return figure, pd.concat(numbers, ignore_index=True)


if __name__ == "__main__":
    main(draw)
