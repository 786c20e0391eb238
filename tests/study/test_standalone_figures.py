"""Figures that bring their own models: run on tiny worlds, and drawn."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from known import known_model, known_queries

from hopscope.errors import ResultError, UsageError
from hopscope.experiments.two_hop.auto_patching import AutoPatching
from hopscope.experiments.two_hop.back_attention import BackAttending
from hopscope.experiments.two_hop.back_patching import BackPatching, back_patch
from hopscope.experiments.worlds.data_needed import data_needed
from hopscope.experiments.worlds.identity_bridge import identity_bridge
from hopscope.queries.load import load_queries
from hopscope.study import figures, standalone_figures
from hopscope.study.presets import Preset
from hopscope.study.standalone_figures import STANDALONE_FIGURES, Settings, check_options
from hopscope.training.settings import Schedule
from hopscope.worlds import catalogue
from hopscope.worlds.catalogue import WORLDS
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.composed_tables import ComposedTables
from hopscope.worlds.tasks.graph_reachability import GraphReachability
from hopscope.worlds.tasks.graph_search import GraphSearch
from hopscope.worlds.tasks.multi_hop_facts import MultiHopFacts
from hopscope.worlds.tasks.two_hop_facts import TwoHopFacts

SCRIPTS = Path(__file__).parents[2] / "figures"
SHORT = Schedule(steps=10, batch_size=8, warmup_steps=1)
NARROW = {"n_blocks": 2, "d_model": 16, "n_heads": 2}
TINY = {
    "two-hop-looped": Recipe(
        "tiny",
        TwoHopFacts(n_entities=6, n_relations=3, unseen=0.15, held_out=8, atom_repeats=2),
        Shape(n_loops=2, **NARROW),
        SHORT,
    ),
    "coverage": Recipe("tiny", ComposedTables(n_tokens=5, n_examples=90), Shape(**NARROW), SHORT),
    "coverage-few-bridges": Recipe(
        "tiny", ComposedTables("two_hop", 5, 90, n_bridges=2), Shape(**NARROW), SHORT
    ),
    "coverage-path-ambiguity": Recipe(
        "tiny", ComposedTables("path_ambiguity", 5, 90, n_bridges=2), Shape(**NARROW), SHORT
    ),
    "graph-search": Recipe(
        "tiny",
        GraphSearch(n_vertices=6, n_edges=4, farthest=2),
        Shape(n_blocks=2, n_heads=1, n_positions=24, one_hot=True),
        SHORT,
    ),
    "reachability": Recipe(
        "tiny",
        GraphReachability(n_vertices=10, n_edges=10, depth=2, stage_steps=4),
        Shape(n_positions=48, **NARROW),
        SHORT,
    ),
}
TINY["three-hop-looped"] = Recipe(
    "tiny",
    MultiHopFacts(n_entities=5, n_relations=2, held_out=10, trained=20),
    Shape(n_loops=2, **NARROW),
    SHORT,
)
TINY["two-hop-memoriser"] = TINY["two-hop-looped"]
TINY["reachability-pause"] = replace(
    TINY["reachability"], task=replace(TINY["reachability"].task, continuous=False)
)
TINY["reachability-ahead"] = replace(
    TINY["reachability"], task=replace(TINY["reachability"].task, lead=1)
)
SMALL = Preset(limit=6, most=6, layer_step=1, of_world=3)


def test_the_gallery_shows_every_figure_and_every_picture_that_is_there() -> None:
    text = (SCRIPTS / "README.md").read_text("utf-8")
    for script in SCRIPTS.glob("[!_]*.py"):
        picture = f"rendered/{script.stem}.png"
        there = (SCRIPTS / picture).is_file()
        assert (f"![{script.stem}]({picture})" in text) == there, script.stem
        assert f"`hopscope figures {script.stem}`" in text


@pytest.mark.parametrize("name", STANDALONE_FIGURES)
def test_what_a_figures_own_models_cannot_be_is_refused(name: str) -> None:
    check_options(["grading"], chat=True, precision=["bfloat16"])
    check_options([name], chat=False, precision=[])
    with pytest.raises(UsageError, match=f"{name} takes no model of yours, and no --chat"):
        check_options([name], chat=True, precision=[])
    if name in ("head_classes", "size_ladder", "more_hops"):
        check_options([name], chat=False, precision=["bfloat16"])
        return
    with pytest.raises(UsageError, match="and no bfloat16 or nf4"):
        check_options([name], chat=False, precision=["bfloat16", "nf4"])


def test_pretrained_models_are_loaded_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def load(name: str, **how: object) -> None:
        asked.append(how)
        raise RuntimeError(name)

    monkeypatch.setattr("hopscope.loading.load_model", load)
    for name in ("head_classes", "size_ladder"):
        settings = Settings(tmp_path, SMALL, device="cpu", dtype="bfloat16", quantization="int8")
        with pytest.raises(RuntimeError):
            STANDALONE_FIGURES[name].run(settings)
    assert asked == 2 * [{"device": "cpu", "dtype": "bfloat16", "quantization": "int8"}]


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Tiny worlds in place of the real ones, and a cache of their own."""
    worlds = {**WORLDS, **TINY}
    monkeypatch.setattr(catalogue, "WORLDS", worlds)
    monkeypatch.setattr("hopscope.worlds.WORLDS", worlds)
    monkeypatch.setattr("hopscope.worlds.load.WORLDS", worlds)
    empty = tmp_path / "none"
    monkeypatch.setattr("hopscope.worlds.load.places_of", lambda name: (empty, empty / name))
    monkeypatch.setattr(standalone_figures, "SEEDS", (0, 1))
    monkeypatch.setattr(standalone_figures, "SNAPSHOTS", (0, 5, 10))
    monkeypatch.setattr(standalone_figures, "ATTENTION_STEPS", 2)
    monkeypatch.setattr(standalone_figures, "HEADS", ("tiny-random-gpt2", "tiny-random-llama"))
    return Settings(tmp_path / "runs", SMALL, device="cpu", progress=False)


