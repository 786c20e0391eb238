"""Tests of recipe.py: a call that is written as JSON is the same call when it is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import loaded
from known import known_model, known_queries, many_queries

import hopscope as hs
from hopscope.distributed.job import Job
from hopscope.documents.templates import Template
from hopscope.errors import DamagedResultError, ModelError, ResultError, UsageError
from hopscope.experiments import recipe
from hopscope.experiments.recipe import CallRecipe, ReadRecipe, recipe_of
from hopscope.experiments.two_hop.probing import labelled, sample_entities
from hopscope.experiments.worker import open_worker
from hopscope.masks.named import causal, knock_out, painted
from hopscope.results.run_folder import RECIPE, read_run
from hopscope.training.settings import TrainingSettings

BACK = "hopscope.experiments.two_hop.back_patching"


def made(inputs: Any, **arguments: Any) -> CallRecipe:
    given = {"model": loaded("tiny-random-llama"), "queries": inputs, **arguments}
    return recipe_of("back_patching", BACK, given)


def again(made: CallRecipe) -> ReadRecipe:
    return ReadRecipe(json.loads(json.dumps(made.told())), made.files)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        "t1",
        ["t1", "t2"],
        ("t1", "t2"),
        range(0, 30, 3),
        [(3, 1), (2, 0)],
        [[0, 2, 1], "forward"],
        {"layers": (1, 2), "edges": ["t2->t1"], 3: {}},
        {"tuple": [1], "dataclass": "x"},
        frozenset([1, 2]),
        Path("a"),
        causal(),
        knock_out("question", "gold 1", layers=[1]) & ~causal(),
        hs.Route(hs.Place("two_hop", "t1"), hs.Place("second_hop", "e2", "e2")),
        Template("i", "{title}{text}{label}", "{question}", chat=True),
        TrainingSettings(),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_argument_that_is_read_is_the_one_that_was_written(value: Any) -> None:
    read = again(made(known_queries(), argument=value)).arguments["argument"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "value",
    [len, object(), lambda: 1, [float("nan")], painted(np.ones((2, 2), bool)), {1: np.ones(2)}],  # type: ignore[arg-type]
    ids=lambda value: type(value).__name__,
)
def test_what_only_this_process_has_is_refused(value: Any) -> None:
    told = made(known_queries(), argument=value)
    with pytest.raises(UsageError, match="which only this process has"):
        told.told()
    assert "only this process has" in told.as_json()["refused"]


def test_an_iterator_is_written_and_still_used() -> None:
    given: dict[str, Any] = {"model": known_model(), "queries": known_queries()}
    given["cells"] = iter([(3, 1)])
    assert recipe_of("back_patching", BACK, given).arguments == {"cells": [(3, 1)]}
    assert given["cells"] == [(3, 1)]


def test_where_and_how_a_call_is_made_is_no_part_of_it() -> None:
    of_call = {"out": "x", "shard": (1, 2), "progress": False, "on": "ray"}
    assert made(known_queries(), seed=3, **of_call).arguments == {"seed": 3}


def sets() -> dict[str, Any]:
    world, docs = hs.load_queries("world"), hs.load_questions("world-docs", distractors=2)
    known = known_queries()
    odd = replace(known[0], extra={"n": 1.5, "none": None, "list": [1]}, e3_aliases=("a", "b"))
    return {
        "bundled": world,
        "bundled, chosen": world.with_few_shot(2, 3).sample(5, 1),
        "bundled, with one of one's own": replace(world, queries=(*world[:2], odd), few_shot=0),
        "made here": hs.QuerySet((odd, *known[1:4]), "mine"),
        "of a pool": known.filter(lambda query: "late" in query.id),
        "chains": hs.QuerySet(hs.load_queries("world-three-hops").queries[:3], "mine", few_shot=1),
        "under a condition": world.with_condition("bridge_first"),
        "documents": docs.with_few_shot(1, 4)[3:6],
    }


@pytest.mark.parametrize("name", sets())
def test_inputs_that_are_read_are_those_that_were_written(name: str) -> None:
    inputs = sets()[name]
    written = made(inputs)
    read: Any = again(written).inputs(loaded("tiny-random-llama"))
    assert read == inputs
    assert read.pool == inputs.pool
    assert bool(written.files) == (name != "bundled")
    assert sum(map(len, written.files.values())) < (500 if name == "bundled, chosen" else 10**7)


def test_queries_in_a_chat_are_asked_in_that_chat() -> None:
    model = hs.load_model("tiny-random-llama", device="cpu")
    model.tokenizer.chat_template = (
        "{% for each in messages %}[{{ each.role }}] {{ each.content }}\n{% endfor %}"
    )
    queries = known_queries()[:3].with_chat(model, "Say: {}", "It is", "Be short.")
    read = again(made(queries)).inputs(model)
    assert read.fingerprint == queries.fingerprint
    assert isinstance(read, hs.QuerySet)
    assert read.prompts() == queries.prompts()


def test_inputs_that_were_changed_are_refused() -> None:
    written = made(known_queries())
    ((name, content),) = written.files.items()
    changed = ReadRecipe(written.told(), {name: content[:-1]})
    with pytest.raises(DamagedResultError, match="was changed"):
        changed.inputs(loaded("tiny-random-llama"))


def worked(folder: Path) -> dict[str, bytes]:
    worker = open_worker(Job(str(folder), device="cpu"))
    for part in worker.plan().sizes:
        assert worker.compute(part).state == "done"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "back_patch": (hs.back_patch, {"positions": ["t1"], "layer_step": 2, "max_new_tokens": 2}),
    "grade": (hs.grade, {"preset": "hopping-too-late"}),
    "project": (hs.project, {}),
    "grade_until": (hs.grade_until, {"need": {"incorrect": 40}, "at_least": 32}),
    "permute": (
        hs.permute_documents,
        {"orders": [[1, 0], "forward"], "masks": [causal(), knock_out("question", "gold 1")]},
    ),
    "probe": (hs.probe, {"target": "e2_type", "folds": 2}),
}


def inputs_of(name: str) -> Any:
    if name == "permute":
        return hs.load_questions("world-docs", distractors=1)[:9]
    if name == "probe":
        world = hs.load_queries("world", few_shot=0)
        return sample_entities(labelled(world, "e2_type", 2)[0], 60, 0)
    return many_queries()[:40]


@pytest.mark.parametrize("name", CALLS)
def test_a_worker_goes_on_from_the_folder_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part is written by the call, the others by a worker: the same bytes as one run."""
    analysis, settings = CALLS[name]
    model, inputs = hs.load_model("tiny-random-llama", device="cpu"), inputs_of(name)
    settings = {**settings, "seed": 3, "progress": False}
    result = analysis(model, inputs, out=tmp_path / "whole", **settings)
    assert RECIPE not in result.run

    from hopscope.results import runs

    def stopping(*given: Any) -> None:
        written(*given)
        raise KeyboardInterrupt

    written = runs.write_part
    monkeypatch.setattr(runs, "write_part", stopping)
    with pytest.raises(KeyboardInterrupt):
        analysis(model, inputs, out=tmp_path / "stopped", **settings)
    monkeypatch.undo()
    whole = {path.name: path.read_bytes() for path in sorted((tmp_path / "whole").glob("*.pa*"))}
    assert worked(tmp_path / "stopped") == whole


