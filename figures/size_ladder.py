"""Draws what back-patching gains over its controls, and how often stages break, by model size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from hopscope.errors import NoResultError
from hopscope.experiments.two_hop.back_patching import BackPatching
from hopscope.experiments.two_hop.stages import Stages
from hopscope.plots.figures import SUBSET_TITLES, Drawn
from hopscope.plots.style import (
    BLUE,
    ERROR_BARS,
    FAINT,
    GREEN,
    GREY,
    VERMILION,
    difference_mark,
    errors_of,
    panels,
    shared_legend,
)
from hopscope.results.run_folder import is_run
from hopscope.results.wording import CONTROL_NAMES
from hopscope.statistics import holm
from hopscope.study.figures import figure_script, main, runs_folder
from hopscope.study.standalone_figures import LADDER

SUBSETS = ("incorrect", "correct")
CELLS = {"any": "Any cell", "best": "Best cell of one half, on the other"}
COLORS = {"t1": BLUE, "t2": VERMILION}
MARKERS = {"other": "o", "random": "s"}
"""A filled mark is a gain that is told apart from zero, corrected for all gains of the figure."""


@figure_script("size_ladder", runs_folder)
def draw(runs: Path) -> Drawn:
    """Draw the models of the ladder that have results, from `runs/size_ladder/MODEL`."""
    root = runs / "size_ladder"
    found = [_numbers(root / name, name, subset) for name in LADDER for subset in SUBSETS]
    table = pd.concat([rows for each in found for rows in each] or [pd.DataFrame()])
    if table.empty:
        raise NoResultError(
            f"{root} holds no result of a model: run `hopscope figures size_ladder`"
        )
    table["p_holm"] = holm(table["p"].to_numpy(dtype=float))
    models = [model for model in LADDER if model in set(table["model"])]
    staged = bool((table["cells"] == "stages").any())
    figure, axes = panels(len(SUBSETS), 2 + staged, 5.4)
    for row, subset in zip(axes, SUBSETS, strict=True):
        rows = table[table["subset"] == subset]
        for ax, (cells, title) in zip(row, CELLS.items(), strict=False):
            _gains(ax, rows[rows["cells"] == cells], title, models)
        row[0].set_ylabel(f"{SUBSET_TITLES[subset]}\n\ngain over the control, points")
        if staged:
            _broken(row[-1], rows[rows["cells"] == "stages"], models)
    shared_legend(figure, axes)
    order = " and the order of the stages" if staged else ""
    figure.suptitle(f"Back-patching{order}, by model size")
    return figure, table


def _numbers(folder: Path, model: str, subset: str) -> list[pd.DataFrame]:
    """What is drawn of one model and subset; nothing if it has no result."""
    patched, stages = (folder / f"{step}.{subset}" for step in ("back_patching", "stages"))
    tables = [BackPatching.load(patched).gains()] if is_run(patched) else []
    if is_run(stages):
        broken = Stages.load(stages).broken().query("earlier == 'any'")
        tables.append(broken[["n", "broken", "share", "low", "high"]].assign(cells="stages"))
    return [table.assign(model=model, subset=subset) for table in tables]


def _gains(ax: Axes, rows: pd.DataFrame, title: str, models: Sequence[str]) -> None:
    """Gains in points: a colour for each position, a mark for each control."""
    looks = [(position, control) for position in COLORS for control in MARKERS]
    for index, (position, control) in enumerate(looks):
        chosen = rows[(rows["position"] == position) & (rows["control"] == control)]
        offset, color = (index - (len(looks) - 1) / 2) * 0.17, COLORS[position]
        label = f"{position}, over {CONTROL_NAMES[control]}"
        ax.plot([], [], MARKERS[control], color=color, ms=4, label=label)
        for row in chosen.to_dict("records"):
            place = models.index(row["model"]) + offset
            difference_mark(ax, place, row, MARKERS[control], color)
    ax.axhline(0, color=GREY, lw=0.8, zorder=0)
    _model_axis(ax, rows, title, models, symbol="")


def _broken(ax: Axes, rows: pd.DataFrame, models: Sequence[str]) -> None:
    """Shares of the queries in which some pair of stages is in another order than the paper's."""
    if len(rows):  # a model of which only back-patching is there has no stages
        places = [models.index(model) for model in rows["model"]]
        errors = errors_of(rows, "share")
        ax.errorbar(places, rows["share"], errors, fmt="D", ms=4, color=GREEN, **ERROR_BARS)
    ax.set_ylabel("queries that break the order")
    _model_axis(ax, rows, "Stages", models)
    ax.set_ylim(-0.03, 1.03)


def _model_axis(
    ax: Axes, rows: pd.DataFrame, title: str, models: Sequence[str], symbol: str = "%"
) -> None:
    """The models by size, with the number of queries of each."""
    n = rows.groupby("model")["n"].max()
    names = [f"{model}\n(n = {int(n[model])})" if model in n else model for model in models]
    ax.set_xticks(np.arange(len(models)), names, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.5, len(models) - 0.5)
    ax.set_title(title)
    ax.grid(axis="y", color=FAINT, lw=0.6)
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0, symbol=symbol))


if __name__ == "__main__":
    main(draw)
