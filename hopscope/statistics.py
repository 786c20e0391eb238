"""Provides the confidence intervals and significance tests that all analyses share.

All intervals are two-sided at 95 %. Which one a mean over queries has depends on what is averaged,
and is chosen here alone: booleans make a share, which has a Wilson interval; of other numbers the
percentile bootstrap tells it. A difference of two conditions on the same queries has an exact
interval if both are booleans, or else a bootstrap of the differences. None of them is of no width:
where all of several numbers are equal, so that they tell no spread, low and high are NaN, and so
they are where there are fewer than `LEAST_QUERIES` numbers to resample. Student's t is for means
over a few seeds. `paired` compares two conditions on the same questions, `unpaired` two sets of
different ones, and `holm` corrects the p values of several tests that are reported together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.polynomial.legendre import leggauss
from pandas.api.types import infer_dtype
from scipy import optimize, special, stats

from hopscope.errors import UsageError

_NAN = float("nan")
LEAST_QUERIES = 6
"""With fewer pairs no exact two-sided sign test can reach the 5 % level; with fewer numbers a
percentile bootstrap is far too narrow."""
PERMUTATIONS = 10_000
Interval = tuple[float, float, float]
"""A mean (or share, or difference), and the low and high end of its interval."""
Limits = tuple[float, float]
"""The least and the largest value that something can have."""
SHARE: Limits = (0.0, 1.0)
DIFFERENCE: Limits = (-1.0, 1.0)
"""Of two shares."""
ANY: Limits = (-np.inf, np.inf)


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


def mean_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Return a mean with its 95 % interval: Wilson's for booleans, a bootstrap for other numbers.

    Args:
        values: a boolean or a number for each query, shape (query,).
        seed: seed of the resampling.

    Returns:
        Mean, low and high, with NaN as in `mean_intervals`.
    """
    return mean_intervals([values], seed)[0]


def mean_intervals(groups: Sequence[np.ndarray], seed: int = 0) -> list[Interval]:
    """Return the means of many groups with their 95 % intervals.

    Those of booleans are shares, with Wilson intervals. For other numbers it is a percentile
    bootstrap: groups of the same size share their 9,999 resamples, so that one matrix product gives
    a resampled mean of all of them.

    Args:
        groups: for each group one boolean or number per query, shape (query,).
        seed: seed of the resampling.

    Returns:
        Mean, low and high of each group; all are NaN for an empty one. Low and high are NaN for
        fewer than `LEAST_QUERIES` numbers, which are too few to resample, and for numbers that are
        all equal: they tell nothing of how others vary. Booleans always have an interval.
    """
    found = [
        wilson(int(np.sum(group)), len(group)) if _are_booleans(group) else _without_interval(group)
        for group in groups
    ]
    numbers = {
        index: np.asarray(group, dtype=float)
        for index, group in enumerate(groups)
        if not _are_booleans(group) and len(group) >= LEAST_QUERIES and _vary(group)
    }
    for size in sorted({len(values) for values in numbers.values()}):
        members = {index: values for index, values in numbers.items() if len(values) == size}
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(size, np.full(size, 1 / size), size=9999)
        means = counts @ np.stack(list(members.values()), axis=1) / size
        lows, highs = np.percentile(means, [2.5, 97.5], axis=0)
        for index, low, high in zip(members, lows, highs, strict=True):
            found[index] = (found[index][0], float(low), float(high))
    return found


def _are_booleans(values: Any) -> bool:
    """Whether values are booleans, of whatever type the column is that they come from."""
    return infer_dtype(values, skipna=True) == "boolean"


def _without_interval(values: np.ndarray) -> Interval:
    """The mean of numbers that tell no interval."""
    return float(np.mean(np.asarray(values, dtype=float))) if len(values) else _NAN, _NAN, _NAN


def _vary(values: np.ndarray) -> bool:
    """Whether there are two numbers that differ by more than rounding does."""
    numbers = np.asarray(values, dtype=float)
    return len(numbers) > 1 and not np.allclose(numbers, numbers[0], rtol=1e-9, atol=1e-12)


