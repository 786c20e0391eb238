"""Provides the confidence intervals and significance tests that all analyses share.

All intervals are two-sided at 95 %: percentile bootstrap for means over queries, Wilson for shares,
Student's t for means over a few seeds. `paired` compares two conditions on the same questions, and
`holm` corrects the p values of several tests that are reported together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from hopscope.errors import UsageError

_NAN = float("nan")


class Exponent(NamedTuple):
    """A power law fitted to the number of examples needed: `examples = factor * tokens ** value`.

    Attributes:
        value: the exponent.
        low, high: its 95 % interval, from the t distribution of the slope; NaN for two sizes.
        factor: the factor in front of the power.
        published: the exponent that the paper reports, for the structures that it studies.
    """

    value: float
    low: float
    high: float
    factor: float
    published: float | None


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return a mean with its 95 % percentile bootstrap interval (9,999 resamples).

    Args:
        values: one number for each query, shape (query,).
        seed: seed of the resampling.

    Returns:
        Mean, low and high. Low and high are NaN for a single value, all three for none.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()) if len(values) else _NAN, _NAN, _NAN
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(values.mean()), float(interval.low), float(interval.high)


def mean_intervals(groups: Sequence[np.ndarray], seed: int = 0) -> list[tuple[float, float, float]]:
    """Return the means of many groups with their 95 % percentile bootstrap intervals.

    Faster than `mean_interval` for each: groups of the same size share their 9,999 resamples, so
    that one matrix product gives a resampled mean of all of them.

    Args:
        groups: for each group one number per query, shape (query,).
        seed: seed of the resampling.

    Returns:
        Mean, low and high of each group, with NaN as in `mean_interval`.
    """
    intervals = [(float(each.mean()) if len(each) else _NAN, _NAN, _NAN) for each in groups]
    for size in sorted({len(group) for group in groups if len(group) > 1}):
        members = [index for index, group in enumerate(groups) if len(group) == size]
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(size, np.full(size, 1 / size), size=9999)
        means = counts @ np.stack([groups[index] for index in members], axis=1) / size
        lows, highs = np.percentile(means, [2.5, 97.5], axis=0)
        for index, low, high in zip(members, lows, highs, strict=True):
            intervals[index] = (intervals[index][0], float(low), float(high))
    return intervals


def intervals(
    table: pd.DataFrame, by: Sequence[str], value: str, name: str, seed: int = 0
) -> pd.DataFrame:
    """Return the mean of a column for each group of rows, with 95 % bootstrap intervals.

    Args:
        table: one row for each query and group.
        by: the columns whose values define a group.
        value: the column to average; rows where it is missing are left out.
        name: name of the column that holds the means.
        seed: seed of the bootstrap.

    Returns:
        A table with the columns `by`, `n`, `name`, `low`, `high`, one row per group, in the order
        in which the groups first appear.
    """
    groups = list(table.dropna(subset=[value]).groupby(list(by), sort=False)[value])
    keys = [key for key, _ in groups]
    means = mean_intervals([group.to_numpy(dtype=float) for _, group in groups], seed)
    rows = [
        (*key, len(group), *mean) for key, (_, group), mean in zip(keys, groups, means, strict=True)
    ]
    return pd.DataFrame(rows, columns=[*by, "n", name, "low", "high"])


def first_layer_shares(first: pd.DataFrame, by: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Return how many queries have a first layer, and how early it is, for each group of rows.

    Args:
        first: one row for each query and group; its column `first_layer` is NaN if there is none.
        by: the columns whose values define a group.
        seed: seed of the bootstrap.

    Returns:
        A table with the columns `by`, `n`, `share`, `low`, `high`, `mean_first_layer`.
    """
    table = first.assign(found=first["first_layer"].notna())
    shares = intervals(table, by, "found", "share", seed)
    means = first.groupby(list(by), sort=False)["first_layer"].mean()
    return shares.merge(means.rename("mean_first_layer").reset_index(), on=list(by))


