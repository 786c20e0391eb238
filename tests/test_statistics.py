"""Tests of the intervals and significance tests, against scipy and published numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hopscope.errors import UsageError
from hopscope.statistics import (
    DIFFERENCE,
    LEAST_QUERIES,
    SHARE,
    chance_of_more,
    holm,
    intervals,
    mean_interval,
    mean_intervals,
    paired,
    paired_intervals,
    share_difference,
    t_interval,
    t_intervals,
    unpaired,
    wilson,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (8, 10), (37, 120)])
def test_wilson_is_the_score_interval(successes: int, n: int) -> None:
    z = stats.norm.ppf(0.975)
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert wilson(successes, n) == pytest.approx((share, middle - half, middle + half))


def test_wilson_of_no_trial_is_unknown() -> None:
    assert np.isnan(wilson(0, 0)).all()


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2), (1, 0)])
def test_wilson_refuses_more_successes_than_trials(successes: int, n: int) -> None:
    with pytest.raises(UsageError, match=f"between 0 and n = {n}, not {successes}"):
        wilson(successes, n)


def test_t_interval_is_scipys() -> None:
    values = np.array([0.71, 0.64, 0.93])
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert t_interval(values) == pytest.approx((values.mean(), low, high))


def test_t_intervals_of_shares_and_of_their_differences_are_cut_to_what_these_can_be() -> None:
    values = np.array([0.0, 0.03, 0.98])
    mean, low, high = t_interval(values)
    assert (low, high) != (0, 1)
    assert t_interval(values, SHARE) == (mean, 0, 1)
    assert t_interval(values, DIFFERENCE) == (mean, max(low, -1), 1)
    close = np.array([0.4, 0.5, 0.6])
    assert t_interval(close, SHARE) == t_interval(close)
    assert np.isnan(t_interval(np.ones(3), SHARE)[1:]).all()
    table = pd.DataFrame({"seed": [0, 1, 2] * 2, "n": 5, "value": [*values, *values]})
    table["measure"] = ["correct"] * 3 + ["product"] * 3
    cut = t_intervals(table, ["measure"], "value", {"correct": SHARE})
    assert cut[["low", "high"]].to_numpy().tolist() == [[0, 1], [low, high]]
    assert t_intervals(table, ["measure"], "value", SHARE)["high"].tolist() == [1, 1]


@pytest.mark.parametrize("interval", [t_interval, mean_interval])
def test_one_value_has_no_interval_and_none_no_mean(interval: object) -> None:
    assert callable(interval)
    mean, *ends = interval(np.array([0.5]))
    assert mean == 0.5
    assert np.isnan(ends).all()
    assert np.isnan(interval(np.array([]))).all()


def test_the_interval_of_numbers_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).normal(size=40)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    found = mean_interval(values, seed=7)
    assert found == pytest.approx((values.mean(), expected.low, expected.high), abs=0.02)


def test_groups_of_all_kinds_and_sizes_have_the_intervals_that_each_has_alone() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=50), rng.random(50) < 0.3, rng.normal(size=30), rng.normal(size=50)]
    for many, group in zip(mean_intervals(groups), groups, strict=True):
        assert many == pytest.approx(mean_interval(group))


@pytest.mark.parametrize("kind", ["bool", "boolean", "object"])
@pytest.mark.parametrize("right", [0, 2, 4])
def test_booleans_of_any_type_are_a_share(kind: str, right: int) -> None:
    values = pd.Series([n < right for n in range(4)], dtype=kind)
    assert mean_interval(values.to_numpy()) == wilson(right, 4)
    table = pd.DataFrame({"group": "a", "right": values})
    if kind != "bool":
        table.loc[4] = ["a", None]  # an unknown verdict is left out
    row = intervals(table, ["group"], "right", "share").iloc[0]
    assert tuple(row[["n", "share", "low", "high"]]) == (4, *wilson(right, 4))


@pytest.mark.parametrize("interval", [t_interval, mean_interval])
@pytest.mark.parametrize("values", [[0.0] * 3, [1.0] * 4, [0.1, 0.1, 0.1 + 1e-17]])
def test_numbers_that_are_all_equal_tell_no_interval(interval: Any, values: list[float]) -> None:
    """Shares of layers or of seeds, too: that three are equal does not say that a fourth is."""
    mean, *ends = interval(np.array(values))
    assert mean == pytest.approx(values[0])
    assert np.isnan(ends).all()


@pytest.mark.parametrize("n", [2, 3, LEAST_QUERIES - 1])
def test_few_numbers_are_not_resampled_and_few_booleans_have_an_interval(n: int) -> None:
    """Also in `intervals` and `paired_intervals`, where other groups have one."""
    numbers = np.linspace(0.2, 0.8, n)
    mean, *ends = mean_interval(numbers)
    assert mean == pytest.approx(0.5)
    assert np.isnan(ends).all()
    assert not np.isnan(mean_interval(numbers > 0.5)).any()
    assert np.isnan(paired(numbers * 0, numbers)["low"])
    enough = np.linspace(0.2, 0.8, LEAST_QUERIES)
    table = pd.DataFrame(
        {"group": ["few"] * n + ["enough"] * len(enough), "value": [*numbers, *enough], "base": 0.0}
    )
    for found in (
        intervals(table, ["group"], "value", "mean"),
        paired_intervals(table, ["group"], "base", "value"),
    ):
        assert found["low"].isna().tolist() == found["high"].isna().tolist() == [True, False]
    low, high = mean_interval(enough)[1:]
    assert 0.2 < low < 0.5 < high < 0.8


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_has_the_published_limits(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I."""
    assert wilson(successes, n)[1:] == pytest.approx((low, high), abs=5e-5)


