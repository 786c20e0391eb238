"""Provides titles, panels of summaries, and save_figure(): writes a figure and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hopscope.files import make_folder, replacing, write_csv
from hopscope.plots.style import panels, shared_legend

Drawn = tuple[Figure, pd.DataFrame]
"""A figure, and the numbers that it draws."""
SUBSET_TITLES = {
    "incorrect": "both hops right, composition wrong",
    "correct": "composition right",
    "all": "all queries",
    "documents": "questions over documents",
}
"""Titles of the subsets of queries."""


def title_of(result: Any, subject: str) -> str:
    """Return the title of a figure: its subject, the model, and the query set."""
    run = result.run
    return f"{subject}: {run['model']['name']} on “{run['queries']['name']}”"


def panel_title(result: Any, subset: str) -> str:
    """Return the title of a panel: the subset of queries and its size."""
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
    """Draw the summaries of several results side by side, one panel for each subset of queries.

    Args:
        results: the result of each subset.
        lines: draws a summary on axes with a given title.
        title: subject of the figure, for its title.
        height: height of the figure, in inches.
        shared: whether the panels share the y axis and one legend.

    Returns:
        The figure, and the numbers that it shows, with the column `subset`.
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
    """Write a figure as PNG and SVG, and the numbers that it shows as CSV.

    The same figure always gives the same bytes: the files contain no date and no random ids.

    Args:
        figure: the figure.
        numbers: the numbers that the figure shows.
        folder: the destination, which is created if necessary.
        name: name of the files, without suffix.

    Returns:
        The three files.
    """
    make_folder(folder)
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg", "csv")]
    for path in paths:
        if path.suffix == ".csv":
            write_csv(path, numbers)
            continue
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
    return paths