def intervals(
    table: pd.DataFrame, by: Sequence[str], value: str, name: str, seed: int = 0
) -> pd.DataFrame:
    """Return the mean of a column for each group of rows, with 95 % intervals.

    A column of booleans gives shares with Wilson intervals, one of numbers means with bootstrap
    intervals; see `mean_intervals`.

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
    means = mean_intervals([group.to_numpy() for _, group in groups], seed)
    rows = [
        (*key, len(group), *mean) for key, (_, group), mean in zip(keys, groups, means, strict=True)
    ]
    return pd.DataFrame(rows, columns=[*by, "n", name, "low", "high"])


def paired_intervals(
    table: pd.DataFrame, by: Sequence[str], base: str, value: str, seed: int = 0
) -> pd.DataFrame:
    """Return how much higher one column is than another on the same queries, for groups of rows.

    Two columns of booleans give differences of shares with exact intervals (`share_difference`);
    of numbers it is the mean difference, with a bootstrap interval.

    Args:
        table: one row for each query and group.
        by: the columns whose values define a group.
        base: the column that is subtracted, such as that of a control.
        value: the column that it is subtracted from. Rows where one of both is missing are left
            out.
        seed: seed of the bootstrap.

    Returns:
        A table with the columns `by`, `n`, `difference`, `low`, `high`, one row per group, in the
        order in which the groups first appear. Of numbers low and high may be NaN, as in
        `mean_intervals`.
    """
    groups = list(table.dropna(subset=[base, value]).groupby(list(by), sort=False))
    pairs = [(group[base].to_numpy(), group[value].to_numpy()) for _, group in groups]
    found = _difference_intervals(pairs, seed)
    rows = [(*key, len(group), *each) for (key, group), each in zip(groups, found, strict=True)]
    return pd.DataFrame(rows, columns=[*by, "n", "difference", "low", "high"])


def _difference_intervals(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int
) -> list[Interval]:
    """Of each pair (a, b) the mean of b - a with the interval that suits its values."""
    differences = [b.astype(float) - a.astype(float) for a, b in pairs]
    exact = [_are_booleans(a) and _are_booleans(b) for a, b in pairs]
    numbers = [each for each, counted in zip(differences, exact, strict=True) if not counted]
    resampled = iter(mean_intervals(numbers, seed))
    return [
        share_difference(*_better_and_worse(each), len(each)) if counted else next(resampled)
        for each, counted in zip(differences, exact, strict=True)
    ]


def _better_and_worse(differences: np.ndarray) -> tuple[int, int]:
    return int((differences > 0).sum()), int((differences < 0).sum())


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


def wilson(successes: int, n: int) -> Interval:
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


def share_difference(better: int, worse: int, n: int) -> Interval:
    """Return a difference of shares on the same queries with its exact 95 % interval.

    The interval of Fay and Lumbard 2021, "Confidence intervals for difference in proportions for
    matched pairs compatible with exact McNemar's or sign tests" (Statistics in Medicine 40). It
    excludes zero exactly where the exact McNemar test has p < .05, covers at least 95 % however few
    queries there are, and has some width even where no query differs.

    The difference is `d * (2 * s - 1)`: of `d`, the share of queries that differ, and of `s`, the
    share of those that are better, there are Clopper-Pearson limits, which are beta distributed if
    seen as a function of the level. The ends of the interval are quantiles of the product of two
    that are independent.

    Args:
        better: number of queries that only the second condition has right.
        worse: number of queries that only the first has right.
        n: number of all queries.

    Returns:
        Difference, low and high, each from -1 to 1; all three are NaN if `n` is 0.

    Raises:
        UsageError: if there are fewer than none, or more than `n`, that differ.

    Example:
        >>> [round(each, 2) for each in share_difference(0, 0, 4)]
        [0.0, -0.6, 0.6]
    """
    if min(better, worse) < 0 or better + worse > n:
        raise UsageError(f"of {n} queries {better} cannot be better and {worse} worse")
    if not n:
        return _NAN, _NAN, _NAN
    low, high = _least_difference(better, worse, n), -_least_difference(worse, better, n)
    return (better - worse) / n, low, high


@cache
def _least_difference(better: int, worse: int, n: int) -> float:
    """The low end of the interval of `share_difference`."""
    tail, differ = 0.025, better + worse
    least_share = float(special.betaincinv(better, worse + 1, tail)) if better else 0.0
    positive = least_share > 0.5
    if differ == n and not positive:  # all differ, so that the high limit of d is 1
        return 2 * least_share - 1
    if not better:
        return -float(stats.beta.ppf(1 - tail, differ + 1, n - differ))
    below_half = float(special.betainc(better, worse + 1, 0.5))
    nodes, weights = leggauss(200)
    first, last = (below_half, 1.0) if positive else (0.0, below_half)
    levels = first + (nodes + 1) / 2 * (last - first)
    weights = weights / 2 * (last - first)
    factors = 2 * special.betaincinv(better, worse + 1, levels) - 1  # 2 * s - 1

    def excess(difference: float) -> float:
        """How much likelier it is to be lower than `difference` than the tail is."""
        share = np.clip(difference / factors, 0, 1)
        if positive:  # the low limit of d
            below = below_half + weights @ special.bdtrc(differ - 1, n, share)
        else:  # its high one
            below = weights @ special.bdtr(differ, n, share)
        return float(below) - tail

    return float(optimize.brentq(excess, *((0.0, 1.0) if positive else (-1.0, 0.0)), xtol=1e-10))


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


def t_interval(values: np.ndarray, within: Limits = ANY) -> Interval:
    """Return a mean with its 95 % interval from Student's t distribution.

    Meant for the few values that several seeds give, where a bootstrap interval would be far too
    narrow.

    Args:
        values: one number for each seed, shape (seed,).
        within: what the values can be, such as `SHARE`; the interval is cut to it.

    Returns:
        Mean, low and high. Low and high are NaN for a single number, and for numbers that are all
        equal; all three are NaN for none.
    """
    mean, low, high = _without_interval(values)
    if _vary(values):
        half_width = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        low, high = np.clip([mean - half_width, mean + half_width], *within).tolist()
    return mean, low, high


def t_intervals(
    table: pd.DataFrame,
    by: Sequence[str],
    value: str,
    within: Limits | Mapping[str, Limits] = ANY,
) -> pd.DataFrame:
    """Return the mean of a column over seeds for each group of rows, with 95 % t intervals.

    Args:
        table: one row for each seed and group, with the columns `seed` and `n`.
        by: the columns whose values define a group; they may be missing.
        value: the column to average.
        within: what the values can be, such as `SHARE`; the intervals are cut to it. For a table
            with a column `measure` it may be told of some measures.

    Returns:
        A table with the columns `by`, `n_seeds`, `n` (the sum over seeds), `value`, `low`, `high`,
        one row per group, in the order in which the groups first appear.
    """
    groups = table.groupby(list(by), sort=False, dropna=False)
    rows = []
    for key, group in groups:
        limits = (
            within.get(group["measure"].iloc[0], ANY) if isinstance(within, Mapping) else within
        )
        mean = t_interval(group[value].to_numpy(), limits)
        rows.append((*key, group["seed"].nunique(), group["n"].sum(), *mean))
    return pd.DataFrame(rows, columns=[*by, "n_seeds", "n", value, "low", "high"])


def paired(a: np.ndarray, b: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Compare two conditions on the same questions: how much better is `b` than `a`?

    Args:
        a, b: scores or booleans of the two conditions, shape (question,), in the same order.
        seed: seed of the bootstrap.

    Returns:
        `n`, the number of questions; `difference`, the mean of `b - a`, with its 95 % interval
        `low` and `high`: exact for booleans (`share_difference`), a bootstrap for scores, with NaN
        as in `mean_intervals`; `better` and `worse`, the numbers of questions on which `b` is
        higher and lower; and `p`, the two-sided p value of the exact McNemar test, which is a sign
        test over the questions that differ (1 if none does). For booleans `p` is below .05 exactly
        where the interval excludes zero.

    Raises:
        UsageError: if the two conditions have different numbers of questions.
    """
    if len(a) != len(b):
        raise UsageError(f"a has {len(a)} questions and b has {len(b)}; give the same for both")
    mean, low, high = _difference_intervals([(a, b)], seed)[0]
    better, worse = _better_and_worse(b.astype(float) - a.astype(float))
    p = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    return {
        "n": len(a),
        "difference": mean,
        "low": low,
        "high": high,
        "better": better,
        "worse": worse,
        "p": float(p),
    }


