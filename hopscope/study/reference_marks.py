"""Provides marks(): what the papers report, on the axes of a figure that follows their setting.

Reads references and records of runs; figure scripts import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from hopscope.experiments.registry import REGISTERED
from hopscope.plots.style import BLACK
from hopscope.results.references import references
from hopscope.results.result import Result

SHAPES = "D^vP*X"
KEY = ["position", "entity"]


def follows_paper(result: Result) -> bool:
    """Whether a result was made as the authors of its paper did: by their rules, zero-shot."""
    entry = next((each for each in REGISTERED.values() if each.result is type(result)), None)
    settings, queries = result.run.get("settings", {}), result.run.get("queries", {})
    if entry is None or not entry.parity or queries.get("few_shot"):
        return False
    return all(_says(settings.get(name), value) for name, value in entry.parity.items())


def _says(recorded: Any, wanted: Any) -> bool:
    """Whether a record has what was asked for.

    It has lists for tuples, texts by name for names, and for a word such as `checkpoint` what that
    stood for.
    """
    if isinstance(recorded, Mapping) and not isinstance(wanted, Mapping):
        return isinstance(wanted, str) or list(recorded) == list(wanted)
    return bool(recorded == (list(wanted) if isinstance(wanted, tuple) else wanted))


def marks(
    ax: Axes,
    result: Result,
    analysis: str,
    places: Mapping[tuple[str, str], float],
    **chosen: str,
) -> pd.DataFrame:
    """Draw what the papers report at places of an axis; nothing unless a result follows them.

    Args:
        ax: where to draw.
        result: what the axes show.
        analysis: of which numbers are drawn.
        places: where on the horizontal axis, by position and entity.
        **chosen: values of columns of `hopscope.references`, such as the subset.

    Returns:
        The numbers that were drawn.
    """
    table = references(analysis, **chosen)
    if not follows_paper(result):
        return table.head(0)
    keys = [tuple(each) for each in table[KEY].to_numpy()]
    table = table[[key in places for key in keys]]
    groups: Any = table.groupby(["model", "setting", "paper"], sort=False)
    for number, (name, rows) in enumerate(groups):
        model, setting, paper = map(str, name)
        x = [places[tuple(key)] for key in rows[KEY].to_numpy()]
        label = f"{model or setting} ({paper.partition(' (')[0]})"
        look: dict[str, Any] = {"marker": SHAPES[number % len(SHAPES)], "mfc": "white", "ms": 4.5}
        ax.plot(x, rows["value"], ls="", mec=BLACK, mew=1.0, zorder=6, label=label, **look)
    return table
