"""Tests of the intervals and significance tests, against scipy and published numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hopscope.errors import UsageError
from hopscope.statistics import (
    chance_of_more,
    holm,
    intervals,
    mean_interval,
    mean_intervals,
    paired,
    t_interval,
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


@pytest.mark.parametrize("interval", [t_interval, mean_interval])
def test_one_value_has_no_interval_and_none_no_mean(interval: object) -> None:
    assert callable(interval)
    mean, *ends = interval(np.array([0.5]))
    assert mean == 0.5
    assert np.isnan(ends).all()
    assert np.isnan(interval(np.array([]))).all()


def test_mean_interval_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).normal(size=40)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    assert mean_interval(values, seed=7) == (values.mean(), expected.low, expected.high)


def test_mean_intervals_agree_with_mean_interval_up_to_resampling() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=50), rng.integers(0, 2, 50).astype(float), rng.normal(size=30)]
    for many, group in zip(mean_intervals(groups), groups, strict=True):
        assert many == pytest.approx(mean_interval(group), abs=0.03)


def test_intervals_group_rows_and_leave_out_what_is_missing() -> None:
    table = pd.DataFrame(
        {"layer": [1, 1, 0, 0], "effect": [1.0, 0.0, 2.0, np.nan], "other": [1, 2, 3, 4]}
    )
    summary = intervals(table, ["layer"], "effect", "mean")
    assert list(summary) == ["layer", "n", "mean", "low", "high"]
    assert summary[["layer", "n", "mean"]].to_numpy().tolist() == [[1, 2, 0.5], [0, 1, 2.0]]
    assert (summary["low"].iloc[0], summary["high"].iloc[0]) == (0.0, 1.0)


def test_paired_counts_and_tests_the_questions_that_differ() -> None:
    a = np.array([True, False, False, False, True, False])
    b = np.array([True, True, True, True, False, False])
    compared = paired(a, b)
    assert (compared["n"], compared["better"], compared["worse"]) == (6, 3, 1)
    assert compared["difference"] == pytest.approx(2 / 6)
    assert compared["p"] == pytest.approx(stats.binomtest(3, 4).pvalue)
    assert compared["low"] <= compared["difference"] <= compared["high"]


def test_paired_without_a_difference_has_p_1() -> None:
    same = np.array([1.0, 0.0, 1.0])
    assert paired(same, same)["p"] == 1.0


def test_paired_refuses_other_questions() -> None:
    with pytest.raises(UsageError, match="a has 2 questions and b has 3"):
        paired(np.zeros(2), np.zeros(3))


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