def test_every_analysis_in_parts_has_a_recipe(tmp_path: Path) -> None:
    hs.stages(
        loaded("tiny-random-llama"),
        many_queries()[:2],
        layers=[1],
        progress=False,
        out=tmp_path,
        knockout={"window": 1},
    )
    folders = sorted(path.parent.name for path in tmp_path.glob("*/run.json"))
    assert folders == ["description", "knockout", "projection", "stages"]
    recipes = {name: read_run(tmp_path / name).get(RECIPE) for name in folders}
    assert recipes.pop("stages") is None
    assert [each["analysis"] for each in recipes.values() if each] == folders[:3]


def test_a_model_of_ones_own_goes_by_a_name_that_gives_the_same_weights(tmp_path: Path) -> None:
    known = known_model()
    hs.grade(known, known_queries(), out=tmp_path / "unknown", progress=False)
    with pytest.raises(ModelError):
        open_worker(Job(str(tmp_path / "unknown")))

    tiny = loaded("tiny-random-llama")
    tiny.hf.save_pretrained(tmp_path / "model")
    tiny.tokenizer.save_pretrained(tmp_path / "model")
    model = hs.load_model(tmp_path / "model", device="cpu", name="mine")
    hs.grade(model, known_queries(), out=tmp_path / "saved", progress=False)
    assert open_worker(Job(str(tmp_path / "saved"), device="cpu")).model.name == "mine"

    own = hs.load_model(tiny.hf, tokenizer=tiny.tokenizer, name="tiny-random-llama")
    told = replace(made(known_queries()), model=own).told()
    assert told["model"]["source"] == "tiny-random-llama"


def test_a_model_that_was_changed_after_it_was_loaded_is_refused(tmp_path: Path) -> None:
    model = hs.load_model("tiny-random-llama", device="cpu")
    model.hf.lm_head.weight.data += 1
    hs.grade(model, known_queries()[:2], out=tmp_path / "run", progress=False)
    run = read_run(tmp_path / "run")
    (tmp_path / "run" / "frame-000000.parquet").unlink()
    assert run[RECIPE]["model"]["sha256"] == run["model"]["sha256"]
    with pytest.raises(ModelError, match="was changed after it was loaded"):
        open_worker(Job(str(tmp_path / "run"), device="cpu"))


def test_a_folder_of_an_earlier_version_says_that_it_has_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"kind": "grading"}')
    with pytest.raises(ResultError, match="begun by an earlier version"):
        ReadRecipe.of(tmp_path)


def test_a_recipe_names_nothing_outside_of_hopscope() -> None:
    for told in ({"function": "os:system"}, {"dataclass": "hopscope.files:shutil", "fields": {}}):
        with pytest.raises(ResultError, match="no part of hopscope"):
            recipe._read(told)
