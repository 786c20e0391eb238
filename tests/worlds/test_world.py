"""Worlds: trained, stopped, resumed, saved, loaded by name, and read by every analysis."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import hopscope as hs
from hopscope.cli import app
from hopscope.errors import ResultError, UsageError
from hopscope.experiments.worlds.emergence import world_at
from hopscope.models.language_model import LanguageModel
from hopscope.training.fit import snapshot_path
from hopscope.training.settings import Schedule
from hopscope.worlds import catalogue, train
from hopscope.worlds import recipe as recipe_module
from hopscope.worlds.build_shipped import SHIPPED
from hopscope.worlds.catalogue import WORLDS
from hopscope.worlds.load import load_world
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.small_model import Shape, tie, untied, untrained
from hopscope.worlds.tasks.two_hop_facts import TwoHopFacts
from hopscope.worlds.train import train_world

TINY = Recipe(
    "tiny",
    TwoHopFacts(n_entities=6, n_relations=3, unseen=0.15, held_out=8, atom_repeats=2),
    Shape(n_blocks=2, n_loops=2, d_model=16, n_heads=2),
    Schedule(steps=6, batch_size=8, warmup_steps=2, checkpoint_every=2),
)


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return dict(model.hf.state_dict())


def assert_same(a: LanguageModel, b: LanguageModel) -> None:
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, weights(b)[name]), name


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A named world `tiny`, and a cache of its own, whose folder is returned."""
    monkeypatch.setattr(catalogue, "WORLDS", {**WORLDS, "tiny": TINY})
    monkeypatch.setattr("hopscope.worlds.load.WORLDS", {**WORLDS, "tiny": TINY})
    monkeypatch.setenv("HOPSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Models


def test_a_looped_model_runs_the_same_blocks_again():
    shape = Shape(n_blocks=2, n_loops=3, d_model=16, n_heads=2)
    model = untrained(("a", "b"), shape, 0, "looped")
    once = untrained(("a", "b"), replace(shape, n_loops=1), 0, "once")
    assert model.n_layers == 6
    tie(model.hf, shape)
    assert sum(p.numel() for p in model.hf.parameters()) == sum(
        p.numel() for p in once.hf.parameters()
    )
    hidden = model.hf(torch.tensor([[3, 4, 3]]), output_hidden_states=True).hidden_states
    state = hidden[0]
    for number in range(5):
        state = model.hf.transformer.h[number % 2](state)
        torch.testing.assert_close(state, hidden[number + 1])


def test_the_untied_copy_computes_the_same_with_parameters_of_its_own():
    shape = Shape(n_blocks=1, n_loops=2, d_model=16, n_heads=2)
    model = untrained(("a", "b"), shape, 0, "looped")
    model.hf.requires_grad_(True)
    tie(model.hf, shape)
    copy = untied(model.hf)
    ids = torch.tensor([[3, 4, 3]])
    torch.testing.assert_close(copy(ids).logits, model.hf(ids).logits)
    blocks = copy.transformer.h
    assert blocks[0].attn.c_attn.weight is not blocks[1].attn.c_attn.weight
    assert torch.equal(blocks[0].attn.c_attn.weight, blocks[1].attn.c_attn.weight)


def test_scaled_weights_keep_the_variance_of_what_they_are_given():
    shape = Shape(n_blocks=2, d_model=64, scaled=True)
    words = tuple(f"w{number}" for number in range(100))
    hf = untrained(words, shape, 0, "scaled").hf
    assert hf.transformer.wte.weight.std() == pytest.approx(1, rel=0.05)
    assert hf.transformer.wpe.weight.std() == pytest.approx(1, rel=0.05)
    block = hf.transformer.h[1]
    unit = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    assert block.attn.c_attn(unit).std() == pytest.approx(1, rel=0.1)
    assert block.mlp.c_proj(torch.cat([unit] * 4, dim=1)).std() == pytest.approx(1, rel=0.1)
    assert hf.lm_head.weight is not hf.transformer.wte.weight
    assert hf.lm_head.weight.std() < 0.05, "small logits at first"
    plain = untrained(words, replace(shape, scaled=False), 0, "plain").hf
    assert plain.lm_head.weight is plain.transformer.wte.weight


def test_a_rotary_shape_is_a_llama_whose_passes_are_tied_and_trained(tmp_path):
    shape = Shape(n_blocks=2, n_loops=2, d_model=16, n_heads=2, d_mlp=24, rotary=True)
    model = untrained(("a", "b"), shape, 0, "rotary")
    assert model.config.model_type == "llama"
    assert (model.n_layers, model.d_model, model.config.intermediate_size) == (4, 16, 24)
    blocks = model.hf.model.layers
    assert blocks[2].self_attn.q_proj.weight is blocks[0].self_attn.q_proj.weight
    assert model.hf.lm_head.weight is model.hf.model.embed_tokens.weight
    world = train_world("tiny", recipe=replace(TINY, shape=shape), out=tmp_path, progress=False)
    assert_same(load_world(tmp_path).model, world.model)
    for name, first in world.model.hf.model.layers[0].named_parameters():
        assert torch.equal(first, world.model.hf.model.layers[2].get_parameter(name)), name
    start = untrained(world.task.words, shape, 0, "start").hf.state_dict()
    trained = world.model.hf.state_dict()
    assert all(not torch.equal(start[name], each) for name, each in trained.items())


def test_one_hot_embeddings_tell_words_and_places_apart_and_are_not_trained(tmp_path):
    recipe = replace(TINY, shape=Shape(n_blocks=1, n_heads=1, n_positions=12, one_hot=True))
    world = train_world("tiny", recipe=recipe, out=tmp_path, snapshots=[3], progress=False)
    hf = world.model.hf
    both = torch.cat([hf.transformer.wte.weight, hf.transformer.wpe.weight])
    assert torch.equal(both, torch.eye(world.model.d_model))
    assert world.model.d_model == world.model.vocab_size + 12
    start = untrained(recipe.seeded(0).task.words, recipe.shape, 0, "start").hf
    assert not torch.equal(
        hf.transformer.h[0].mlp.c_fc.weight, start.transformer.h[0].mlp.c_fc.weight
    )
    kept = load_file(snapshot_path(tmp_path, 3))
    assert not any("wte" in name or "wpe" in name for name in kept), "the fixed are not kept twice"
    early = world_at(tmp_path, 3).model.hf
    assert torch.equal(early.transformer.wte.weight, hf.transformer.wte.weight)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_blocks": 0},
        {"n_loops": 0},
        {"n_heads": 5},
        {"one_hot": True, "rotary": True},
        {"rotary": True, "d_model": 12},
    ],
)
def test_shapes_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        Shape(**wrong)


