"""Provides marks(): what the papers report, on the axes of a figure that follows their setting.

Reads references and records of runs; figure scripts import it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from hopscope.experiments.registry import REGISTERED
from hopscope.plots.style import BLACK
from hopscope.results.references import references
from hopscope.results.result import Result

SHAPES = "D^vP*X"
KEY = ("position", "entity")
STANDS_FOR = ("checkpoint",)
"""Words of which a record has what they stood for."""


def follows_paper(result: Result, **instead: Any) -> bool:
    """Whether a result was made as the authors of its paper did: by their rules, zero-shot.

    Args:
        result: what was measured.
        **instead: settings that are the authors', too, in place of those that a preset chooses.
    """
    entry = next((each for each in REGISTERED.values() if each.result is type(result)), None)
    settings, queries = result.run.get("settings", {}), result.run.get("queries", {})
    if entry is None or not entry.parity or queries.get("few_shot"):
        return False
    rules = {**entry.parity, **instead}
    return all(_says(settings.get(name), value) for name, value in rules.items())


def _says(recorded: Any, wanted: Any) -> bool:
    """Whether a record has what was asked for.

    It has lists for tuples, texts by name for names, and for a word such as `checkpoint` what that
    stood for.
    """
    if isinstance(recorded, Mapping) and not isinstance(wanted, Mapping):
        return wanted in STANDS_FOR or list(recorded) == list(wanted)
    return bool(recorded == (list(wanted) if isinstance(wanted, tuple) else wanted))


def marks(
    ax: Axes,
    result: Result,
    analysis: str,
    places: Mapping[Any, float],
    by: Sequence[str] = KEY,
    instead: Mapping[str, Any] = MappingProxyType({}),
    **chosen: str,
) -> pd.DataFrame:
    """Draw what the papers report at places of an axis; nothing unless a result follows them.

    Args:
        ax: where to draw.
        result: what the axes show.
        analysis: of which numbers are drawn.
        places: where on the horizontal axis, by the values of `by`, as tuples.
        by: columns of `hopscope.references`.
        instead: settings that are the authors', too; see `follows_paper`.
        **chosen: values of columns of `hopscope.references`, such as the subset.

    Returns:
        The numbers that were drawn.
    """
    table = references(analysis, **chosen)
    if not follows_paper(result, **instead):
        return table.head(0)
    table = table[[key in places for key in _keys(table, by)]]
    groups: Any = table.groupby(["model", "setting", "paper"], sort=False)
    for number, (name, rows) in enumerate(groups):
        model, setting, paper = map(str, name)
        x, paper = [places[key] for key in _keys(rows, by)], paper.partition(" (")[0]
        label = f"{model or setting} ({paper})" if model or setting else paper
        look: dict[str, Any] = {"marker": SHAPES[number % len(SHAPES)], "mfc": "white", "ms": 4.5}
        ax.plot(x, rows["value"], ls="", mec=BLACK, mew=1.0, zorder=6, label=label, **look)
    return table


def _keys(table: pd.DataFrame, by: Sequence[str]) -> list[tuple[str, ...]]:
    """The values that each row has in some columns."""
    return [tuple(each) for each in table[list(by)].to_numpy()]
