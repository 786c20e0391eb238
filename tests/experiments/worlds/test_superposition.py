"""What thoughts hold: measured on a world trained here, against sums done one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from hopscope.errors import UsageError
from hopscope.experiments.worlds.graph_plots import MEASURE_TITLES, thought_lines
from hopscope.experiments.worlds.superposition import (
    Superposition,
    _kind,
    first_steps,
    superposition,
)
from hopscope.loading import load_result
from hopscope.queries.graph_paths import reachable
from hopscope.training.settings import Schedule
from hopscope.worlds.load import load_world
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.graph_reachability import GraphReachability, Maze
from hopscope.worlds.thoughts import think
from hopscope.worlds.train import thought_of, train_world
from hopscope.worlds.world import World

TASK = GraphReachability(n_vertices=10, n_edges=10, depth=2, stage_steps=10)
TINY = Recipe(
    "tiny",
    TASK,
    Shape(n_blocks=2, n_heads=2, d_model=16, n_positions=48),
    Schedule(steps=4, batch_size=8, warmup_steps=1),
)


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    pausing = replace(TINY, task=replace(TASK, continuous=False))
    return [
        train_world("tiny", recipe=TINY, progress=False),
        train_world("pausing", recipe=pausing, progress=False),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_products_and_attention_are_those_of_a_loop_over_vertices_and_edges(worlds, which):
    world = worlds[which]
    result = superposition([world], limit=3, progress=False)
    hf, vocabulary = world.model.hf, world.model.tokenizer.get_vocab()
    thought = thought_of(world.task, world.model)
    maze = world.task.mazes()[2]
    steps = reachable(maze.edges, maze.way[0])
    ids = torch.tensor([[vocabulary[word] for word in (*maze.prompt, "T", "T", "A")]])
    embedded = hf.transformer.wte(ids).detach().clone()
    n = len(maze.prompt)
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        for place in (n, n + 1):
            if thought is not None:
                before = hf.transformer(inputs_embeds=embedded[:, :place]).last_hidden_state
                embedded[:, place] = before[:, -1]
        output = hf.transformer(inputs_embeds=embedded, output_attentions=True)
    hf.set_attn_implementation("sdpa")
    own = result.frame[result.frame["query"].str.endswith(".2")]
    for number, (read_at, before) in product((1, 2), (("before", 1), ("at", 0))):
        place = n + number - 1 - before
        state = output.last_hidden_state[0, place]
        products, attention = {}, {}
        for vertex in world.task.vertices:
            kind = _kind(steps.get(vertex), vertex, maze, number)
            logit = float(state @ hf.lm_head.weight[vocabulary[vertex]])
            products.setdefault(kind, []).append(logit)
        for index, (u, v) in enumerate(maze.edges):
            kind = _kind(steps.get(u), u, maze, number - 1)
            if kind == "optimal" and maze.way[number - 1 : number + 1] != (u, v):
                kind = "frontier"
            weight = output.attentions[-1][0, :, place, 3 * index : 3 * index + 3].sum()
            attention.setdefault(kind, []).append(float(weight))
        here = own[(own["thought"] == number) & (own["read_at"] == read_at)]
        for measure, wanted in (("product", products), ("attention", attention)):
            rows = here[here["measure"] == measure]
            found = dict(zip(rows["vertices"], rows["value"], strict=True))
            assert set(found) == set(wanted)
            for kind, values in wanted.items():
                assert found[kind] == pytest.approx(sum(values) / len(values), abs=1e-4)


def test_kinds_of_vertices_follow_the_steps_from_the_root():
    maze = TASK.mazes()[0]
    steps = reachable(maze.edges, maze.way[0])
    for thought in (1, 2):
        for vertex in TASK.vertices:
            kind = _kind(steps.get(vertex), vertex, maze, thought)
            if vertex not in steps or steps[vertex] > thought:
                assert kind == "unreachable"
            elif steps[vertex] < thought:
                assert kind == "reachable"
            else:
                assert kind == ("optimal" if vertex in maze.way else "frontier")


def test_kinds_on_a_graph_made_by_hand():
    # r -> a -> c and r -> b; x -> y cannot be reached; c is the answer.
    edges = (("r", "a"), ("a", "c"), ("r", "b"), ("x", "y"))
    maze = Maze(edges, ("c", "y"), ("r", "a", "c"))
    steps = reachable(edges, "r")
    kinds = [{each: _kind(steps.get(each), each, maze, n) for each in "rabcxy"} for n in (0, 1, 2)]
    never = {"x": "unreachable", "y": "unreachable"}
    far = dict.fromkeys("abc", "unreachable")
    assert kinds[0] == {"r": "optimal", **far, **never}
    near = {"r": "reachable", "a": "optimal", "b": "frontier", "c": "unreachable"}
    assert kinds[1] == {**near, **never}
    assert kinds[2] == {**dict.fromkeys("rab", "reachable"), "c": "optimal", **never}


def test_nested_groups_are_pooled_over_all_vertices_and_edges(worlds):
    """The paper's groups, spelt out: reached within c steps, in exactly c, on the way."""
    world = worlds[0]
    own = {"limit": 3, "progress": False}
    result = superposition([world], groups="nested", embeddings="input", **own)
    hf, vocabulary = world.model.hf, world.model.tokenizer.get_vocab()
    thought = thought_of(world.task, world.model)
    products = {}
    for maze in world.task.mazes()[:3]:
        steps = reachable(maze.edges, maze.way[0])
        ids = torch.tensor([[vocabulary[word] for word in (*maze.prompt, "T", "T", "A")]])
        states = think(world.model, ids, thought).states[0].detach()
        for number, vertex in product((1, 2), world.task.vertices):
            state = states[len(maze.prompt) + number - 2]
            value = float(state @ hf.transformer.wte.weight[vocabulary[vertex]])
            step = steps.get(vertex, 99)
            groups = {
                "unreachable": step > number,
                "reachable": step <= number,
                "frontier": step == number,
                "optimal": maze.way[number] == vertex,
            }
            for group in (name for name, inside in groups.items() if inside):
                products.setdefault((number, group), []).append(value)
    table = result.summary()
    table = table[(table["measure"] == "product") & (table["read_at"] == "before")]
    found = table.set_index(["thought", "vertices"])["value"].to_dict()
    assert set(found) == set(products)
    for key, values in products.items():
        assert found[key] == pytest.approx(sum(values) / len(values), abs=1e-4), key
    disjoint = superposition([world], **own).summary()
    assert not disjoint["value"].equals(result.summary()["value"])