def tables_of(n: int) -> list[tuple[int, int]]:
    """All numbers of better and of worse queries among n."""
    return [(better, worse) for better in range(n + 1) for worse in range(n + 1 - better)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 16])
def test_differences_of_shares_exclude_zero_where_mcnemars_exact_test_does(n: int) -> None:
    excluded = 0
    for better, worse in tables_of(n):
        difference, low, high = share_difference(better, worse, n)
        assert -1 <= low <= difference <= high <= 1
        assert high - low > 1 / n
        p = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
        assert (low > 0 or high < 0) == (p < 0.05), (better, worse)
        assert share_difference(worse, better, n) == (-difference, -high, -low)
        excluded += p < 0.05
    assert (excluded > 0) == (n >= 6)


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_differences_of_shares_are_covered_however_few_queries(n: int) -> None:
    """Every table is counted with its chance; each end may miss in 2.5 % (Fay and Lumbard)."""
    better, worse = np.array(tables_of(n)).T
    ends = np.array([share_difference(*table, n)[1:] for table in tables_of(n)])
    counts = np.stack([better, worse, n - better - worse], axis=1)
    missed = []
    for first in np.linspace(0, 1, 21):
        for second in np.linspace(0, 1 - first, 21):
            chances = [first, second, max(0.0, 1 - first - second)]
            chance = stats.multinomial.pmf(counts, n, np.array(chances) / sum(chances))
            difference = first - second
            missed.append(chance[ends[:, 0] > difference + 1e-9].sum())
            missed.append(chance[ends[:, 1] < difference - 1e-9].sum())
    assert 0.01 < max(missed) <= 0.025


@pytest.mark.parametrize(
    ("better", "worse", "n"),
    [(1, 7, 21), (7, 1, 21), (6, 0, 40), (3, 3, 16), (16, 0, 16), (8, 8, 16)],
)
def test_differences_of_shares_are_quantiles_of_products(better: int, worse: int, n: int) -> None:
    """By drawing from the two confidence distributions, which the paper's interval is made of."""
    rng, differ = np.random.default_rng(0), better + worse

    def drawn(a: int, b: int) -> np.ndarray:
        return rng.beta(a, b, 400_000) if a and b else np.full(400_000, float(a > 0))

    signs = 2 * drawn(better, worse + 1) - 1
    shares = drawn(differ, n - differ + 1), drawn(differ + 1, n - differ)
    low = min(np.quantile(share * signs, 0.025) for share in shares)
    assert share_difference(better, worse, n)[1] == pytest.approx(low, abs=0.005)


def test_differences_of_shares_have_clopper_pearson_limits_at_the_edge() -> None:
    """Where none is worse the high limit is that of a share; where none differs both are."""
    for better, n in ((0, 4), (4, 9), (9, 9)):
        limit = stats.binomtest(better, n).proportion_ci(method="exact").high
        assert share_difference(better, 0, n)[2] == pytest.approx(limit)
    assert share_difference(0, 0, 4)[1:] == pytest.approx((-0.602365, 0.602365), abs=1e-6)
    assert np.isnan(share_difference(0, 0, 0)).all()


