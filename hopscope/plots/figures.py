"""Provides titles, panels of summaries, and save_figure(): writes a figure and its numbers."""

from __future__ import annotations

import textwrap
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
    by: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Drawn:
    """Draw summaries in small panels: a row for each subset of queries, a column for each part.

    Args:
        results: the result of each subset.
        lines: draws a part of a summary on axes with a given title.
        title: subject of the figure, for its title.
        by: the column of the summaries whose values are the parts; if None, there is one part.
        names: of parts, for the titles of the panels, where it is not the value itself.

    Returns:
        The figure, and the numbers that it shows, with the column `subset`.
    """
    numbers = pd.concat(
        [result.summary().assign(subset=subset) for subset, result in results.items()],
        ignore_index=True,
    )
    key = pd.Series("", numbers.index) if by is None else numbers[by]
    parts = list(dict.fromkeys(key))
    height = 1.9 * len(results) + 0.6
    figure, axes = panels(len(results), len(parts), height, sharex=True, sharey=True)
    for row, (subset, result) in zip(axes, results.items(), strict=True):
        for ax, part in zip(row, parts, strict=True):
            here = numbers[(numbers["subset"] == subset) & (key == part)]
            panel = panel_title(result, subset)
            if by is not None:
                panel = f"{(names or {}).get(part, part)}: {panel}"
            lines(here.drop(columns="subset"), ax, textwrap.fill(panel, 50))
            if ax.get_ylabel() == row[0].get_ylabel() and ax is not row[0]:
                ax.set_ylabel("")
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    shared_legend(figure, axes)
    figure.suptitle(title_of(next(iter(results.values())), title))
    return figure, numbers


def result_panels(results: Mapping[str, Any], title: str, *tables: str) -> Drawn:
    """Draw the own picture of each of several results, three in a row.

    Args:
        results: the results by name.
        title: of the figure.
        *tables: names of the tables of a result that hold the numbers.

    Returns:
        The figure, and the tables, with the columns `run` and `table`.
    """
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure, axes = panels(rows, columns, 2.5 * rows, sharey=True)
    for ax in axes.flat[len(results) :]:
        ax.set_visible(False)
    for ax, result in zip(axes.flat, results.values(), strict=False):
        result.plot(ax=ax)
    figure.suptitle(title)
    numbers = [
        result.tables()[table].assign(run=name, table=table)
        for name, result in results.items()
        for table in tables
    ]
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
