"""Provides the intervals and tests of all analyses: bootstrap, Wilson, Student's t, paired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats


def _wilson(n: int, count: int) -> tuple[float, float, float]:
    if not n:
        return float("nan"), float("nan"), float("nan")
    interval = stats.binomtest(count, n).proportion_ci(method="wilson")
    return count / n, float(interval.low), float(interval.high)


class Exponent(NamedTuple):
    """A power law fitted to the examples that are needed: `examples = factor * tokens ** value`.

    Attributes:
        value: the exponent.
        low, high: its 95 % interval, by the t distribution of the slope; NaN for two sizes.
        factor: in front.
        published: the paper's exponent, for the structures that it has.
    """

    value: float
    low: float
    high: float
    factor: float
    published: float | None


def paired(a: np.ndarray, b: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """How much better `b` is than `a` on the same questions.

    Returns:
        `n`; the mean `difference` with a 95 % bootstrap interval; how many are `better` and
        `worse`; and `p` of the exact McNemar test: a sign test over the questions that differ.
    """
    difference = b.astype(float) - a.astype(float)
    mean, low, high = mean_intervals([difference], seed)[0]
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    p = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    return {
        "n": len(difference),
        "difference": mean,
        "low": low,
        "high": high,
        "better": better,
        "worse": worse,
        "p": float(p),
    }


def intervals(
    table: pd.DataFrame, by: Sequence[str], value: str, name: str, seed: int = 0
) -> pd.DataFrame:
    """The mean of a column over queries for each group, with 95 % bootstrap intervals.

    Args:
        table: one row a query and group.
        by: the columns that make a group.
        value: the column; rows where it is missing are left out.
        name: what the mean is called.
        seed: of the bootstrap.

    Returns:
        Columns: `by`, `n`, `name`, `low`, `high`.
    """
    groups = list(table.dropna(subset=[value]).groupby(list(by), sort=False)[value])
    keys = [key for key, _ in groups]
    means = mean_intervals([group.to_numpy(dtype=float) for _, group in groups], seed)
    rows = [
        (*key, len(group), *mean) for key, (_, group), mean in zip(keys, groups, means, strict=True)
    ]
    return pd.DataFrame(rows, columns=[*by, "n", name, "low", "high"])


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """A mean with its 95 % percentile bootstrap interval over the values.

    Args:
        values: one number a query.
        seed: of the resampling.

    Returns:
        Mean, low and high; of one value low and high are NaN, of none all three.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()) if len(values) else float("nan"), float("nan"), float("nan")
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(values.mean()), float(interval.low), float(interval.high)


def mean_intervals(
    groups: Sequence[np.ndarray], seed: int = 0, n_resamples: int = 9999
) -> list[tuple[float, float, float]]:
    """The means of many groups with their 95 % percentile bootstrap intervals, quickly.

    As `mean_interval`, but groups of one size share their resamples, which makes a resampled mean
    of all of them one row of a matrix product.

    Args:
        groups: for each group one number a query.
        seed: of the resampling.
        n_resamples: how many.

    Returns:
        Mean, low and high of each group.
    """
    unknown = float("nan")
    found = [(float(each.mean()) if len(each) else unknown, unknown, unknown) for each in groups]
    for size in sorted({len(group) for group in groups if len(group) > 1}):
        members = [index for index, group in enumerate(groups) if len(group) == size]
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(size, np.full(size, 1 / size), size=n_resamples)
        means = counts @ np.stack([groups[index] for index in members], axis=1) / size
        lows, highs = np.percentile(means, [2.5, 97.5], axis=0)
        for index, low, high in zip(members, lows, highs, strict=True):
            found[index] = (found[index][0], float(low), float(high))
    return found


def t_interval(values: np.ndarray) -> tuple[float, float, float]:
    """A mean with its 95 % interval by Student's t, for the few values that seeds give.

    A bootstrap of three values would be far too narrow.

    Returns:
        Mean, low and high; of one value low and high are NaN.
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half
