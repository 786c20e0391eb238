"""How much data a composition takes: the power law from tables made by hand, and a real run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from hopscope.errors import UsageError
from hopscope.experiments.worlds.coverage_plots import needed_points
from hopscope.experiments.worlds.data_needed import (
    DataNeeded,
    data_needed,
    examples_to_try,
)
from hopscope.experiments.worlds.trainings import Trainings
from hopscope.loading import load_result
from hopscope.training.settings import Schedule
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.composed_tables import ComposedTables


def result(curves: dict[int, dict[int, float]]) -> DataNeeded:
    rows = [
        {"structure": "two_hop", "n_tokens": n, "n_examples": k, "seed": 0, "accuracy": value}
        for n, curve in curves.items()
        for k, value in curve.items()
    ]
    return DataNeeded(pd.DataFrame(rows), pd.DataFrame(rows), {})


def test_what_is_needed_lies_between_the_numbers_tried_on_the_logarithm():
    table = result({10: {100: 0.1, 400: 0.5, 1600: 1.0}}).needed(0.75)
    assert table.loc[0, ["below", "above"]].tolist() == [400, 1600]
    assert table.loc[0, "examples"] == pytest.approx(800)  # half-way between, in the logarithm


def test_a_size_that_never_or_always_passes_is_left_out():
    table = result({10: {100: 0.1, 400: 0.2}, 20: {100: 0.95, 400: 1.0}}).needed()
    assert table["examples"].isna().all()


@pytest.mark.parametrize("power", [1.5, 2.26])
def test_the_exponent_of_a_power_law_is_found(power):
    curves = {}
    for n in (10, 20, 40, 80):
        at = 3.0 * n**power
        curves[n] = {round(at / 2 * 1000): 0.8, round(at * 2 * 1000): 1.0}
    found = result(curves).exponent(0.9)
    assert found.value == pytest.approx(power, abs=1e-3)
    assert found.factor == pytest.approx(3000, rel=1e-2)
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 0.01
    assert found.published == 2.26


def test_the_interval_is_that_of_a_regression():
    rng = np.random.default_rng(0)
    sizes = np.array([10, 20, 40, 80])
    wanted = 5 * sizes**2.0 * np.exp(rng.normal(0, 0.1, 4))
    curves = {
        int(n): {round(at * 100): 0.8, round(at * 400): 1.0}
        for n, at in zip(sizes, wanted, strict=True)
    }
    found = result(curves).exponent(0.9)
    x, y = np.log(sizes), np.log(wanted)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    rest = y - y.mean() - slope * (x - x.mean())
    error = np.sqrt((rest**2).sum() / 2 / ((x - x.mean()) ** 2).sum())
    assert found.value == pytest.approx(slope, abs=1e-3)
    assert found.high - found.value == pytest.approx(4.3027 * error, rel=1e-2)  # t at 2 degrees


def test_one_size_gives_no_exponent():
    with pytest.raises(UsageError, match="only 1 sizes"):
        result({10: {100: 0.1, 400: 1.0}, 20: {100: 0.1}}).exponent()


def test_examples_scale_as_they_say():
    assert examples_to_try(20, (0.5, 1.0)) == [2000, 4000]
    assert examples_to_try(40, (1.0,), exponent=2.0) == [16000]


def test_trainings_are_run_in_shards_and_go_on(tmp_path):
    how = {
        "sizes": (4, 5),
        "examples": ((20, 40), (30, 60)),
        "shape": Shape(n_blocks=1, d_model=16, n_heads=2),
        "schedule": Schedule(steps=3, batch_size=8),
        "progress": False,
        "out": tmp_path / "run",
    }
    assert data_needed(**how, shard=(1, 2)).frame["n_examples"].tolist() == [20, 30]
    whole = data_needed(**how)
    assert whole.frame["n_examples"].tolist() == [20, 40, 30, 60]
    assert whole.frame["n_inputs"].tolist() == [64, 64, 125, 125]
    assert whole.frame["accuracy"].between(0, 1).all()
    pd.testing.assert_frame_equal(load_result(tmp_path / "run").frame, whole.frame)
    again = data_needed(**how)
    assert again.frame["seconds"].tolist() == whole.frame["seconds"].tolist(), "trained again"
    with pytest.raises(UsageError, match="run folder"):
        data_needed(**{**how, "out": None}, shard=(1, 2))
    with pytest.raises(UsageError, match="each of 2 sizes"):
        data_needed(**{**how, "examples": ((20,),)})


def test_results_go_on_where_more_can_be_given_of_a_task():
    tasks = [ComposedTables("two_hop", 20, 5000, 0)]
    before = [{"structure": "two_hop", "n_tokens": 20, "n_examples": 5000, "seed": 0}]
    digest = hashlib.sha256(json.dumps(before).encode()).hexdigest()
    assert Trainings(tasks, "tables").fingerprint == digest
    assert Trainings([replace(tasks[0], n_bridges=4)], "tables").fingerprint != digest


def test_the_exponent_stands_above_the_line():
    found = result({n: {n**2: 0.8, 2 * n**2: 1.0} for n in (10, 20, 40)})
    needed = pd.DataFrame(
        [(n, n**2, n**2 - 1, n**2 + 1) for n in (10, 20, 40)],
        columns=["n_tokens", "examples", "below", "above"],
    )
    ax = needed_points(needed, found.exponent(0.9))
    fitted = ax.get_legend().get_texts()[0].get_text()
    assert fitted.startswith("fitted: $n^{2.00}$ (")
    plt.close("all")
