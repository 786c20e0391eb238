"""Draws how two to four hops are decoded, beside a world whose steps are known: saved results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from hopscope.experiments.two_hop import plots
from hopscope.experiments.two_hop.layer_order import OWN_HOP, LayerOrder
from hopscope.plots.figures import Drawn
from hopscope.plots.lines import share_axis
from hopscope.plots.style import CONTROLS, bar_look, bars, parts, shared_legend
from hopscope.study.figures import figure_script, main

WORLD = "three-hop-looped"
HOPS = {2: "world", 3: "world-three-hops", 4: "world-four-hops"}
LABELS = {"none": "own entities", "other": "another query's entities"}


def load(runs: Path) -> dict[str, LayerOrder]:
    """The results by query set."""
    folder = runs / "more_hops"
    return {
        name: LayerOrder.load(folder / name / "layer_order") for name in (WORLD, *HOPS.values())
    }


@figure_script("more_hops", load)
def draw(results: dict[str, LayerOrder]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    figure, (top, below) = parts(2, 6.6, height_ratios=(1, 1.2))
    left, right = top.subplots(1, 2)
    world = results[WORLD]
    known = f"A world, each entity where it is due (n = {world.n_queries})"
    plots.first_layer_strips(world.at(OWN_HOP), world.n_hops, left, known)
    chains = [results[name] for name in HOPS.values()]
    model = chains[0].run["model"]
    _inverted(chains, right)
    right.set_title(f"{model['name']}, at the end of the prompt")
    axes = below.subplots(1, len(chains))
    for ax, result in zip(axes, chains, strict=True):
        title = f"{result.n_hops} hops (n = {result.n_queries})"
        plots.first_layer_strips(result.at(), result.n_hops, ax, title)
        ax.set_xlim(-0.5, model["n_layers"] - 0.5)
    figure.suptitle("From which layer on the entities of a chain are decoded")
    numbers = [
        table.assign(panel=panel, queries=name)
        for name, result in results.items()
        for panel, table in (("decoded", result.decoded()), ("inversions", result.inversions()))
    ]
    shared_legend(figure, np.array([[right]]))
    return figure, pd.concat(numbers, ignore_index=True)


def _inverted(chains: list[LayerOrder], ax: Axes) -> None:
    """The share of queries whose order is inverted, by number of hops, beside the control."""
    tables = [
        table[(table["position"] == result.end) & (table["earlier"] == "any")].assign(
            hops=result.n_hops
        )
        for result in chains
        for table in (result.inversions(),)
    ]
    table = pd.concat(tables, ignore_index=True)
    for offset, control in ((-0.2, "none"), (0.2, "other")):
        rows = table[table["control"] == control].reset_index(drop=True)
        look = bar_look(CONTROLS[control]._replace(label=LABELS[control]))
        bars(ax, rows.index.to_numpy() + offset, rows, "share", 0.37, **look)
    counts = table.pivot(index="hops", columns="control", values="n")
    names = [f"{n} hops\n{row['none']}, {row['other']}" for n, row in counts.iterrows()]
    ax.set_xticks(range(len(chains)), names)
    ax.set_xlabel("queries that can tell: own, another's")
    ax.set_ylabel("queries with a later entity\nin an earlier layer")
    share_axis(ax)


if __name__ == "__main__":
    main(draw)