def unpaired(
    a: np.ndarray,
    b: np.ndarray,
    groups_of_a: Sequence[Any] | None = None,
    groups_of_b: Sequence[Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two sets of different questions: how much higher is `b` than `a`?

    The test permutes which numbers belong to which set, 10,000 times. With groups it does so within
    each group, and the difference is the mean over groups of the difference within each, weighted
    by n_a n_b / (n_a + n_b), which is least squares with an intercept for each group: a difference
    that comes from what kinds of questions there are is not counted. The interval holds the
    differences, the same for all questions, that the test does not reject (Garthwaite 1996).

    Args:
        a, b: numbers, shapes (question_a,) and (question_b,).
        groups_of_a, groups_of_b: the group of each question; one group if None.
        seed: seed of the permutations.

    Returns:
        `n_a` and `n_b`, how many can be compared, which are those of groups with both, and their
        means `mean_a` and `mean_b`; `difference`, with its 95 % interval `low` and `high`; and `p`,
        two-sided. The last three are NaN where either set has fewer than `LEAST_QUERIES`, or all
        numbers are equal within groups; the interval also where so few permutations are possible
        that the test can reject nothing, or all tell the same difference.

    Raises:
        UsageError: if there are not as many groups as numbers.
    """
    values = np.concatenate([a, b]).astype(float)
    is_b = np.repeat([0.0, 1.0], [len(a), len(b)])
    of_a = [0] * len(a) if groups_of_a is None else [*groups_of_a]
    of_b = [0] * len(b) if groups_of_b is None else [*groups_of_b]
    if (len(of_a), len(of_b)) != (len(a), len(b)):
        raise UsageError("give a group for each number of a and of b, or no groups")
    groups, _ = pd.factorize(pd.Series([*of_a, *of_b], dtype=object), use_na_sentinel=False)
    n_of_b, size = np.bincount(groups, is_b), np.bincount(groups)
    usable = ((n_of_b > 0) & (n_of_b < size))[groups]
    values, is_b, groups = values[usable], is_b[usable], groups[usable]
    n_b = int(is_b.sum())
    found: dict[str, Any] = {"n_a": len(values) - n_b, "n_b": n_b}
    found |= dict.fromkeys(("mean_a", "mean_b", "difference", "low", "high", "p"), _NAN)
    if not n_b:
        return found
    found |= {"mean_a": values[is_b == 0].mean(), "mean_b": values[is_b == 1].mean()}
    share_of_b = (n_of_b / size)[groups]
    weights = (is_b - share_of_b) / (share_of_b * (1 - is_b)).sum()
    found["difference"] = observed = float(weights @ values)
    vary = any(_vary(values[groups == each]) for each in np.unique(groups))
    if min(found["n_a"], n_b) < LEAST_QUERIES or not vary:
        return found
    random, order = np.random.default_rng(seed), np.argsort(groups, kind="stable")
    draws = np.argsort(groups[order] + random.random((PERMUTATIONS, len(values))), axis=1)
    shuffled = weights[order][draws]
    moved = 1 - shuffled @ is_b[order]  # 0 where a permutation leaves both sets as they are
    is_moved = moved > 1e-9
    shifts = (observed - shuffled @ values[order])[is_moved] / moved[is_moved]
    shifts[np.abs(shifts) < 1e-9 * np.abs(values).max()] = 0.0
    # What is left as it is is as extreme as what was observed, whatever the difference is.
    as_it_is = 1 + PERMUTATIONS - len(shifts)
    share = (as_it_is + np.array([(shifts <= 0).sum(), (shifts >= 0).sum()])) / (1 + PERMUTATIONS)
    tail = 0.025 * (1 + PERMUTATIONS) - as_it_is
    if tail >= 1:
        low, high = np.sort(shifts)[[int(tail) - 1, len(shifts) - int(tail)]]
        if high - low > 1e-9 * np.abs(values).max():
            found |= {"low": float(low), "high": float(high)}
    return found | {"p": min(1.0, 2 * float(share.min()))}


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