@pytest.mark.parametrize(("better", "worse", "n"), [(3, 2, 4), (-1, 2, 4), (1, -1, 4)])
def test_differences_of_shares_refuse_what_cannot_be(better: int, worse: int, n: int) -> None:
    with pytest.raises(UsageError, match=f"of {n} queries {better} cannot be better and {worse}"):
        share_difference(better, worse, n)


def test_pairs_of_booleans_have_exact_intervals_and_pairs_of_numbers_a_bootstrap() -> None:
    own = [True, True, True, False, True, False, None, True]
    other = [False, False, True, False, True, True, False, True]
    table = pd.DataFrame({"position": ["t1"] * 7 + ["t2"], "own": own, "other": other})
    found = paired_intervals(table, ["position"], "other", "own")
    assert list(found) == ["position", "n", "difference", "low", "high"]
    assert tuple(found.iloc[0]) == ("t1", 6, *share_difference(2, 1, 6))
    assert tuple(found.iloc[1]) == ("t2", 1, *share_difference(0, 0, 1))
    numbers = table.assign(other=np.arange(8) / 10)
    row = paired_intervals(numbers, ["position"], "other", "own").iloc[0]
    differences = (numbers["own"] - numbers["other"])[:6].to_numpy(dtype=float)
    assert tuple(row[["difference", "low", "high"]]) == mean_interval(differences)


def test_intervals_group_rows_and_leave_out_what_is_missing() -> None:
    table = pd.DataFrame(
        {"layer": [1, 1, 0, 0], "effect": [1.0, 0.0, 2.0, np.nan], "other": [1, 2, 3, 4]}
    )
    summary = intervals(table, ["layer"], "effect", "mean")
    assert list(summary) == ["layer", "n", "mean", "low", "high"]
    assert summary[["layer", "n", "mean"]].to_numpy().tolist() == [[1, 2, 0.5], [0, 1, 2.0]]
    assert summary[["low", "high"]].isna().all(axis=None)  # too few


def test_paired_counts_and_tests_the_questions_that_differ() -> None:
    a = np.array([True, False, False, False, True, False])
    b = np.array([True, True, True, True, False, False])
    compared = paired(a, b)
    assert (compared["n"], compared["better"], compared["worse"]) == (6, 3, 1)
    assert compared["difference"] == pytest.approx(2 / 6)
    assert compared["p"] == pytest.approx(stats.binomtest(3, 4).pvalue)
    assert (compared["low"], compared["high"]) == share_difference(3, 1, 6)[1:]
    scores = paired(a.astype(float), b.astype(float))
    assert (scores["low"], scores["high"]) != (compared["low"], compared["high"])


def test_paired_without_a_difference_has_p_1() -> None:
    same = np.array([1.0, 0.0, 1.0])
    assert paired(same, same)["p"] == 1.0


def test_paired_refuses_other_questions() -> None:
    with pytest.raises(UsageError, match="a has 2 questions and b has 3"):
        paired(np.zeros(2), np.zeros(3))


def test_sets_without_groups_are_compared_as_scipys_permutation_test_does() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=30), draw.normal(0.7, 1, 20)
    found = unpaired(a, b)
    wanted = stats.permutation_test(
        (b, a), lambda x, y: x.mean() - y.mean(), n_resamples=10_000, rng=draw
    )
    assert (found["n_a"], found["n_b"]) == (30, 20)
    assert (found["mean_a"], found["mean_b"]) == pytest.approx((a.mean(), b.mean()))
    assert found["difference"] == pytest.approx(wanted.statistic)
    assert found["p"] == pytest.approx(wanted.pvalue, abs=0.01)
    (low, high) = stats.ttest_ind(b, a).confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.05)


def test_within_groups_the_difference_is_least_squares_with_an_intercept_each() -> None:
    draw = np.random.default_rng(1)
    groups = draw.integers(0, 5, 80)
    is_b = draw.random(80) < np.array([0.3, 0.4, 0.5, 0.6, 0.7])[groups]
    values = 4.0 * groups + draw.normal(size=80)
    apart = [("only", "here")] * 3, [None] * 4  # groups without the other set count for nothing
    found = unpaired(
        np.append(values[~is_b], [9.0] * 3),
        np.append(values[is_b], [-9.0] * 4),
        [*groups[~is_b], *apart[0]],
        [*groups[is_b], *apart[1]],
    )
    columns = np.column_stack([is_b, *(groups == each for each in range(5))]).astype(float)
    fitted = np.linalg.lstsq(columns, values, rcond=None)[0][0]
    assert found["difference"] == pytest.approx(fitted)
    assert found["low"] < fitted < found["high"]
    assert (found["n_a"], found["n_b"]) == ((~is_b).sum(), is_b.sum())
    assert found["p"] > 0.05
    assert unpaired(values[~is_b], values[is_b])["p"] < 0.001  # which is all of the groups