# Training


def test_passes_stay_tied_while_they_are_trained_and_all_weights_move(tmp_path):
    world = train_world("tiny", recipe=TINY, progress=False)
    blocks = world.model.hf.transformer.h
    start = untrained(TINY.seeded(0).task.words, TINY.shape, 0, "start")
    for name, tensor in blocks[0].named_parameters():
        assert torch.equal(tensor, blocks[2].get_parameter(name)), name
        assert not torch.equal(tensor, start.hf.transformer.h[0].get_parameter(name)), name


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_training_that_was_killed_ends_with_the_same_weights(tmp_path, monkeypatch, stop_at):
    whole = train_world("tiny", recipe=TINY, progress=False)
    loss, seen = train.answer_loss, []

    def dying(*given):
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        seen.append(given)
        return loss(*given)

    with monkeypatch.context() as patch:
        patch.setattr(train, "answer_loss", dying)
        with pytest.raises(KeyboardInterrupt):
            train_world("tiny", recipe=TINY, out=tmp_path / "w", progress=False)
    resumed = train_world("tiny", recipe=TINY, out=tmp_path / "w", progress=False)
    assert_same(whole.model, resumed.model)


def test_seeds_and_recipes_differ_and_a_folder_holds_one(tmp_path):
    one = train_world("tiny", 0, tmp_path / "w", recipe=TINY, progress=False)
    other = train_world("tiny", 1, recipe=TINY, progress=False)
    assert one.model.fingerprint != other.model.fingerprint
    assert one.task.atoms != other.task.atoms
    with pytest.raises(ResultError, match="its seed is 0, not 1"):
        train_world("tiny", 1, tmp_path / "w", recipe=TINY, progress=False)


