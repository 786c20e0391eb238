"""Whether zero-hop facts help to compose: gains from tables made by hand, and a real run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from hopscope.errors import UsageError
from hopscope.experiments.worlds.identity_bridge import ARMS, IdentityBridge, identity_bridge
from hopscope.experiments.worlds.identity_plots import zero_hop_bars
from hopscope.loading import load_result
from hopscope.training.settings import Schedule
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.two_hop_facts import TwoHopFacts

SHARES = {
    "in_distribution": {"none": (0.9, 1.0), "identity": (1.0, 1.0), "shuffled": (0.9, 0.9)},
    "first_hop_ood": {"none": (0.5, 0.7), "identity": (0.6, 0.8), "shuffled": (0.4, 0.6)},
    "second_hop_ood": {"none": (0.0, 0.1), "identity": (0.5, 0.7), "shuffled": (0.1, 0.0)},
}
SMALL: dict[str, Any] = {
    "facts": TwoHopFacts(n_entities=6, n_relations=3, unseen=0.15, held_out=8, atom_repeats=2),
    "shape": Shape(n_blocks=1, d_model=16, n_heads=2),
    "schedule": Schedule(steps=3, batch_size=8, warmup_steps=1),
    "progress": False,
}


def result() -> IdentityBridge:
    rows = [
        {"zero_hop": arm, "seed": seed, "split": split, "n": 20, "accuracy": share}
        for split, arms in SHARES.items()
        for arm, shares in arms.items()
        for seed, share in enumerate(shares)
    ]
    return IdentityBridge(pd.DataFrame(rows), pd.DataFrame(rows), {})


def test_gains_are_paired_by_seed() -> None:
    gains = result().gains().set_index(["split", "zero_hop", "minus"])
    assert len(gains) == 9
    over_none = gains.loc[("second_hop_ood", "identity", "none")]
    assert over_none["difference"] == pytest.approx(0.55)
    assert over_none["n_seeds"] == 2
    # The differences are .5 and .6, and t at one degree of freedom is 12.706.
    assert over_none["low"] == pytest.approx(0.55 - 12.706 * 0.05, rel=1e-3)
    assert over_none["high"] == 1  # what a difference of shares can be at most
    same = gains.loc[("first_hop_ood", "identity", "none")]
    assert same["difference"] == pytest.approx(0.1)
    over_control = gains.loc[("first_hop_ood", "identity", "shuffled"), "difference"]
    assert over_control == pytest.approx(0.2)
    assert gains.loc[("first_hop_ood", "shuffled", "none"), "difference"] == pytest.approx(-0.1)


def test_what_is_found_is_told_beside_its_control() -> None:
    last = result().findings()[-1]
    assert last.startswith("With identities 60 % (0\u2013100) of the compositions whose second hop")
    assert "+55 points (-9 to +100) over none" in last.replace("\N{MINUS SIGN}", "-")
    assert "over shuffled ones." in last


def test_a_bar_is_drawn_for_each_kind_and_split() -> None:
    made = result()
    ax = zero_hop_bars(made.summary(), made.frame)
    heights = {round(patch.get_height(), 2) for patch in ax.patches}
    assert {0.05, 0.6, 0.95} <= heights
    assert len(ax.patches) == 9
    plt.close("all")


def test_trainings_differ_in_their_zero_hop_facts_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    part = identity_bridge((0, 1), **SMALL, out=folder, shard=(1, 2))
    assert len(part.details) == 3
    assert part.gains()["n_seeds"].max() <= 1
    whole = identity_bridge((0, 1), **SMALL, out=folder)
    kinds = whole.details[["zero_hop", "seed"]].apply(tuple, axis=1).tolist()
    assert kinds == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    frame = whole.frame
    assert set(frame["split"]) == {"zero_hop", "atoms", "trained", *SHARES}
    assert set(frame.loc[frame["split"] == "zero_hop", "zero_hop"]) == {"identity", "shuffled"}
    assert frame.groupby(["split", "seed"])["n"].nunique().eq(1).all()
    assert frame["accuracy"].between(0, 1).all()
    pd.testing.assert_frame_equal(load_result(folder).frame, frame)
    again = identity_bridge((0, 1), **SMALL, out=folder)
    assert again.frame["seconds"].tolist() == frame["seconds"].tolist(), "trained again"


def test_identities_are_learned(tmp_path: Path) -> None:
    """A model of a few steps says an entity after itself, or the one that it was led to."""
    learning = {**SMALL, "schedule": Schedule(steps=300, batch_size=64, warmup_steps=10)}
    frame = identity_bridge((0,), **learning).frame.set_index(["split", "zero_hop"])
    assert frame.loc[("zero_hop", "identity"), "accuracy"] == 1
    assert frame.loc[("zero_hop", "shuffled"), "accuracy"] == 1


def test_without_seeds_nothing_is_trained() -> None:
    with pytest.raises(UsageError, match="at least one seed"):
        identity_bridge((), **SMALL)
