"""Provides Headline: the one comparison of a result that a reader should see first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hopscope.statistics import LEAST_QUERIES, holm, paired

LEVEL = 0.05
"""Of the error rate that the headlines of a report share."""


@dataclass(frozen=True)
class Headline:
    """What a result says first, and the test of it; it is named before the numbers are seen.

    Attributes:
        sentence: what was found, with its interval.
        base: what it is compared with.
        n: pairs that are compared.
        p: two-sided p value of the paired comparison; NaN where there is nothing to compare with.
    """

    sentence: str
    base: str
    n: int
    p: float


def compared(table: pd.DataFrame, value: str, base: str) -> dict[str, Any] | None:
    """How much more often own states do something than a control does, query by query.

    Args:
        table: columns `query, control` and the value, one row or several a query and control.
        value: a column of booleans, of which each query's share is compared.
        base: the control.

    Returns:
        As `hopscope.statistics.paired`; None if there is no pair.
    """
    wide = table.groupby(["query", "control"], sort=False)[value].mean().unstack("control")
    if not {"none", base} <= set(wide):
        return None
    pairs = wide[["none", base]].dropna().astype(float)
    return paired(pairs[base].to_numpy(), pairs["none"].to_numpy()) if len(pairs) else None


def how_sure(headlines: Sequence[Headline]) -> list[str]:
    """How sure each of several headlines is, in words, after Holm's correction over all of them."""
    enough = [each.p if each.n >= LEAST_QUERIES else np.nan for each in headlines]
    n_tests = int(np.isfinite(enough).sum())
    return [
        _in_words(each, float(p), n_tests)
        for each, p in zip(headlines, holm(np.array(enough, dtype=float)), strict=True)
    ]


def _in_words(headline: Headline, p: float, n_tests: int) -> str:
    """How sure a headline is, by its adjusted p value."""
    if headline.p != headline.p:
        return "It has no control: its interval alone says how sure it is."
    if p != p:
        return f"Too few queries to tell it apart from {headline.base} (n = {headline.n})."
    told = "Told apart" if p <= LEVEL else "Not told apart"
    value = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{told} from {headline.base} ({value} after Holm over {n_tests} tests)."