def drawn(name: str, how: Settings, folder: Path) -> list[Path]:
    return list(figures.draw_figures(SCRIPTS, [name], how.folder, folder))


SIMPLE = [
    *("mask_gallery", "world_circuit", "emergence", "coverage"),
    *("search_graph", "superposition", "head_classes", "auto_patching"),
    *("back_attention", "thoughts_ahead"),
]


@pytest.mark.parametrize("name", SIMPLE)
def test_a_figure_is_run_and_drawn_twice_alike(name, setting, tmp_path):
    STANDALONE_FIGURES[name].run(setting)
    first = drawn(name, setting, tmp_path / "a")
    assert {path.suffix for path in first} == {".png", ".svg", ".csv"}
    STANDALONE_FIGURES[name].run(setting)  # everything is there
    again = drawn(name, setting, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    table = pd.read_csv(next(path for path in first if path.suffix == ".csv"))
    assert len(table) > 3


def test_chains_are_drawn_beside_their_world(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hopscope.loading.load_queries", lambda name: load_queries(name, few_shot=1)
    )
    test_a_figure_is_run_and_drawn_twice_alike("more_hops", setting, tmp_path)


def test_the_ladder_is_drawn_of_the_models_that_have_results(setting, tmp_path, monkeypatch):
    monkeypatch.setattr("hopscope.loading.load_model", lambda *_, **__: known_model())
    monkeypatch.setattr("hopscope.loading.load_queries", lambda _: known_queries())
    monkeypatch.setattr(standalone_figures, "LADDER", standalone_figures.LADDER[:2])
    STANDALONE_FIGURES["size_ladder"].run(setting)
    first = drawn("size_ladder", setting, tmp_path / "a")
    STANDALONE_FIGURES["size_ladder"].run(setting)  # everything is there
    again = drawn("size_ladder", setting, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    folder = setting.folder / "size_ladder"
    table = pd.read_csv(tmp_path / "a" / "size_ladder.csv")
    assert set(table["model"]) == {"smollm2-135m", "gemma3-270m"}
    for subset in ("incorrect", "correct"):
        rows = table[(table["model"] == "gemma3-270m") & (table["subset"] == subset)]
        result = BackPatching.load(folder / "gemma3-270m" / f"back_patching.{subset}")
        columns = ["cells", "position", "control", "n", "difference", "p"]
        shown = rows.loc[rows["cells"] != "stages", columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(shown, result.gains()[columns], rtol=1e-5, check_dtype=False)
    tests = table["p"].notna()
    assert (table.loc[tests, "p_holm"] >= table.loc[tests, "p"]).all()
    shutil.rmtree(folder / "gemma3-270m")
    drawn("size_ladder", setting, tmp_path / "c")
    assert set(pd.read_csv(tmp_path / "c" / "size_ladder.csv")["model"]) == {"smollm2-135m"}
    shutil.rmtree(folder / "smollm2-135m")
    with pytest.raises(ResultError, match="holds no result of a model"):
        drawn("size_ladder", setting, tmp_path)


def test_what_the_ladder_has_back_patched_is_used_by_its_heirs(setting, monkeypatch):
    monkeypatch.setattr("hopscope.loading.load_model", lambda *_, **__: known_model())
    queries = known_queries().filter(lambda query: not query.id.startswith("strange"))
    monkeypatch.setattr("hopscope.loading.load_queries", lambda _: queries)
    for name, part in (("incorrect", queries[:6]), ("correct", queries[6:])):
        where = setting.folder / "size_ladder" / "smollm2-135m" / f"back_patching.{name}"
        back_patch(known_model(), part, ("t1",), (), cells=[(3, 0)], out=where, progress=False)
    STANDALONE_FIGURES["auto_patching"].run(setting)
    found = AutoPatching.load(setting.folder / "auto_patching" / "smollm2-135m" / "auto_patching")
    assert set(found.details["query"]) == {query.id for query in queries}
    assert not (setting.folder / "auto_patching" / "qwen2.5-coder-1.5b").exists()
    STANDALONE_FIGURES["back_attention"].run(setting)
    trained = BackAttending.load(setting.folder / "back_attention" / "smollm2-135m")
    assert set(trained.details["query"]) <= set(found.details["query"])


def test_coverage_is_drawn_of_every_seed_or_not_at_all(setting, tmp_path):
    STANDALONE_FIGURES["coverage"].run(setting)
    drawn("coverage", setting, tmp_path)
    numbers = pd.read_csv(tmp_path / "coverage.csv")
    assert {*zip(numbers["world"], numbers["seed"], strict=True)} == {
        (world, seed) for world in standalone_figures.COVERED for seed in (0, 1)
    }
    gaps = numbers[numbers["measure"] == "iicg"]
    assert (set(gaps["position"]), set(gaps["cutoff"])) == ({1}, {-1})
    shutil.rmtree(setting.folder / "coverage" / "coverage-path-ambiguity.seed-1")
    with pytest.raises(ResultError, match=r"coverage-path-ambiguity\.seed-1"):
        drawn("coverage", setting, tmp_path)


def test_every_figure_of_its_own_is_named_after_its_script():
    assert set(STANDALONE_FIGURES) <= set(figures.figure_scripts(SCRIPTS, []))
    with_tests_of_their_own = {"data_needed", "identity_bridge", "prefix_training"}
    with_tests_of_their_own |= {"size_ladder", "more_hops"}
    assert {*SIMPLE, *with_tests_of_their_own} == set(STANDALONE_FIGURES)


def test_only_what_comes_along_is_run_unasked():
    unasked = {name for name, figure in STANDALONE_FIGURES.items() if not figure.costly}
    assert unasked == {"mask_gallery", "world_circuit", "search_graph", "thoughts_ahead"}


def test_data_needed_is_drawn_from_trainings_of_any_size(setting, tmp_path, monkeypatch):
    made = {
        "sizes": (4, 5),
        "examples": ((20, 40), (30, 60)),
        "shape": Shape(n_blocks=1, d_model=16, n_heads=2),
        "schedule": replace(SHORT, steps=2),
    }
    data_needed(**made, out=setting.folder / "data_needed", progress=False)
    path = next((setting.folder / "data_needed").glob("frame-*.parquet"))
    for part in (setting.folder / "data_needed").glob("frame-*.parquet"):
        table = pd.read_parquet(part)
        learned = {20: 0.2, 40: 0.95, 30: 0.2, 60: 0.95}
        table["accuracy"] = table["n_examples"].map(learned)
        table.to_parquet(part)
    assert path.exists()
    assert len(drawn("data_needed", setting, tmp_path / "a")) == 3


def test_the_identity_bridge_is_drawn_of_each_shape(setting, tmp_path):
    how = {"facts": TINY["two-hop-looped"].task, "shape": Shape(**NARROW), "schedule": SHORT}
    for name in standalone_figures.BRIDGED:
        where = setting.folder / "identity_bridge" / name
        identity_bridge((0, 1), **how, out=where, progress=False)
    first, again = (drawn("identity_bridge", setting, tmp_path / each) for each in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    numbers = pd.read_csv(tmp_path / "a" / "identity_bridge.csv")
    counts = numbers.groupby("world")["measure"].value_counts()
    assert counts.to_dict() == {
        (name, measure): n
        for name in standalone_figures.BRIDGED
        for measure, n in (("accuracy", 17), ("difference", 9))
    }


def test_heads_are_read_on_the_bundled_queries(setting):
    STANDALONE_FIGURES["head_classes"].run(setting)
    folder = setting.folder / "head_classes" / "tiny-random-gpt2" / "head_classes"
    asked = set(pd.read_parquet(next(folder.glob("details-*.parquet")))["query"])
    assert len(asked) == 6
    assert asked <= {query.id for query in load_queries("world")}
