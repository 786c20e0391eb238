"""Provides titles, panels of summaries, and the saving of a figure with its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hopscope.files import replacing
from hopscope.plots.style import panels, shared_legend

Drawn = tuple[Figure, pd.DataFrame]
"""A figure, and the numbers that it draws."""
SUBSET_TITLES = {
    "incorrect": "both hops right, composition wrong",
    "correct": "composition right",
    "all": "all queries",
    "documents": "questions over documents",
}


def title_of(result: Any, what: str) -> str:
    """The title of a figure: what it shows, of which model, on which queries."""
    run = result.run
    return f"{what}: {run['model']['name']} on “{run['queries']['name']}”"


def panel_title(result: Any, subset: str) -> str:
    """The title of a panel: the subset, and its number of queries."""
    n = result.details["query"].nunique()
    return f"{SUBSET_TITLES.get(subset, subset)} (n = {n})"


def summary_panels(
    results: Mapping[str, Any],
    lines: Callable[[pd.DataFrame, Axes, str], Axes],
    title: str,
    *,
    height: float = 3.0,
    shared: bool = False,
) -> Drawn:
    """A figure with the summary of each subset's result, side by side.

    Args:
        results: by subset.
        lines: draws a summary.
        title: what the figure shows.
        height: in inches.
        shared: one y axis and one legend for all.

    Returns:
        The figure, and the numbers that it draws.
    """
    figure, axes = panels(1, len(results), height, sharey=shared)
    numbers = []
    for ax, (subset, result) in zip(axes[0], results.items(), strict=True):
        summary = result.summary()
        lines(summary, ax, panel_title(result, subset))
        numbers.append(summary.assign(subset=subset))
    if shared:
        shared_legend(figure, axes)
    figure.suptitle(title_of(next(iter(results.values())), title))
    return figure, pd.concat(numbers, ignore_index=True)


def save_figure(figure: Figure, numbers: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG, and the numbers that it draws as CSV.

    The same figure gives the same bytes: no date, no random ids. Each file is written beside its
    place and renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg", "csv")]
    for path in paths:
        with replacing(path) as temporary:
            if path.suffix == ".csv":
                numbers.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
            else:
                metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
                figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
    return paths