def test_snapshots_are_those_of_the_steps_and_need_a_folder(tmp_path):
    with pytest.raises(UsageError, match="out="):
        train_world("tiny", recipe=TINY, snapshots=[2], progress=False)
    world = train_world("tiny", 0, tmp_path, recipe=TINY, snapshots=[0, 6], progress=False)
    last = load_file(snapshot_path(tmp_path, 6))
    assert torch.equal(last["transformer.wte.weight"], world.model.hf.transformer.wte.weight)
    assert snapshot_path(tmp_path, 0).exists()


def test_accuracy_counts_answers_and_ends():
    world = train_world("tiny", recipe=TINY, progress=False)
    for split in (*world.task.splits, "trained"):
        graded = hs.grade(world.model, world.queries(split), progress=False)
        right = graded.frame[graded.frame["form"] == "two_hop"]
        said = right["generation"].str.strip() == [q.e3 for q in world.queries(split)]
        assert world.accuracy[split] == pytest.approx(said.mean())


def test_snapshots_cannot_be_asked_for_later(tmp_path):
    train_world("tiny", 0, tmp_path / "w", recipe=TINY, progress=False)
    with pytest.raises(ResultError, match="its snapshots is None"):
        train_world("tiny", 0, tmp_path / "w", recipe=TINY, snapshots=[2], progress=False)


def test_what_cannot_work_is_refused_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "fit", None)
    with pytest.raises(UsageError, match="unknown device"):
        train_world("tiny", recipe=TINY, device="gpu")
    with pytest.raises(UsageError, match="give Shape"):
        replace(TINY, shape=replace(TINY.shape, n_positions=3))
    monkeypatch.delitem(recipe_module.TASKS, "two_hop_facts")
    with pytest.raises(UsageError, match="could not be read back"):
        train_world("tiny", recipe=TINY, out=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_training_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_world("tiny", recipe=TINY, progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_a_checkpoint_s_frequency_is_no_other_training(tmp_path):
    train_world("tiny", 0, tmp_path / "w", recipe=TINY, progress=False)
    often = replace(TINY, schedule=replace(TINY.schedule, checkpoint_every=5))
    assert train_world("tiny", 0, tmp_path / "w", recipe=often, progress=False).seed == 0


# Loading


def test_a_saved_world_is_read_back_by_folder(tmp_path):
    world = train_world("tiny", 3, tmp_path / "w", recipe=TINY, progress=False)
    again = load_world(tmp_path / "w")
    assert_same(world.model, again.model)
    assert (again.name, again.seed, again.task) == ("tiny", 3, world.task)
    assert again.accuracy == world.accuracy
    assert hs.load_model(tmp_path / "w").n_layers == 4
    assert repr(again) == repr(world)
    assert "in_distribution" in repr(world)


def test_a_name_is_trained_once_and_then_loaded(tiny, monkeypatch):
    model = hs.load_model("world:tiny@2")
    monkeypatch.setattr(train, "fit", None)
    assert_same(model, load_world("tiny", 2).model)
    assert (tiny / "worlds" / "tiny" / "seed-2" / "world.json").is_file()
    assert model.name == load_world("tiny", 2).model.name == "world:tiny@2"


def test_queries_of_a_world_are_loaded_by_name_without_its_model(tiny):
    queries = hs.load_queries("world:tiny@2.first_hop_ood")
    assert list(queries) == list(TINY.seeded(2).task.queries("first_hop_ood"))
    assert queries.name == "tiny@2.first_hop_ood"
    assert hs.load_queries("world:tiny").name == "tiny@0.in_distribution"
    assert not tiny.exists()


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("world:nowhere", "choose one of two-hop-looped"),
        ("world:two-hop@x", "world:two-hop@1"),
        ("world:two-hop.sideways", "choose one of in_distribution"),
    ],
)
def test_what_is_not_there_is_named(reference, says):
    with pytest.raises(UsageError, match=says):
        hs.load_queries(reference)
    if "." not in reference:
        with pytest.raises(UsageError, match=says):
            hs.load_model(reference)


