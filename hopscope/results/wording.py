"""Provides how numbers, intervals and comparisons are put into words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from hopscope.statistics import LEAST_QUERIES

SITE_LABELS = {
    "attn_out": "attention",
    "mlp_out": "MLP",
    "resid_post": "residual",
    "z": "heads",
    "embed": "embedding",
    "attn_in": "attention",
    "mlp_in": "MLP",
    "logits": "logits",
}
"""What sites, senders and receivers of paths are called."""
OWN = "own"
"""What is shown for the control `none` of the tables, where nothing is put in another's place."""
ENTITY_NAMES = {"e1": "source", "e2": "bridge", "e3": "answer", "prediction": "prediction"}


def entity_name(entity: str, n_hops: int = 2) -> str:
    """What an entity of a query of n hops is called.

    Example:
        >>> entity_name("e3"), entity_name("e3", 3), entity_name("e4", 3)
        ('answer', 'bridge e3', 'answer')
    """
    if n_hops == 2 or not re.fullmatch(r"e\d", entity) or entity == "e1":
        return ENTITY_NAMES[entity]
    return "answer" if entity == f"e{n_hops + 1}" else f"bridge {entity}"


"""What entities and other targets are, in words."""
SUBSTITUTES = {"e1": "another source entity", "r1": "another first relation"}
"""What stands in a question in place of its source entity or its first relation."""
CONTROL_NAMES = {"other": "another query's state", "random": "a random vector"}


def percent(share: float) -> str:
    """A share in whole per cent."""
    return f"{100 * share:.0f} %"


def with_interval(share: float, low: float, high: float) -> str:
    """A share with its interval: `38 % (12–62)`; without one where it is unknown."""
    if low != low:
        return percent(share)
    return f"{percent(share)} ({100 * low:.0f}–{100 * high:.0f})"


def value_with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """A number with its interval: `0.96 (0.84 to 1.07)`; without one where it is unknown."""
    if low != low:
        return f"{value:{sign}z.2f}"
    return f"{value:{sign}z.2f} ({low:{sign}z.2f} to {high:{sign}z.2f})"


def points(difference: float, low: float, high: float) -> str:
    """A difference of shares in points, with its interval."""
    if low != low:
        return f"{100 * difference:+z.0f} points"
    return f"{100 * difference:+z.0f} points ({100 * low:+z.0f} to {100 * high:+z.0f})"


def verdict(gain: Mapping[str, Any], base: str | None = None) -> str:
    """What a paired difference says.

    Args:
        gain: a row with `n`, `difference`, `low` and `high`. Where these are unknown of
            `LEAST_QUERIES` pairs or more, all differ by the same, and the sign of the difference
            decides, as in a sign test.
        base: the name of what is compared with, such as an order of documents; None for a control,
            which tells what chance does.
    """
    if gain["n"] < LEAST_QUERIES:
        return "too few queries to tell"
    known = gain["low"] == gain["low"]
    low, high = (gain[end if known else "difference"] for end in ("low", "high"))
    if low <= 0 <= high:
        return f"not told apart from {base or 'chance'}"
    higher, lower = ("higher", "lower") if base else ("more", "less")
    return f"{higher if low > 0 else lower} than {base or 'chance'}"


def rows_where(table: pd.DataFrame, **where: Any) -> Iterator[dict[str, Any]]:
    """The rows of a table in which some columns have these values."""
    for column, value in where.items():
        table = table[table[column] == value]
    for row in table.to_dict("records"):
        yield {str(name): value for name, value in row.items()}


def row_where(table: pd.DataFrame, **where: Any) -> dict[str, Any] | None:
    """The first of those rows; None if there is none."""
    return next(rows_where(table, **where), None)


def largest_row(table: pd.DataFrame, column: str) -> dict[str, Any]:
    """The row with the largest value, the first of several."""
    order = table.sort_values(column, ascending=False, kind="stable")
    return next(rows_where(order))


def as_shown(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it is printed or drawn: its control `none` is called `own`."""
    if "control" not in table:
        return table
    return table.assign(control=table["control"].astype(object).replace("none", OWN))


def layer_in_words(value: float) -> str:
    """A (mean) layer; NaN is `never`."""
    return "never" if value != value else f"layer {value:.1f}".removesuffix(".0")
