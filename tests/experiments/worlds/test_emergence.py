"""Analyses over the steps of a training: weights, curves, film strips, resuming."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import hopscope as hs
from hopscope.errors import ResultError, UsageError
from hopscope.experiments.worlds.emergence import Emergence, kept_steps, over_checkpoints, world_at
from hopscope.experiments.worlds.emergence_plots import circuit_curves, with_intervals
from hopscope.statistics import wilson
from hopscope.training.fit import snapshot_path
from hopscope.training.settings import Schedule
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.small_model import Shape, untrained
from hopscope.worlds.tasks.two_hop_facts import TwoHopFacts
from hopscope.worlds.train import train_world
from hopscope.worlds.world import World

RECIPE = Recipe(
    "tiny",
    TwoHopFacts(n_entities=6, n_relations=3, unseen=0.15, held_out=8, atom_repeats=2),
    Shape(n_blocks=1, n_loops=2, d_model=16, n_heads=2),
    Schedule(steps=4, batch_size=8, warmup_steps=1, checkpoint_every=2, learning_rate=0.01),
)
STEPS = (0, 2, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("world")
    train_world("tiny", 1, place, recipe=RECIPE, snapshots=STEPS, progress=False)
    return place


def patched(world: World) -> hs.BackPatching:
    queries = world.queries("first_hop_ood")[:3]
    return hs.back_patch(world.model, queries, ("t1",), controls=(), progress=False)


def graded(world: World) -> hs.Grading:
    return hs.grade(world.model, world.queries()[:4], progress=False)


def test_each_step_has_its_own_weights(folder):
    assert kept_steps(folder) == list(STEPS)
    models = {step: world_at(folder, step).model for step in STEPS}
    first = untrained(RECIPE.seeded(1).task.words, RECIPE.shape, 1, "first")
    ids = torch.tensor([[3, 4]])
    torch.testing.assert_close(models[0].hf(ids).logits, first.hf(ids).logits)
    last = hs.load_model(folder)
    torch.testing.assert_close(models[4].hf(ids).logits, last.hf(ids).logits)
    assert len({model.fingerprint for model in models.values()}) == 3
    assert models[2].name == "world:tiny@1 step 2"


def test_the_frame_is_that_of_the_analysis_at_every_step(folder):
    result = over_checkpoints(folder, patched, progress=False)
    for step in STEPS:
        own = result.frame[result.frame["step"] == step].drop(columns="step")
        expected = patched(world_at(folder, step)).frame
        pd.testing.assert_frame_equal(own.reset_index(drop=True), expected)
    assert result.run["settings"]["analysis"] == "back_patching"
    chosen = over_checkpoints(folder, patched, [2], progress=False)
    assert set(chosen.frame["step"]) == {2}


def test_a_run_goes_on_where_it_stopped_and_is_read_back(folder, tmp_path):
    calls = []

    def counted(world: World) -> hs.Grading:
        calls.append(world.model.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return graded(world)

    with pytest.raises(KeyboardInterrupt):
        over_checkpoints(folder, counted, out=tmp_path / "run", progress=False)
    result = over_checkpoints(folder, counted, out=tmp_path / "run", progress=False)
    assert calls[3:] == ["world:tiny@1 step 4", "world:tiny@1 step 2"]
    whole = over_checkpoints(folder, graded, progress=False)
    pd.testing.assert_frame_equal(result.frame, whole.frame)
    again = hs.load_result(tmp_path / "run")
    assert isinstance(again, Emergence)
    pd.testing.assert_frame_equal(again.frame, whole.frame)
    with pytest.raises(ResultError, match="another run"):
        over_checkpoints(folder, patched, out=tmp_path / "run", progress=False)


def test_a_folder_that_is_called_as_a_world_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_world("tiny", 4, "two-hop-looped", recipe=RECIPE, snapshots=[4], progress=False)
    assert world_at("two-hop-looped", 4).seed == 4
    assert over_checkpoints("two-hop-looped", graded, progress=False).frame["step"].unique() == [4]


def test_damaged_and_foreign_snapshots_are_told(tmp_path):
    train_world("tiny", 4, tmp_path, recipe=RECIPE, snapshots=[4], progress=False)
    path = snapshot_path(tmp_path, 4)
    kept = load_file(path)
    save_file({name: each for name, each in kept.items() if "ln_f" not in name}, path)
    with pytest.raises(ResultError, match="another model"):
        world_at(tmp_path, 4)
    path.write_bytes(b"no tensors")
    with pytest.raises(ResultError, match="damaged"):
        world_at(tmp_path, 4)


def made() -> Emergence:
    frame = pd.DataFrame(
        {
            "step": [0, 0, 0, 9, 9, 9],
            "query": ["a", "b", "a", "a", "b", "a"],
            "source_layer": [1, 1, 2, 1, 1, 2],
            "target_layer": 0,
            "hit": [False, False, True, True, False, True],
        }
    )
    details = pd.DataFrame({"query": ["a", "b"]})
    return Emergence(frame, details, {"queries": {"n": 2}})


def test_curves_and_films_are_means():
    curves = made().curves("hit", "source_layer")
    assert curves.columns.tolist() == ["step", "source_layer", "hit", "n"]
    assert curves["hit"].tolist() == [0, 1, 0.5, 1]
    assert curves["n"].tolist() == [2, 1, 2, 1]
    assert made().curves("hit")["hit"].tolist() == [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    film = made().film("hit", "target_layer", "source_layer")
    assert list(film) == [0, 9]
    assert film[9].loc[0].to_dict() == {1: 0.5, 2: 1.0}


def test_every_axis_of_the_circuit_has_one_measure():
    rows = [
        (step, measure, split, control, layer, value, 20)
        for step, value in ((0, 0.0), (9, 0.5))
        for measure, split, control, layer in (
            ("accuracy", "in_distribution", "none", -1),
            ("bridge", "in_distribution", "none", 2),
            ("knockout", "in_distribution", "t2->t1", 0),
            ("knockout", "in_distribution", "t2->t1", 3),
            ("patched", "first_hop_ood", "clean", -1),
        )
    ]
    names = ["step", "measure", "split", "control", "layer", "value", "n"]
    frame = with_intervals(pd.DataFrame(rows, columns=names))
    shares = frame["measure"] != "bridge"
    assert frame.loc[~shares, ["low", "high"]].isna().all(axis=None)
    half = frame[shares & (frame["value"] == 0.5)]
    assert half[["low", "high"]].to_numpy().tolist() == [list(wilson(10, 20)[1:])] * len(half)
    figure = circuit_curves(frame)
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "two-hop questions right",
        "mean reciprocal rank",
        "questions still right",
        "questions right",
    ]
    drawn = [[line for line in ax.lines if len(line.get_ydata())] for ax in figure.axes]
    assert [len(each) for each in drawn] == [1, 1, 2, 1]
    assert all(line.get_ydata().tolist() == [0, 0.5] for each in drawn for line in each)
    plt.close("all")


def test_pictures_show_the_numbers():
    ax = made().plot("hit", ["source_layer"])
    assert np.allclose([line.get_ydata() for line in ax.lines[:2]], [[0, 0.5], [1, 1]])
    figure = made().plot_film("hit", "target_layer", "source_layer")
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["step 0", "step 9"]
    assert len(made().plot_film("hit", "target_layer", "source_layer", most=1).axes) == 2
    below = made()
    below.frame["hit"] = -1.0
    drawn = below.plot_film("hit", "target_layer", "source_layer").axes[0].collections[0]
    assert drawn.norm.vmin == -1
    plt.close("all")


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(UsageError, match="it has 0, 2, 4"):
        world_at(folder, 3)
    with pytest.raises(UsageError, match="the frame has step, query"):
        made().curves("rank")
    train_world("bare", 0, tmp_path / "w", recipe=RECIPE, progress=False)
    with pytest.raises(UsageError, match="--snapshots"):
        over_checkpoints(tmp_path / "w", graded)
    with pytest.raises(UsageError, match="no world"):
        over_checkpoints(tmp_path, graded, [0])