def test_folders_without_a_world_are_refused(tmp_path):
    with pytest.raises(UsageError, match="or a world's folder"):
        load_world(tmp_path)
    (tmp_path / "world.json").write_text('{"world": "x"}')
    with pytest.raises(ResultError, match="damaged"):
        load_world(tmp_path)


def test_a_record_from_before_a_setting_was_there_is_of_its_default(tiny):
    load_world("tiny", 1)
    about = tiny / "worlds" / "tiny" / "seed-1" / "world.json"
    record = json.loads(about.read_text())
    del record["recipe"]["schedule"]["hold"], record["recipe"]["shape"]["rotary"]
    about.write_text(json.dumps(record))
    assert load_world("tiny", 1).accuracy == record["accuracy"]
    training = about.with_name("training.json")
    asked = json.loads(training.read_text())
    del asked["recipe"]["schedule"]["hold"], asked["recipe"]["shape"]["rotary"]
    training.write_text(json.dumps(asked))
    again = train_world("tiny", 1, about.parent, progress=False)
    assert again.accuracy == record["accuracy"], "it is loaded, not refused"


def test_a_world_of_another_recipe_or_other_facts_is_refused(tiny, monkeypatch, tmp_path):
    load_world("tiny", 1)
    about = tiny / "worlds" / "tiny" / "seed-1" / "world.json"
    record = json.loads(about.read_text())
    record["recipe"]["schedule"]["steps"] += 1
    about.write_text(json.dumps(record))
    with pytest.raises(ResultError, match="another recipe"):
        load_world("tiny", 1)
    about.write_text(json.dumps({**record, "recipe": {}}))
    with pytest.raises(ResultError, match="damaged"):
        load_world("tiny", 1)
    record["facts"] = "0" * 64
    about.write_text(json.dumps(record))
    with pytest.raises(ResultError, match="other facts"):
        load_world(about.parent)


@pytest.mark.parametrize(
    ("name", "seed"),
    [(name, seed) for name, seeds in SHIPPED.items() for seed in seeds],
)
def test_what_is_shipped_is_what_the_recipe_makes(name, seed):
    world = load_world(name, seed)
    made = Recipe.from_json(world.record["recipe"]).as_json()
    assert made == WORLDS[name].seeded(seed).as_json()
    assert train.accuracy(world.model, world.task) == pytest.approx(world.accuracy)
    loaded = hs.load_model(f"world:{name}@{seed}", dtype="auto")
    assert loaded.dtype == torch.float32
    assert_same(loaded, world.model)


# Commands


def test_the_command_trains_and_tells_one_object(tiny, tmp_path):
    where = str(tmp_path / "w")
    command = ["worlds", "train", "tiny", "--seed", "1", "-o", where, "--snapshots", "3", "--json"]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    (tiny / "worlds" / "two-hop-looped" / "backup").mkdir(parents=True)
    assert set(found["accuracy"]) >= {"in_distribution", "first_hop_ood", "second_hop_ood"}
    assert found["seconds"] > 0
    assert found["seed"] == 1
    assert all(snapshot_path(Path(where), step).exists() for step in (0, 3, 6))
    again = CliRunner().invoke(app, ["worlds", "train", "tiny", "--json"])
    assert json.loads(again.stdout)["folder"] == str(tiny / "worlds" / "tiny" / "seed-0")
    listed = json.loads(CliRunner().invoke(app, ["worlds", "list", "--json"]).stdout)
    seeds = {each["name"]: each["seeds"] for each in listed["worlds"]}
    assert seeds["two-hop-looped"] == [0, 1, 2]