def test_intervals_of_sets_hold_what_their_tests_do_not_reject_as_often_as_they_say() -> None:
    draw = np.random.default_rng(2)
    groups = np.repeat(np.arange(6), 5)
    covered, rejected = 0, 0
    for _ in range(200):
        is_b = draw.permuted(np.tile([0, 0, 0, 1, 1], (6, 1)), axis=1).ravel() == 1
        values = draw.exponential(size=30) + groups + 1.5 * is_b
        found = unpaired(values[~is_b], values[is_b], groups[~is_b], groups[is_b])
        covered += found["low"] <= 1.5 <= found["high"]
        shifted = unpaired(values[~is_b], values[is_b] - 1.5, groups[~is_b], groups[is_b])
        rejected += shifted["p"] <= 0.05
    assert 182 <= covered <= 198
    assert 2 <= rejected <= 18


@pytest.mark.parametrize(
    ("a", "b"), [([1.0, 2.0] * 3, [3.0] * 5), ([2.0] * 6, [2.0] * 6), ([], [1.0] * 6)]
)
def test_sets_that_are_small_or_all_equal_have_no_interval(a: list[float], b: list[float]) -> None:
    found = unpaired(np.array(a), np.array(b))
    assert np.isnan([found["low"], found["high"], found["p"]]).all()
    assert np.isnan(found["difference"]) == (not a)


def test_few_permutations_make_no_small_p_value() -> None:
    pairs = list(range(6))
    a = np.arange(6.0)
    found = unpaired(a, a + np.arange(1.0, 7), pairs, pairs)
    assert found["p"] == pytest.approx(2 / 64, abs=0.005)
    assert found["low"] > 0
    same = unpaired(a, a + 1, pairs, pairs)
    assert same["p"] == pytest.approx(2 / 64, abs=0.005)
    assert np.isnan([same["low"], same["high"]]).all()
    apart = unpaired(a, a + 10)
    assert apart["p"] == pytest.approx(2 / 924, abs=0.001)
    draw = np.random.default_rng(0)
    p_values = [unpaired(draw.random(6), draw.random(6), pairs, pairs)["p"] for _ in range(200)]
    assert min(p_values) > 0.02


def test_sets_whose_groups_are_not_theirs_are_refused() -> None:
    with pytest.raises(UsageError, match="a group for each"):
        unpaired(np.ones(3), np.ones(2), ["x"] * 3, ["x"] * 3)


def test_holm_on_a_worked_example() -> None:
    """4 x 0.01, then 3 x 0.015, then 2 x 0.03 and 0.04, neither below the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.015]).tolist() == pytest.approx([0.04, 0.06, 0.06, 0.045])


def test_holm_does_not_count_tests_that_were_not_made() -> None:
    adjusted = holm([0.02, np.nan, 0.9])
    assert adjusted[[0, 2]].tolist() == pytest.approx([0.04, 0.9])
    assert np.isnan(adjusted[1])
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_p_values_and_bonferroni(p_values: list[float]) -> None:
    given_values, adjusted = np.array(p_values), holm(p_values)
    assert (adjusted >= given_values).all()
    assert (adjusted <= np.minimum(1, given_values * len(given_values)) + 1e-12).all()
    in_order = adjusted[np.argsort(given_values, kind="stable")]
    assert (np.diff(in_order) >= 0).all()


def test_holm_refuses_what_is_no_p_value() -> None:
    with pytest.raises(UsageError, match=r"between 0 and 1, not 1\.5"):
        holm([0.5, 1.5])


def test_the_chance_of_more_is_that_of_the_beta_binomial() -> None:
    rng = np.random.default_rng(0)
    shares = rng.beta(3.5, 7.5, 200_000)  # 3 of 10, with Jeffreys' prior
    more = rng.binomial(20, shares)
    assert chance_of_more(3, 10, 6, 20) == pytest.approx((more >= 6).mean(), abs=0.005)
    assert chance_of_more(3, 10, 0, 20) == 1
    assert chance_of_more(3, 10, 21, 20) == 0
    assert chance_of_more(3, 10, 1, 0) == 0
