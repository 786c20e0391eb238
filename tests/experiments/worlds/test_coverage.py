"""Accuracy and IICG by cutoff: against plain forwards and every pair of states."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

import hopscope as hs
from hopscope.errors import UsageError
from hopscope.experiments.worlds.coverage import GROUPINGS, Coverage, coverage
from hopscope.experiments.worlds.coverage_cutoffs import cutoffs
from hopscope.experiments.worlds.coverage_plots import cutoff_curves, gap_curves
from hopscope.experiments.worlds.emergence import over_checkpoints
from hopscope.training.settings import Schedule
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.composed_tables import ComposedTables
from hopscope.worlds.tasks.two_hop_facts import TwoHopFacts
from hopscope.worlds.train import train_world
from hopscope.worlds.world import World

RECIPE = Recipe(
    "tables",
    ComposedTables(n_tokens=6, n_examples=60),
    Shape(n_blocks=2, d_model=16, n_heads=2),
    Schedule(steps=60, batch_size=32, warmup_steps=5, learning_rate=1e-2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tables")
    train_world("tables", 0, place, recipe=RECIPE, snapshots=(0, 60), progress=False)
    return place


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return hs.load_world(folder)


@pytest.fixture(scope="module")
def read(world: World) -> Coverage:
    return coverage(world)


def cutoff_of(world: World) -> np.ndarray:
    task = world.task
    return cutoffs(task.inputs, task.answers, task.examples)[task.held_out]


def test_accuracy_by_cutoff_counts_plain_forwards(world, read):
    right = []
    for query in world.queries():
        ids = torch.tensor([world.model.encode(query.two_hop()).ids])
        said = world.model.hf(ids).logits[0, -1].argmax()
        right.append(world.model.decode([int(said)]) == query.e3_label)
    cutoff = cutoff_of(world)
    assert len(set(cutoff)) > 2
    table = read.accuracy().set_index("cutoff")
    for k in set(cutoff):
        own = np.array(right)[cutoff == k]
        assert table.loc[k, "n"] == len(own)
        # An answer is right if the end comes after it, too.
        assert table.loc[k, "accuracy"] <= own.mean() + 1e-9
    assert table["accuracy"].mean() > 0
    assert read.frame.query("measure == 'accuracy'")["value"].tolist() == pytest.approx(
        table["accuracy"].tolist()
    )


@pytest.mark.parametrize("grouping", ["bridge", "bridge and x2", "bridge among equal x2"])
def test_iicg_is_over_pairs_of_states(world, read, grouping):
    task, states = world.task, []
    seen: list[torch.Tensor] = []
    handle = world.model.layers[0].register_forward_hook(lambda *call: seen.append(call[2]))
    for query in world.queries():
        world.model.hf(torch.tensor([world.model.encode(query.two_hop()).ids]))
        states.append(seen.pop()[0, 1])
    handle.remove()
    groups = [
        (int(task.bridges[i]), int(task.inputs[i, 1]) if grouping == "bridge and x2" else 0)
        for i in task.held_out
    ]
    unit = torch.nn.functional.normalize(torch.stack(states), dim=-1)
    cosines, cutoff = (unit @ unit.T).numpy(), cutoff_of(world)
    pairs = list(combinations(range(len(groups)), 2))
    if grouping == "bridge among equal x2":
        second = task.inputs[task.held_out, 1]
        pairs = [(a, b) for a, b in pairs if second[a] == second[b]]
    for k in (-1, int(np.bincount(cutoff).argmax())):
        own = [(a, b) for a, b in pairs if k < 0 or cutoff[a] == cutoff[b] == k]
        within = np.mean([cosines[a, b] for a, b in own if groups[a] == groups[b]])
        between = np.mean([cosines[a, b] for a, b in own if groups[a] != groups[b]])
        row = read.frame.query(
            "measure == 'iicg' and position == 1 and layer == 0 and cutoff == @k"
            " and grouping == @grouping"
        )
        assert row["value"].item() == pytest.approx(within - between, abs=1e-4)
    assert read.iicg(grouping).shape == (2, 3)
    with pytest.raises(
        UsageError, match="choose one of bridge, bridge and x2, bridge among equal x2"
    ):
        read.iicg("x2")


def test_over_the_steps_of_a_training(folder, read, tmp_path):
    result = over_checkpoints(folder, coverage, out=tmp_path / "run", progress=False)
    last = result.frame.query("step == 60").drop(columns="step").reset_index(drop=True)
    pd.testing.assert_frame_equal(last, read.frame)
    before = result.frame.query("step == 0 and measure == 'accuracy'")
    assert before["value"].max() < read.accuracy()["accuracy"].max()


def test_a_result_is_saved_and_read_back(read, tmp_path):
    again = hs.load_result(read.save(tmp_path / "run"))
    assert isinstance(again, Coverage)
    pd.testing.assert_frame_equal(again.accuracy(), read.accuracy())


def test_other_worlds_are_refused():
    facts = TwoHopFacts(n_entities=6, n_relations=3, unseen=0.15, held_out=8)
    schedule = Schedule(steps=1, batch_size=2)
    other = train_world("facts", recipe=Recipe("", facts, Shape(d_model=16), schedule))
    with pytest.raises(UsageError, match="composes no tables"):
        coverage(other)


def test_cutoffs_of_few_inputs_share_a_line_and_their_mean_is_over_inputs_of_all_seeds():
    sizes = {0: 1, 5: 3, 6: 70, 7: 200, 9: 10, 10: 16}
    rows = [
        (step, cutoff, 0.05 * cutoff + 0.2 * seed + 0.01 * step, n)
        for seed in (0, 1) for step in (0, 9) for cutoff, n in sizes.items()
    ]  # fmt: skip
    ax = cutoff_curves(pd.DataFrame(rows, columns=["step", "cutoff", "value", "n"]))
    assert "weakest link" in ax.get_legend().get_title().get_text()
    assert len({to_hex(line.get_color()) for line in ax.get_lines()}) == 3
    assert len({line.get_marker() for line in ax.get_lines()}) == 3
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["0 (2)", "5 to 6 (146)", "7 to 10 (452)"]
    none, low, high = (line.get_ydata().tolist() for line in ax.get_lines())
    low_mean, high_mean = (5 * 3 + 6 * 70) / 73, (7 * 200 + 9 * 10 + 10 * 16) / 226
    for line, mean in ((none, 0), (low, low_mean), (high, high_mean)):
        assert line == pytest.approx([0.05 * mean + 0.1, 0.05 * mean + 0.19])


def test_gaps_of_seeds_are_thin_lines_about_their_mean(read):
    seeds = [read.frame.assign(step=0, seed=seed) for seed in (0, 1)]
    seeds[1]["value"] += 0.2
    ax = gap_curves(pd.concat(seeds))
    found = [line.get_ydata().item() for line in ax.get_lines()[:-1]]  # the last one is at 0
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert tuple(names) == GROUPINGS
    for number, name in enumerate(names):
        best = read.iicg(name)[1].max()
        assert found[3 * number : 3 * number + 3] == pytest.approx([best, best + 0.2, best + 0.1])
    alone = gap_curves(read.frame.assign(step=0)).get_lines()[1]
    assert alone.get_ydata().item() == read.iicg()[1].max()