def test_the_token_at_which_a_step_is_made_is_told(worlds):
    result = superposition(worlds, limit=3, progress=False)
    assert [each.split()[0] for each in result.findings()] == ["tiny", "pausing"]
    first = (result.frame["thought"] == 1) & (result.frame["vertices"] == "optimal")
    first &= result.frame["measure"] == "product"
    for read_at, told in (("before", "as in the paper"), ("at", "one token later")):
        raised = result.frame["value"] + 99.0 * (first & (result.frame["read_at"] == read_at))
        again = replace(result, frame=result.frame.assign(value=raised))
        assert all(told in sentence for sentence in again.findings())
        assert set(first_steps(again.summary())["makes"]) == {read_at}
        label = again.plot().axes[-1].get_xlabel()
        assert (
            label
            == {"at": "thought", "before": "thought, read at the token that forms it"}[read_at]
        )


def test_the_world_that_is_ahead_makes_its_steps_where_thoughts_are_formed():
    (found,) = superposition(
        [load_world("reachability-ahead")], limit=20, progress=False
    ).findings()
    assert "at the token that forms the thought, as in the paper" in found
    (found,) = superposition([load_world("reachability")], limit=20, progress=False).findings()
    assert "one token later than in the paper" in found


def test_a_world_with_a_lead_has_a_thought_less_than_steps():
    leading = train_world(
        "leading", recipe=replace(TINY, task=replace(TASK, lead=1)), progress=False
    )
    result = superposition([leading], limit=2, progress=False)
    assert set(result.frame["thought"]) == {1}
    world = superposition([train_world("tiny", recipe=TINY, progress=False)], 2, progress=False)
    assert set(world.frame["thought"]) == {1, 2}
    assert result.details["prompt"].str.count(" T ").tolist() == [1, 1]


def test_the_summary_is_over_seeds_and_the_picture_has_a_row_a_world(worlds, tmp_path):
    again = replace(worlds[0], seed=5)
    result = superposition([*worlds, again], limit=4, progress=False, out=tmp_path / "run")
    table = result.summary().set_index(["world", "measure", "read_at", "thought", "vertices"])
    row = table.loc[("tiny", "product", "at", 1, "optimal")]
    assert (row["n_seeds"], row["n"]) == (2, 8)
    assert table.loc[("pausing", "product", "at", 1, "optimal"), "n_seeds"] == 1
    own = result.frame.query("world == 'tiny' and measure == 'product' and thought == 1")
    own = own[(own["read_at"] == "at") & (own["vertices"] == "optimal")]
    wanted = own.groupby("seed")["value"].mean().mean()
    assert row["value"] == pytest.approx(wanted)
    apart = result.frame.assign(value=result.frame["seed"].eq(5).astype(float))
    ends = replace(result, frame=apart).summary().query("world == 'tiny'").groupby("measure")
    assert ends[["low", "high"]].first().loc["correct"].tolist() == [0, 1]  # a share
    assert ends["high"].first()["product"] == pytest.approx(0.5 + 12.7062 * 0.5, rel=1e-4)
    loaded = load_result(tmp_path / "run")
    assert isinstance(loaded, Superposition)
    pd.testing.assert_frame_equal(loaded.summary(), result.summary())
    figure = result.plot()
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [f"{w}: {t}" for w in ("tiny", "pausing") for t in MEASURE_TITLES.values()]
    assert "tiny" in figure.get_suptitle()
    summary = result.summary()
    ax = thought_lines(summary[summary["measure"] == "product"].iloc[::-1], "product")
    for line in ax.get_lines():
        assert (np.diff(line.get_xdata()) >= 0).all(), "thoughts stand in order, however listed"


def test_other_worlds_and_repeated_ones_are_refused(worlds):
    with pytest.raises(UsageError, match="no thoughts"):
        superposition([load_world("two-hop-looped")])
    with pytest.raises(UsageError, match="each once"):
        superposition([worlds[0], worlds[0]])
