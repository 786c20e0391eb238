"""What the analyses read off worlds: against plain counting, and against the truth."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import hopscope as hs
from hopscope.engine.edits import Knockout, Patch
from hopscope.errors import UsageError
from hopscope.experiments.worlds.circuit import Circuit, circuit
from hopscope.experiments.worlds.circuit_plots import circuit_figure
from hopscope.training.settings import Schedule
from hopscope.worlds.load import load_world
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.two_hop_facts import TwoHopFacts
from hopscope.worlds.train import train_world
from hopscope.worlds.world import World

RECIPE = Recipe(
    "half learned",
    TwoHopFacts(n_entities=8, n_relations=3, unseen=0.2, held_out=20, atom_repeats=2),
    Shape(n_blocks=3, d_model=32, n_heads=2),
    Schedule(steps=120, batch_size=32, warmup_steps=10, learning_rate=5e-3),
)
TRUE_SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def small() -> list[World]:
    return [train_world("half", seed, recipe=RECIPE, progress=False) for seed in (0, 1)]


@pytest.fixture(scope="module")
def read(small: list[World]) -> Circuit:
    return circuit(small, limit=12, progress=False)


def says(world: World, text: str, *edits: Patch | Knockout) -> str:
    """The likeliest next word, by one hooked forward of the whole prompt."""
    ids = torch.tensor([world.model.encode(text).ids])
    with torch.no_grad(), hs.edit(world.model, edits, ids.shape[1]):
        return world.model.decode([int(world.model.hf(ids).logits[0, -1].argmax())])


def state(world: World, text: str, layer: int, token: int) -> torch.Tensor:
    """What a block adds up to, by a plain hook."""
    ids = torch.tensor([world.model.encode(text).ids])
    seen = []
    handle = world.model.layers[layer].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        world.model.hf(ids)
    handle.remove()
    return seen[0][0, token]


def value(read: Circuit, seed: int, **where: object) -> float:
    rows = read.frame[read.frame["seed"] == seed]
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1, where
    return float(rows["value"].iloc[0])


def test_accuracy_is_that_of_whole_splits(small, read):
    for world in small:
        for split in world.task.splits:
            queries = world.queries(split)
            right = np.mean([says(world, q.two_hop()) == q.e3 for q in queries])
            assert value(read, world.seed, measure="accuracy", split=split) == pytest.approx(right)


def test_patched_shares_are_those_of_plain_forwards(small, read):
    world = small[0]
    queries = world.queries("first_hop_ood").sample(12, 0)
    result = hs.back_patch(
        world.model, queries, ("t1",), ("other",), criterion="first_token", progress=False
    )
    cell = result.best_cell()
    scored = [q for q in queries if q.id not in result.choosing_half()]
    source, target = cell.source_layer, cell.target_layer
    patched, clean = [], []
    for q in scored:
        text = q.two_hop()
        clean.append(says(world, text) == q.e3)
        own = Patch(target, 1, state(world, text, source, 1))
        patched.append(says(world, text, own) == q.e3)
    found = {"measure": "patched", "split": "first_hop_ood"}
    assert value(read, 0, control="none", **found) == pytest.approx(np.mean(patched))
    assert value(read, 0, control="clean", **found) == pytest.approx(np.mean(clean))


def test_knock_outs_count_what_was_right_and_stays_so(small, read):
    world = small[0]
    queries = [
        q
        for q in world.queries("in_distribution").sample(12, 0)
        if says(world, q.two_hop()) == q.e3
    ]
    assert queries
    for edge, key in (("t2->t1", 1), ("t2->e1", 0)):
        for layer in range(3):
            cut = Knockout([layer], [2], [key])
            kept = np.mean([says(world, q.two_hop(), cut) == q.e3 for q in queries])
            found = {"measure": "knockout", "control": edge, "layer": layer}
            assert value(read, 0, **found) == pytest.approx(kept)


def test_the_bridge_is_read_by_the_logit_lens(small, read):
    world, ranks = small[0], []
    for q in world.queries("first_hop_ood").sample(12, 0):
        hidden = state(world, q.two_hop(), 0, 1)
        logits = world.model.unembedding(world.model.final_norm(hidden))
        bridge = world.model.tokenizer.get_vocab()[q.e2]
        ranks.append(int((logits > logits[bridge]).sum()))
    expected = np.mean(1 / (1 + np.array(ranks)))
    found = {"measure": "bridge", "split": "first_hop_ood", "layer": 0}
    assert value(read, 0, **found) == pytest.approx(expected)


def test_the_summary_is_over_seeds(read):
    row = read.summary().query("measure == 'accuracy' and split == 'in_distribution'").iloc[0]
    seeds = [value(read, seed, measure="accuracy", split="in_distribution") for seed in (0, 1)]
    assert row["value"] == pytest.approx(np.mean(seeds))
    assert row["n_seeds"] == 2
    assert row["low"] < row["value"] < row["high"] or seeds[0] == seeds[1]
    assert read.summary()[["low", "high"]].stack().dropna().between(0, 1).all()


def test_a_run_goes_on_after_the_last_finished_world(small, read, tmp_path, monkeypatch):
    from hopscope.experiments.worlds import circuit as circuit_module

    tables = circuit_module._tables

    def dying(world, *rest):
        if world.seed == 1:
            raise KeyboardInterrupt
        return tables(world, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(circuit_module, "_tables", dying)
        with pytest.raises(KeyboardInterrupt):
            circuit(small, limit=12, out=tmp_path / "run", progress=False)
    monkeypatch.setattr(circuit_module, "_tables", lambda world, *rest: tables(small[1], *rest))
    again = circuit(small, limit=12, out=tmp_path / "run", progress=False)
    pd.testing.assert_frame_equal(again.frame, read.frame)
    loaded = hs.load_result(tmp_path / "run")
    assert isinstance(loaded, Circuit)
    pd.testing.assert_frame_equal(loaded.details, read.details)


def test_it_computes_in_one_thread_and_leaves_them_as_they_were(small, monkeypatch):
    from hopscope.experiments.worlds import circuit as circuit_module

    before, during = torch.get_num_threads(), []

    def failing(*_):
        during.append(torch.get_num_threads())
        raise RuntimeError("midway")

    monkeypatch.setattr(circuit_module, "_tables", failing)
    try:
        torch.set_num_threads(2)
        with pytest.raises(RuntimeError, match="midway"):
            circuit(small, limit=10, progress=False)
        assert (during, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_no_world_the_same_twice_and_one_question_are_refused(small):
    with pytest.raises(UsageError, match="2 or more"):
        circuit(small, limit=1)
    for worlds in ([], [small[0], small[0]]):
        with pytest.raises(UsageError, match="each once" if worlds else "at least one World"):
            circuit(worlds)


def test_the_picture_shows_every_measure(read):
    figure = circuit_figure(read.frame)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [
        "answers",
        "1st hop unseen, r1 back-patched",
        "one edge knocked out",
        "bridge read at r1",
    ]
    drawn = figure.axes[2].lines
    assert len(drawn) == 2 * 3  # for each edge two seeds and their mean
    many = pd.concat([read.frame.assign(world=f"world {n}") for n in range(6)])
    many = many[~((many["world"] == "world 0") & (many["measure"] == "knockout"))]
    colors = {line.get_color() for line in circuit_figure(many).axes[2].lines}
    first = circuit_figure(many).axes[3].lines[0].get_color()
    assert len(colors) == 5
    assert first not in colors  # one that has no rows somewhere does not lend its colour
    plt.close(figure)


# The truth


@pytest.fixture(scope="module")
def truth() -> pd.DataFrame:
    names = ("two-hop-looped", "two-hop-memoriser")
    worlds = [load_world(name, seed) for name in names for seed in TRUE_SEEDS]
    return circuit(worlds, limit=40, progress=False).frame


def of(truth: pd.DataFrame, world: str, measure: str, **where: object) -> np.ndarray:
    """The values of a measure by seed."""
    rows = truth[(truth["world"] == world) & (truth["measure"] == measure)]
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert rows["seed"].tolist() == list(TRUE_SEEDS), where
    return rows["value"].to_numpy()


def test_the_composer_is_read_right(truth):
    name = "two-hop-looped"
    assert (of(truth, name, "accuracy", split="in_distribution") >= 0.98).all()
    ood = {"split": "first_hop_ood"}
    clean, own, other, random = (
        of(truth, name, "patched", control=control, **ood)
        for control in ("clean", "none", "other", "random")
    )
    assert (of(truth, name, "accuracy", split="first_hop_ood") < 0.85).all()
    assert (own > clean + 0.05).all()
    assert (own > 0.85).all()
    assert (np.maximum(other, random) < 0.35).all()
    second = {"split": "second_hop_ood"}
    gained = of(truth, name, "patched", control="none", **second) - of(
        truth, name, "patched", control="clean", **second
    )
    assert (gained < 0.15).all()
    early = of(truth, name, "knockout", control="t2->t1", layer=0)
    late = np.minimum(
        *(of(truth, name, "knockout", control="t2->t1", layer=layer) for layer in (2, 3))
    )
    assert (early > 0.95).all()
    assert (late < 0.75).all()
    early = of(truth, name, "bridge", split="first_hop_ood", layer=0)
    assert (early < of(truth, name, "bridge", split="in_distribution", layer=0)).all()
    assert (of(truth, name, "bridge", split="first_hop_ood", layer=2) > 0.95).all()


def test_the_memoriser_shows_none_of_it(truth):
    name = "two-hop-memoriser"
    assert (of(truth, name, "accuracy", split="trained") > 0.98).all()
    assert (of(truth, name, "accuracy", split="in_distribution") < 0.5).all()
    own = of(truth, name, "patched", control="none", split="first_hop_ood")
    assert (own < 0.35).all()
    late = of(truth, name, "bridge", split="first_hop_ood", layer=2)
    assert (late < 0.7).all()
