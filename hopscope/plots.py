"""Provides the pictures: tables in, matplotlib Axes out; nothing is computed here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

CONTROL_COLORS = {"none": "#0072B2", "other": "#E69F00", "random": "#8C8C8C"}
CONTROL_LABELS = {
    "none": "own later state",
    "other": "another query's state",
    "random": "random vector",
}
FORM_LABELS = {
    "first_hop": "first hop",
    "second_hop": "second hop",
    "two_hop": "two hops",
    "entity_shortcut": "entity shortcut",
    "relation_shortcut": "relation shortcut",
    "both_hops": "both single hops",
    "correct": "subset: correct",
    "incorrect": "subset: incorrect",
}
STYLE: Mapping[str, object] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "hopscope",
    "font.family": "DejaVu Sans",
}


def figure_style() -> AbstractContextManager[None]:
    """The context in which hopscope's figures are drawn; the same on every machine."""
    rc: dict[Any, Any] = {**mpl.rcParamsDefault, "backend": mpl.get_backend(), **STYLE}
    return mpl.rc_context(rc)


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=size, layout="constrained")[1]


def _errors(table: pd.DataFrame, value: str) -> np.ndarray:
    """Distances from the value down to `low` and up to `high`, shape (2, rows)."""
    below, above = table[value] - table["low"], table["high"] - table[value]
    errors: np.ndarray = np.nan_to_num(np.stack([below, above])).clip(min=0)
    return errors


def success_bars(rates: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Share of queries with the answer in any cell, by position, beside the controls.

    Args:
        rates: `BackPatching.success_rate()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = _axes(ax, (4.2, 3.0))
    positions = list(dict.fromkeys(rates["position"]))
    controls = [name for name in CONTROL_COLORS if name in set(rates["control"])]
    width = 0.8 / len(controls)
    for index, control in enumerate(controls):
        bars = rates[rates["control"] == control].set_index("position").reindex(positions)
        places = np.arange(len(positions)) + (index - (len(controls) - 1) / 2) * width
        ax.bar(
            places,
            bars["rate"],
            width * 0.92,
            yerr=_errors(bars, "rate"),
            color=CONTROL_COLORS[control],
            label=CONTROL_LABELS[control],
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#222222"},
        )
    ax.set_xticks(range(len(positions)), positions)
    ax.set(ylim=(0, 1), xlabel="patched position", ylabel="queries with the answer in any cell")
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    ax.set_title(title)
    return ax


def layer_heatmap(
    share: pd.DataFrame, ax: Axes | None = None, title: str = "", vmax: float | None = None
) -> Axes:
    """Source × target layers, shaded by the share of queries; cells that were not run are blank.

    Args:
        share: rows target layer, columns source layer (`BackPatching.heatmap()`).
        ax: where to draw.
        title: of the axes.
        vmax: share at the dark end of the colours; the largest one if None.
    """
    ax = _axes(ax, (4.2, 3.6))
    top = max(float(np.nanmax(share.to_numpy())) if vmax is None else vmax, 1e-9)
    table = share.sort_index(ascending=False)
    sns.heatmap(
        table,
        ax=ax,
        cmap="mako_r",
        vmin=0,
        vmax=top,
        xticklabels=_every([int(layer) for layer in table.columns]),
        yticklabels=_every([int(layer) for layer in table.index])[::-1],
        cbar_kws={
            "label": "queries answered",
            "format": mpl.ticker.PercentFormatter(1.0, decimals=0),
        },
    )
    ax.tick_params(rotation=0, length=2)
    ax.set(xlabel="source layer (read)", ylabel="target layer (replaced)", title=title)
    return ax


def _every(layers: list[int], most: int = 12) -> list[str]:
    """Labels of layers, every so many left out so that they do not touch."""
    step = -(-len(layers) // most)
    return [str(layer) if index % step == 0 else "" for index, layer in enumerate(sorted(layers))]


def grading_bars(summary: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Share of queries that pass each form, and that fall into each subset.

    Args:
        summary: `Grading.summary()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = _axes(ax, (5.6, 3.2))
    table = summary.set_index("what").loc[list(FORM_LABELS)].reset_index()
    colors = ["#0072B2"] * 3 + ["#8C8C8C"] * 2 + ["#56B4E9"] + ["#009E73", "#D55E00"]
    places = np.arange(len(table))
    ax.barh(
        places,
        table["share"],
        0.72,
        xerr=_errors(table, "share"),
        color=colors,
        error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#222222"},
    )
    for place, right, high in zip(places, table["right"], table["high"], strict=True):
        ax.text(high + 0.012, float(place), str(right), va="center", fontsize=8, color="#444444")
    ax.set_yticks(places, [FORM_LABELS[name] for name in table["what"]])
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel=f"share of {int(table['n'].iloc[0])} queries", title=title)
    ax.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    return ax


def save_figure(figure: Figure, numbers: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG, and the numbers that it draws as CSV.

    The same figure gives the same bytes: no date, no random ids. Each file is written beside its
    place and renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg", "csv")]
    for path in paths:
        beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        if path.suffix == ".csv":
            numbers.to_csv(beside, index=False, float_format="%.6g", lineterminator="\n")
        else:
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(beside, metadata=metadata)
        os.replace(beside, path)
    return paths