def wilson(successes: int, n: int) -> tuple[float, float, float]:
    """Return a share with its 95 % Wilson score interval (Wilson 1927).

    Args:
        successes: number of successes, from 0 to `n`.
        n: number of trials.

    Returns:
        Share, low and high, each from 0 to 1; all three are NaN if `n` is 0.

    Raises:
        UsageError: if `successes` does not lie between 0 and `n`.

    Example:
        >>> [round(each, 3) for each in wilson(8, 10)]
        [0.8, 0.49, 0.943]
    """
    if not 0 <= successes <= n:
        raise UsageError(f"successes must lie between 0 and n = {n}, not {successes}")
    if not n:
        return _NAN, _NAN, _NAN
    interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return successes / n, float(interval.low), float(interval.high)


def chance_of_more(found: int, n: int, more: int, left: int) -> float:
    """The chance that there are so many more among those that are left, by what was found so far.

    Beta-binomial, with Jeffreys' prior for the share.

    Args:
        found: how many there were among the first.
        n: how many were looked at.
        more: how many more are needed.
        left: how many are left to be looked at.
    """
    if more <= 0:
        return 1.0
    return float(stats.betabinom.sf(more - 1, left, found + 0.5, n - found + 0.5))


def t_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return a mean with its 95 % interval from Student's t distribution.

    Meant for the few values that several seeds give, where a bootstrap interval would be far too
    narrow.

    Args:
        values: one number for each seed, shape (seed,).

    Returns:
        Mean, low and high. Low and high are NaN for a single value, all three for none.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()) if len(values) else _NAN, _NAN, _NAN
    mean = float(values.mean())
    half_width = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half_width, mean + half_width


def t_intervals(table: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Return the mean of a column over seeds for each group of rows, with 95 % t intervals.

    Args:
        table: one row for each seed and group, with the columns `seed` and `n`.
        by: the columns whose values define a group; they may be missing.
        value: the column to average.

    Returns:
        A table with the columns `by`, `n_seeds`, `n` (the sum over seeds), `value`, `low`, `high`,
        one row per group, in the order in which the groups first appear. The intervals are not cut
        to [0, 1].
    """
    groups = table.groupby(list(by), sort=False, dropna=False)
    rows = [
        (*key, rows["seed"].nunique(), rows["n"].sum(), *t_interval(rows[value].to_numpy()))
        for key, rows in groups
    ]
    return pd.DataFrame(rows, columns=[*by, "n_seeds", "n", value, "low", "high"])


def paired(a: np.ndarray, b: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Compare two conditions on the same questions: how much better is `b` than `a`?

    Args:
        a, b: scores or booleans of the two conditions, shape (question,), in the same order.
        seed: seed of the bootstrap.

    Returns:
        `n`, the number of questions; `difference`, the mean of `b - a`, with its 95 % bootstrap
        interval `low` and `high`; `better` and `worse`, the numbers of questions on which `b` is
        higher and lower; and `p`, the two-sided p value of the exact McNemar test, which is a sign
        test over the questions that differ (1 if none does).

    Raises:
        UsageError: if the two conditions have different numbers of questions.
    """
    if len(a) != len(b):
        raise UsageError(f"a has {len(a)} questions and b has {len(b)}; give the same for both")
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


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the Holm-adjusted p values of several tests that are reported together.

    Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure". Rejecting where the
    adjusted value is at most alpha keeps the family-wise error rate at alpha, however the tests
    depend on each other.

    Args:
        p_values: shape (test,). NaN stands for a test that was not made; it is not counted.

    Returns:
        Adjusted p values of the same shape and order, at most 1; NaN where `p_values` is NaN.

    Raises:
        UsageError: if a p value does not lie between 0 and 1.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, dtype=float)
    made = np.flatnonzero(~np.isnan(given))
    outside = [float(p) for p in given[made] if not 0 <= p <= 1]
    if outside:
        raise UsageError(f"p values must lie between 0 and 1, not {outside[0]}")
    order = made[np.argsort(given[made], kind="stable")]
    steps = given[order] * np.arange(len(order), 0, -1)
    adjusted = np.full_like(given, np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted
