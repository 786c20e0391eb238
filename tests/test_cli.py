"""Tests of the `hopscope` command: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from hopscope.probes import LinearProbe

import hopscope as hs
from hopscope import cli
from hopscope.commands import specs
from hopscope.commands.options import SUBSETS
from hopscope.documents.orders import NAMES
from hopscope.documents.templates import TEMPLATES
from hopscope.engine import sweep
from hopscope.experiments.documents.attention import DocumentAttention
from hopscope.experiments.documents.permutation import Permutation
from hopscope.experiments.two_hop import probing
from hopscope.experiments.two_hop.cross_patching import ROUTES
from hopscope.experiments.two_hop.description import PROMPTS
from hopscope.experiments.two_hop.grading import grade
from hopscope.masks.named import MASKS
from hopscope.models.hub import hub_models
from hopscope.models.language_model import LanguageModel
from hopscope.models.tiny import build_tiny
from hopscope.models.zoo import zoo
from hopscope.prompting.document_prompts import METRICS
from hopscope.queries.answers import matches
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery
from hopscope.study import study

SCRIPTS = Path(__file__).parents[1] / "figures"
COMMANDS = (
    (),
    ("models",),
    ("models", "list"),
    ("models", "pull"),
    ("grade",),
    ("back-patch",),
    ("figures",),
    ("knockout",),
    ("project",),
    ("describe",),
    ("stages",),
    ("patch",),
    ("trace",),
    ("recall",),
    ("probe",),
    ("permute",),
    ("attention",),
    ("study",),
)


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def hopscope(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Runs the command as a shell would, in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["hopscope", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return Done(code, *capfd.readouterr())

    return run


@cache
def tiny() -> LanguageModel:
    return hs.load_model("tiny-random-llama", device="cpu")


def plain_queries(n: int) -> QuerySet:
    places = ["Kyoto", "Berlin", "Nairobi", "Dublin", "Oxford", "Titanic", "Ottawa", "Brazil"]
    queries = tuple(
        TwoHopQuery(
            id=place,
            e1_label=place,
            e2_label=f"Land{number}",
            e3_label=f"City{number}",
            r1_template="The country of {}",
            r2_template="The capital of {}",
        )
        for number, place in enumerate(places[:n])
    )
    return QuerySet(queries, "plain")


@cache
def answered() -> QuerySet:
    """Queries whose aliases are what the random model happens to say: half of them composed."""
    queries = plain_queries(8)
    frame = grade(tiny(), queries, progress=False).frame
    said = {(row.query, row.form): str(row.generation).strip() for row in frame.itertuples()}
    made = []
    for number, query in enumerate(queries):
        form = "two_hop" if number % 2 else "second_hop"
        others = [text for key, text in said.items() if key != (query.id, form)]
        answer = said[query.id, form]
        assert not any(matches(text, [answer]) for text in others), "two prompts, one answer"
        bridge = said[query.id, "first_hop"]
        made.append(replace(query, e2_aliases=(bridge,), e3_aliases=(answer,)))
    return QuerySet(tuple(made), "answered")


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    """A query set of which the random model gets half right and half wrong."""
    answered().to_csv(tmp_path / "answered.csv")
    return tmp_path / "answered.csv"


TINY = ("--model", "tiny-random-llama", "--device", "cpu")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(hopscope: Command, command: Sequence[str]) -> None:
    done = hopscope(*command, "--help")
    assert done.code == 0
    assert "Usage:" in done.out
    assert done.err == ""
    if command and command[0] != "models":
        asked = "--questions" if command[0] in ("permute", "attention") else "--queries"
        for option in ("--model", asked, "--limit", "--few-shot", "--seed", "--device"):
            assert option in done.out


EVERY = [*((spec.command,) for spec in specs.list_specs()), *COMMANDS, ("accuracy-table",)]


@pytest.mark.parametrize("command", dict.fromkeys(EVERY), ids=" ".join)
def test_help_is_whole_in_80_columns(
    hopscope: Command, monkeypatch: pytest.MonkeyPatch, command: Sequence[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = hopscope(*command, "--help").out
    assert max(map(len, out.splitlines())) <= 80
    assert not re.findall(r".*\w….*", out)


def test_what_cannot_tell_its_cost_has_no_dry_run(hopscope: Command) -> None:
    assert "--dry-run" not in hopscope("back-attention", "--help").out
    assert "--dry-run" in hopscope("auto-patch", "--help").out


NAMED: dict[str, Sequence[str]] = {
    "permute": (*MASKS, *TEMPLATES, *NAMES.split(", "), *METRICS),
    "describe": tuple(PROMPTS),
    "cross-patch": tuple(ROUTES),
    "accuracy-table": tuple(METRICS),
    "back-patch": SUBSETS,
}


@pytest.mark.parametrize("command", NAMED)
def test_help_lists_every_name_that_there_is(
    hopscope: Command, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = hopscope(command, "--help").out
    told = " ".join(out.replace("│", " ").split())
    whole = r"(?<![\w>-]){}(?![\w-])"
    missing = [
        name for name in NAMED[command] if not re.search(whole.format(re.escape(name)), told)
    ]
    assert not missing


def test_version(hopscope: Command) -> None:
    assert hopscope("--version") == (0, f"{hs.__version__}\n", "")


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hopscope", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"{hs.__version__}\n")


def test_models_list(hopscope: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOPSCOPE_CACHE", str(tmp_path))
    (tmp_path / "models" / "smollm2-135m").mkdir(parents=True)
    done = hopscope("models", "list", "--json")
    assert (done.code, done.err) == (0, "")
    models = {model["name"]: model for model in json.loads(done.out)["models"]}
    assert list(models) == list(zoo())
    assert models["smollm2-135m"]["hub_id"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert models["smollm2-135m"]["here"] is True
    assert models["gemma3-270m"]["here"] is False
    on_hub = {model["name"]: model for model in json.loads(done.out)["hub"]}
    assert list(on_hub) == list(hub_models())
    assert on_hub["llama-3.1-8b"]["bfloat16_GB"] == 16.06
    table = hopscope("models", "list").out
    assert all(name in table for name in (*models, *on_hub))
    assert max(map(len, table.splitlines())) <= 100
    assert models["gemma3-270m"]["description"] in hopscope("models", "list", "--full").out


def test_models_check(hopscope: Command) -> None:
    done = hopscope("models", "check", "tiny-random-gemma2", "--dtype", "bfloat16", "--json")
    assert done.code == 0
    checks = json.loads(done.out)["checks"]
    assert {check["verdict"] for check in checks} == {"holds"}
    details = {check["what"]: check["detail"] for check in checks}
    assert details["logit lens"] == "soft cap 6"
    assert details["attn_out and mlp_out add up"] == (
        "post_attention_layernorm, post_feedforward_layernorm"
    )
    assert "patches of z" in hopscope("models", "check", "tiny-random-gemma2").out


def test_models_check_of_a_model_with_something_refused(
    hopscope: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hopscope.engine.logit_lens._scale", lambda *_: None)
    done = hopscope("models", "check", "tiny-random-llama")
    assert done.code == 1
    assert "the logit lens does not hold in tiny-random-llama" in done.out


def test_grade_prints_one_object(hopscope: Command, csv: Path) -> None:
    done = hopscope("grade", *TINY, "-q", csv, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    graded = grade(tiny(), hs.load_queries(csv), progress=False)
    assert found["rows"] == json.loads(graded.frame.to_json(orient="records"))
    counts = {row["what"]: row["right"] for row in found["summary"]}
    assert (counts["correct"], counts["incorrect"]) == (4, 4)
    assert found["run"]["model"]["name"] == "tiny-random-llama"
    assert "8/8" in done.err  # the progress bar


def test_grade_prints_a_table(hopscope: Command, csv: Path) -> None:
    done = hopscope("grade", *TINY, "-q", csv)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["what", "right", "n", "share", "low", "high"]
    assert "two_hop" in done.out


def test_grade_takes_its_settings(hopscope: Command, csv: Path) -> None:
    more = ("--limit", 3, "--few-shot", 1, "--seed", 4, "--match", "substring")
    done = hopscope("grade", *TINY, "-q", csv, *more, "--max-new-tokens", 2, "--json")
    run = json.loads(done.out)["run"]
    rule = {"match": "substring", "max_new_tokens": 2, "one_line": True}
    assert run["settings"] == {**rule, "relation_shortcut": "whole"}
    assert run["queries"]["n"] == 3
    assert (run["queries"]["few_shot"], run["queries"]["few_shot_seed"]) == (1, 4)


def test_queries_are_asked_in_a_chat(hopscope: Command, csv: Path, tmp_path: Path) -> None:
    hf, tokenizer = build_tiny("tiny-random-llama")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    hf.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    asked = ("-q", csv, "--device", "cpu", "--max-new-tokens", 1, "--chat")
    done = hopscope("grade", "--model", tmp_path / "model", *asked, "--json")
    assert json.loads(done.out)["run"]["queries"]["chat"]["prefill"] == "Answer:"
    done = hopscope("grade", *TINY, *asked)
    assert done.code == 2
    assert "the tokenizer has no chat template" in done.err


@pytest.mark.parametrize("asked", [(), ("--subset", "correct"), ("--subset", "all")], ids=str)
def test_back_patch_prints_one_object(hopscope: Command, csv: Path, asked: tuple[str, ...]) -> None:
    subset = asked[-1] if asked else "incorrect"
    done = hopscope("back-patch", *TINY, "-q", csv, *asked, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert set(found) == {"success_rate", "above_chance", "best_cell", "run"}
    chosen = hs.load_queries(csv).filter(lambda query: _is_in(query, subset))
    result = hs.back_patch(tiny(), chosen, progress=False)
    rates = json.loads(result.success_rate().to_json(orient="records"))
    assert found["success_rate"] == rates
    assert {row["n"] for row in rates} == {8 if subset == "all" else 4}
    assert found["best_cell"]["source_layer"] == result.best_cell().source_layer
    assert found["run"]["queries"]["sha256"] == chosen.fingerprint


def test_a_dry_run_tells_what_grading_and_the_analysis_cost(hopscope: Command, csv: Path) -> None:
    asked = ("back-patch", *TINY, "-q", csv, "--subset", "incorrect", "-o", "run/mine", "--json")
    before = set(Path().rglob("*"))
    found = json.loads(hopscope(*asked, "--dry-run").out)
    assert set(found) == {"grading", "incorrect", "back_patching"}
    assert found["grading"]["n"] == found["incorrect"]["n_graded"] == 8
    assert found["back_patching"]["n"] == found["incorrect"]["n"] > 0
    assert found["back_patching"]["seconds"] > 0
    assert set(Path().rglob("*")) == before

    assert hopscope(*asked).code == 0
    before = set(Path().rglob("*"))
    found = json.loads(hopscope(*asked, "--dry-run").out)
    assert set(found) == {"incorrect", "back_patching"}  # they are graded
    assert found["incorrect"] == {"n": 4, "n_graded": 8, "n_found": 4, "n_measured": 8}
    assert (found["back_patching"]["n"], found["back_patching"]["cells"]) == (0, 0)
    assert set(Path().rglob("*")) == before


def test_a_dry_run_grades_until_there_are_enough(hopscope: Command, csv: Path) -> None:
    asked = ("back-patch", *TINY, "-q", csv, "--limit", 1, "--most", 1, "--dry-run")
    found = json.loads(hopscope(*asked, "--json").out)
    assert 1 <= found["grading"]["n"] == found["incorrect"]["n_graded"] <= 8
    assert found["back_patching"]["n"] == 1
    words = hopscope(*asked)
    assert "\n\nincorrect\nabout " in words.out
    assert "layer-tokens" in words.out


def test_a_dry_run_of_a_shard_tells_its_part(hopscope: Command, csv: Path) -> None:
    asked = ("back-patch", *TINY, "-q", csv, "--subset", "incorrect", "-o", "run", "--dry-run")
    whole, half = (json.loads(hopscope(*asked, *s, "--json").out) for s in ([], ["--shard", "1/2"]))
    assert whole["incorrect"] == half["incorrect"]
    assert whole["grading"]["n"] == half["grading"]["n"], "every shard needs the whole grading"
    assert whole["back_patching"]["n"] > half["back_patching"]["n"] > 0
    assert not Path("run").exists()


def test_a_dry_run_of_grading_grades_a_few(hopscope: Command, csv: Path) -> None:
    words = hopscope("grade", *TINY, "-q", csv, "--dry-run", "-o", "run")
    assert words.out.startswith("grading\nqueries")
    assert not Path("run").exists()


def _is_in(query: TwoHopQuery, subset: str) -> bool:
    number = int(query.e2_label.removeprefix("Land"))
    return subset == "all" or (number % 2 == 1) is (subset == "correct")


def test_back_patch_prints_tables(hopscope: Command, csv: Path) -> None:
    done = hopscope("back-patch", *TINY, "-q", csv, "--positions", "t2", "--controls", "other")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "success rate"
    assert lines[1].split() == ["position", "control", "n", "rate", "low", "high"]
    assert "above chance" in lines
    assert (
        "best cell: The cell that did best on one half of the queries, and its rate on" in done.out
    )


def test_what_is_unknown_is_null(hopscope: Command, csv: Path) -> None:
    for most in (1, 2):  # of one query there is no half that scores
        asked = ("back-patch", *TINY, "-q", csv, "--most", most, "--controls", "", "--json")
        found = json.loads(hopscope(*asked).out, parse_constant=_refuse_constant)
        assert (found["best_cell"] is None) is (most == 1)
        assert found["success_rate"][0]["low"] < found["success_rate"][0]["high"]
    assert found["best_cell"]["n"] == 1
    assert found["best_cell"]["low"] < found["best_cell"]["high"]


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_back_patch_takes_its_settings(hopscope: Command, csv: Path) -> None:
    what = ("--positions", "t2, t1->t2", "--controls", "random", "--criterion", "first_token")
    more = ("--layer-step", 3, "--no-stop-early", "--seed", 5, "--most", 2)
    done = hopscope("back-patch", *TINY, "-q", csv, *what, *more, "--json")
    run = json.loads(done.out)["run"]
    assert run["queries"]["n"] == 2
    assert run["settings"] == {
        "positions": ["t2", "t1->t2"],
        "controls": ["random"],
        "criterion": "first_token",
        "max_new_tokens": 1,
        "match": "word",
        "cells": [[3, 0]],
        "stop_early": False,
        "one_line": False,
        "seed": 5,
    }


def test_parity_is_the_papers_way(hopscope: Command, csv: Path) -> None:
    done = hopscope("back-patch", *TINY, "-q", csv, "--parity", "--json")
    run = json.loads(done.out)["run"]
    settings = run["settings"]
    assert (settings["match"], settings["stop_early"]) == ("substring", False)
    assert (settings["one_line"], run["queries"]["few_shot"]) == (False, 0)


def test_shards_come_together(hopscope: Command, csv: Path) -> None:
    asked = ("back-patch", *TINY, "-q", csv, "--subset", "all", "--layer-step", 3)
    whole = hopscope(*asked, "--out", "whole").out
    hopscope(*asked, "--out", "run", "--shard", "2/2")
    assert hopscope(*asked, "--out", "run", "--shard", "1/2").out == whole
    first, second = (hs.load_result(name).frame for name in ("whole", "run"))
    pd.testing.assert_frame_equal(first, second)


def test_a_real_shell_gets_the_object_alone(csv: Path) -> None:
    command = [sys.executable, "-m", "hopscope.cli", "back-patch", *TINY, "--queries", str(csv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--layer-step", "3", "--json"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"success_rate", "above_chance", "best_cell", "run"}
    assert "back patching: 100%" in done.stderr


ANALYSES: dict[str, tuple[tuple[object, ...], set[str]]] = {
    "knockout": (("--criterion", "first_token", "--layer-step", 2), {"effect", "above_chance"}),
    "project": (("--rank", 9), {"summary"}),
    "describe": (("--layer-step", 3, "--samples", 1), {"described", "above_chance", "shares"}),
    "stages": (("--layer-step", 3), {"summary", "broken"}),
    "patch": (("--sites", "resid_post,z", "--no-control"), {"summary"}),
    "attribution-patch": (("--sites", "mlp_out,z", "--exact", 1), {"error", "summary"}),
    "path-patch": (("--receivers", "logits,mlp_in", "--layer-step", 2), {"summary"}),
    "trace": (("--draws", 1, "--sites", "resid_post"), {"total_effect", "summary"}),
    "recall": ((), {"summary", "consistency"}),
}


def replace_answers(queries: QuerySet) -> QuerySet:
    """The same with bridges and answers of different first tokens, so that all have partners."""
    names = (("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Brazil", "Leo"))
    made = [
        replace(query, e2_label=bridge, e3_label=answer, e3_aliases=())
        for query, (bridge, answer) in zip(queries, names, strict=True)
    ]
    return QuerySet(tuple(made), "partners")


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_prints_tables_or_one_object(hopscope: Command, csv: Path, name: str) -> None:
    options, expected = ANALYSES[name]
    partners = replace_answers(plain_queries(4))
    partners.to_csv(csv)
    asked = (name, *TINY, "-q", csv, "--subset", "all", "--most", 2, *options)
    done = hopscope(*asked, "--json", "-o", "run")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert set(found) == {*expected, "run"}
    assert all(found[table] for table in expected)
    assert found["run"]["queries"]["n"] == 2
    words = hopscope(*asked, "-o", "run")  # now from the run folder
    assert words.code == 0
    for table in expected:
        assert table.replace("_", " ") in words.out


def test_a_probe_is_trained_on_so_many_and_saved(hopscope: Command) -> None:
    what = ("--target", "e2_type", "--folds", 2, "--layer-step", 3)
    asked = ("probe", *TINY, "-q", "world", "--limit", 60, *what, "--save", "mine.safetensors")
    done = hopscope(*asked, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [row["layer"] for row in found["selectivity"]] == [0, 3]
    everything = probing.labelled(hs.load_queries("world"), "e2_type", 2)[0]
    chosen = probing.sample_entities(everything, 60)
    probed = probing.labelled(chosen, "e2_type", 2)[0]  # without what cannot be in each fold
    assert len(probed) <= len(chosen) == 60
    assert found["run"]["queries"]["sha256"] == probed.fingerprint
    assert done.err.splitlines()[-1] == "mine.safetensors"
    fitted = LinearProbe.load("mine.safetensors")
    assert fitted.n_classes == len({query.e2_type for query in probed})


@pytest.fixture
def musique(tmp_path: Path) -> Path:
    """A file in the form of MuSiQue: one question has a distractor, the other one none."""
    rows = [_musique("one", "Paris", ["Titanic", "France", "Kyoto"]), _musique("two", "Rome", "ab")]
    path = tmp_path / "musique.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return path


def _musique(id: str, answer: str, titles: Sequence[str]) -> dict[str, Any]:
    """A row; its first two documents are gold, in the order of the chain."""
    steps = (("a >> country", "France", 0), ("#1 >> capital", answer, 1))
    return {
        "id": id,
        "question": "Which city?",
        "answer": answer,
        "answer_aliases": [],
        "answerable": True,
        "paragraphs": [
            {
                "idx": index,
                "title": title,
                "paragraph_text": "The city.",
                "is_supporting": index < 2,
            }
            for index, title in enumerate(titles)
        ],
        "question_decomposition": [
            {"id": number, "question": text, "answer": said, "paragraph_support_idx": index}
            for number, (text, said, index) in enumerate(steps)
        ],
    }


SHORT = ("--template", "plain", "--max-new-tokens", 2)


def test_permute_prints_one_object(hopscope: Command, musique: Path) -> None:
    what = ("--orders", "forward, backward,rm_first", "--masks", "causal,document_block")
    done = hopscope("permute", *TINY, "-q", musique, *what, *SHORT, "--json", "-o", "run")
    assert done.code == 0, done.err
    found = json.loads(done.out, parse_constant=_refuse_constant)
    assert set(found) == {"rows", "compare", "answers", "run"}
    result = hs.load_result("run")
    assert isinstance(result, Permutation)
    assert found["rows"] == json.loads(result.accuracy().to_json(orient="records"))
    names = ["order", "mask", "permuting", "n", "accuracy", "low", "high"]
    assert [list(row) for row in found["rows"]] == [names] * 6
    assert [(row["order"], row["mask"]) for row in found["rows"]][:3] == [
        ("forward", "causal"),
        ("forward", "document_block"),
        ("backward", "causal"),
    ]
    assert {row["n"] for row in found["rows"]} == {2}
    assert {row["base"] for row in found["compare"]} == {"forward"}
    assert "permutation: 100%" in done.err


def test_permute_takes_its_settings(hopscope: Command, musique: Path) -> None:
    more = ("--permuting", "mask,positions+mask", "--label", "none", "--seed", 4, "--limit", 1)
    what = ("--orders", "shuffle_1", "--metric", "f1", *more, *SHORT)
    done = hopscope("permute", *TINY, "-q", musique, *what, "--json")
    found = json.loads(done.out)
    assert found["run"]["settings"] == {
        **found["run"]["settings"],
        "template": "plain",
        "label": "none",
        "max_new_tokens": 2,
        "seed": 4,
        "orders": ["shuffle_1"],
        "permuting": ["mask", "positions+mask"],
    }
    assert found["run"]["queries"]["n"] == 1
    assert [row["permuting"] for row in found["rows"]] == ["mask", "positions+mask"]
    assert found["rows"][0]["low"] is None  # one F1 tells no interval


def test_permute_prints_tables(hopscope: Command, musique: Path) -> None:
    done = hopscope("permute", *TINY, "-q", musique, *SHORT)
    assert done.code == 0, done.err
    assert done.out.startswith("rows\n")
    assert "\ncompare\n" in done.out
    assert "backward" in done.out


@pytest.mark.parametrize("command", ["permute", "attention"])
def test_impossible_questions_are_skipped_if_asked(
    hopscope: Command, musique: Path, command: str
) -> None:
    asked = (command, *TINY, "-q", musique, "--orders", "forward_1", *SHORT, "--json")
    assert hopscope(*asked).code == 2
    done = hopscope(*asked, "--skip-impossible")
    assert done.code == 0, done.err
    assert json.loads(done.out)["run"]["queries"]["n"] == 1


def test_attention_prints_one_object(hopscope: Command, musique: Path) -> None:
    what = ("--orders", "forward,backward", "--read", "last")
    done = hopscope("attention", *TINY, "-q", musique, *what, *SHORT, "--json", "-o", "run")
    assert done.code == 0, done.err
    found = json.loads(done.out, parse_constant=_refuse_constant)
    assert set(found) == {"rows", "peaks", "run"}
    result = hs.load_result("run")
    assert isinstance(result, DocumentAttention)
    assert found["peaks"] == json.loads(result.peaks().to_json(orient="records"))
    assert len(found["peaks"]) == 4
    assert [row["order"] for row in found["rows"]] == ["forward", "backward"]
    assert {row["right"] + row["wrong"] for row in found["rows"]} == {2}
    assert found["run"]["settings"]["read"] == "last"
    words = hopscope("attention", *TINY, "-q", musique, *what, *SHORT)
    assert words.out.startswith("rows\n")
    assert "\npeaks\n" in words.out


def test_a_dry_run_of_questions_tells_what_they_cost(hopscope: Command, musique: Path) -> None:
    found = json.loads(hopscope("permute", *TINY, "-q", musique, *SHORT, "--dry-run", "--json").out)
    assert set(found) == {"document_order"}
    assert found["document_order"]["cells"] > 0


def test_a_study_writes_its_page(hopscope: Command, csv: Path) -> None:
    done = hopscope("study", *TINY, "-q", csv, "--limit", 4, "--need", 0, "--json", "-o", "told")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["report"] == "told/index.html"
    assert Path("told/index.html").read_text("utf-8").startswith("<!doctype html>")
    assert any(sentence.startswith("Of 4 queries the model has") for sentence in found["findings"])


@pytest.fixture
def figures(csv: Path, tmp_path: Path) -> tuple[object, ...]:
    places = ("--scripts", SCRIPTS, "--runs", tmp_path / "runs", "--rendered", tmp_path / "drawn")
    return ("figures", *TINY, "-q", csv, *places)


def test_figures_from_end_to_end(
    hopscope: Command, figures: tuple[object, ...], tmp_path: Path
) -> None:
    done = hopscope(*figures, "grading", "back_patching", "--limit", 6)
    assert done.code == 0, done.err
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    names = [f"{n}.{s}" for n in ("back_patching", "grading") for s in ("csv", "png", "svg")]
    assert drawn == names
    assert all(str(tmp_path / "drawn" / name) in done.out for name in names)
    folder = tmp_path / "runs" / "tiny-random-llama.answered.0-shot.quick-6-seed-0"
    kinds = ["back_patching.correct", "back_patching.incorrect", "grading"]
    assert sorted(path.name for path in folder.iterdir()) == kinds
    assert hs.load_result(folder / "grading").run["queries"]["n"] == 6


def test_figures_in_another_dtype_are_of_another_folder(
    hopscope: Command, figures: tuple[object, ...], tmp_path: Path
) -> None:
    for dtype in ("float32", "bfloat16"):
        asked = (*figures, "grading", "--limit", 6, "--device", "cpu", "--dtype", dtype)
        assert hopscope(*asked).code == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    usual = "tiny-random-llama.answered.0-shot.quick-6-seed-0"
    assert names == [usual, f"{usual}-bfloat16"]
    refused = hopscope(*figures, "grading", "world_circuit", "--chat", "--quantization", "nf4")
    assert refused.code == 2
    assert "the figure world_circuit takes no model of yours, and no --chat" in refused.err


def test_a_picture_is_drawn_before_the_next_analysis_runs(
    hopscope: Command, figures: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study._Task, "inputs", stopped)
    assert hopscope(*figures, "grading", "back_patching", "--limit", 6).code == 130
    assert (tmp_path / "drawn" / "grading.png").is_file()


def test_figures_that_are_there_are_drawn_again(
    hopscope: Command, figures: tuple[object, ...], tmp_path: Path
) -> None:
    asked = (*figures, "--limit", 6)
    assert hopscope(*asked).code == 0
    drawn = {path: path.read_bytes() for path in (tmp_path / "drawn").iterdir()}
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.parquet")}
    assert {"knockout.png", "world_circuit.png"} <= {path.name for path in drawn}
    done = hopscope(*asked, "grading")
    assert done.code == 0
    assert {path: path.read_bytes() for path in drawn} == drawn
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


def test_figures_are_drawn_from_runs_without_a_model(
    hopscope: Command, figures: tuple[object, ...], tmp_path: Path
) -> None:
    assert hopscope(*figures, "grading", "back_patching", "--limit", 6).code == 0
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "drawn").iterdir()}
    places = ("--scripts", SCRIPTS, "--rendered", tmp_path / "again", "-m", "no-model")
    done = hopscope("figures", "grading", "back_patching", "--from", tmp_path / "runs", *places)
    assert done.code == 0, done.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == drawn
    assert b"<text" in drawn["grading.svg"]  # text that can be edited and searched
    empty = hopscope("figures", "knockout", "--from", tmp_path / "runs", *places)
    assert empty.code == 2
    assert "no result for the figure knockout" in empty.err
    shutil.copytree(tmp_path / "runs", tmp_path / "more" / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    shutil.copytree(folder, tmp_path / "runs" / "another")
    before = {path: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    several = hopscope("figures", "grading", "--from", tmp_path / "runs", *places)
    assert several.code == 2
    assert {path: path.read_bytes() for path in (tmp_path / "again").iterdir()} == before
    assert "several runs for the figure grading" in several.err


def test_a_figure_that_needs_no_run_loads_no_model(hopscope: Command, tmp_path: Path) -> None:
    places = ("--scripts", SCRIPTS, "--rendered", tmp_path, "--runs", tmp_path / "runs")
    done = hopscope("figures", "mask_gallery", "-m", "no-model", "-q", "no-queries", *places)
    assert done.code == 0, done.err
    assert sorted(path.name for path in tmp_path.glob("mask_gallery.*")) == [
        f"mask_gallery.{suffix}" for suffix in ("csv", "png", "svg")
    ]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("names", [(), ("grading",), ("grading", "mask_gallery")])
def test_numbers_are_compared_only_where_there_are_some(
    hopscope: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """As from an installed package, which brings the scripts but nothing that they have drawn."""
    monkeypatch.chdir(tmp_path)
    if len(names) == 2:
        shutil.copytree(SCRIPTS / "rendered", tmp_path / "figures" / "rendered")
        (tmp_path / "figures" / "rendered" / "grading.csv").unlink()
    done = hopscope("figures", *names, "--check", "-m", "no-model")
    assert done.code == 2
    place, table = Path("figures", "rendered"), "grading.csv" if names else "table"
    assert f"no numbers to compare with: {place} holds no {table}" in done.err
    for way in ("a checkout of hopscope", "--rendered", "without --check"):
        assert way in done.err


def test_numbers_that_moved_are_told(
    hopscope: Command, figures: tuple[object, ...], tmp_path: Path
) -> None:
    asked = (*figures, "grading", "--limit", 6)
    assert hopscope(*asked).code == 0
    table = tmp_path / "drawn" / "grading.csv"
    before = {path: path.read_bytes() for path in (tmp_path / "drawn").iterdir()}
    done = hopscope(*asked, "--check")
    assert done.code == 0, done.err
    assert "grading: no number moved by more than 0.001" in done.out
    assert {path: path.read_bytes() for path in (tmp_path / "drawn").iterdir()} == before

    frame = pd.read_csv(table)
    frame.loc[2, "share"] += 0.01
    frame.to_csv(table, index=False)
    done = hopscope(*asked, "--check")
    assert done.code == 1
    (told,) = (line for line in done.out.splitlines() if line.split()[:1] == ["grading"])
    assert told.split()[1:3] == ["2", "share"]
    assert "1 numbers moved" in done.err
    assert hopscope(*asked, "--check", "--tolerance", 0.1).code == 0
    frame.drop(columns="n").to_csv(table, index=False)
    assert "rows of" in hopscope(*asked, "--check").out


@pytest.fixture
def tables(tmp_path: Path) -> None:
    """Query sets, whole and broken, in the folder in which the command runs."""
    queries = plain_queries(4)
    frame = queries.to_pandas()
    queries.to_csv(tmp_path / "plain.csv")
    frame.drop(columns=["e3_label"]).to_csv(tmp_path / "missing.csv", index=False)
    frame.head(0).to_csv(tmp_path / "header.csv", index=False)
    frame.head(1).to_csv(tmp_path / "alone.csv", index=False)
    long = replace(queries[0], e1_label="Kyoto " * 300)
    QuerySet((long,)).to_csv(tmp_path / "long.csv")
    frame.loc[1, "e3_aliases"] = "['Paris', "
    frame.to_csv(tmp_path / "aliases.csv", index=False)


PLAIN = (*TINY, "-q", "plain.csv")
WORLD_DOCS = (*TINY, "--limit", 1, "-o", "run")
PATCH = ("back-patch", *PLAIN)
ALL = (*PLAIN, "--subset", "all")
MISTAKES: dict[str, tuple[tuple[object, ...], str]] = {
    "model": (("grade", "-m", "smolm2-135m", "-q", "plain.csv"), "smollm2-135m"),
    "model folder": (
        ("grade", "-m", "no/such/folder"),
        "'no/such/folder' is neither an existing folder",
    ),
    "pull": (("models", "pull", "smolm2"), "choose one of smollm2-135m"),
    "query set": (("grade", *TINY, "-q", "wrld"), "did you mean world?"),
    "missing column": (("grade", *TINY, "-q", "missing.csv"), "missing column e3_label"),
    "aliases": (("grade", *TINY, "-q", "aliases.csv"), "row 2 below the header: column e3_aliases"),
    "no rows": (("grade", *TINY, "-q", "header.csv"), "holds no queries"),
    "too long": (("grade", *TINY, "-q", "long.csv"), "context of tiny-random-llama is 256 tokens"),
    "too long to patch": (
        ("back-patch", *TINY, "-q", "long.csv", "--subset", "all"),
        "context of tiny-random-llama is 256 tokens",
    ),
    "empty subset": (PATCH, "is an empty query set"),
    "few-shot": (("grade", *PLAIN, "--few-shot", 9), "9 demonstrations were asked for"),
    "shard": ((*PATCH, "--shard", "3/2", "-o", "run"), "shard 3/2 does not exist"),
    "shard without out": ((*PATCH, "--subset", "all", "--shard", "1/2"), "needs a run folder"),
    "position": ((*PATCH, "--positions", "t1,t3"), "unknown position 't3'"),
    "control": ((*PATCH, "--controls", "none"), "unknown control 'none'"),
    "criterion": ((*PATCH, "--criterion", "rank"), "unknown criterion 'rank'"),
    "match": (("grade", *PLAIN, "--match", "exact"), "unknown match 'exact'"),
    "subset": ((*PATCH, "--subset", "wrong"), "unknown subset 'wrong'"),
    "layer step": ((*PATCH, "--subset", "all", "--layer-step", 9), "layers 0 to 3; got none"),
    "no layer step": ((*PATCH, "--layer-step", 0), "--layer-step"),
    "preset": (("figures", *PLAIN, "--preset", "full"), "unknown preset 'full'"),
    "figure": (("figures", "bagging", "--scripts", SCRIPTS), "no figure 'bagging'"),
    "scripts": (("figures", *PLAIN, "--scripts", "none"), "no figure scripts in"),
    "device": (("grade", "-m", "tiny-random-llama", "--device", "tpu9"), "device 'tpu9'"),
    "no such GPU": (("grade", "-m", "tiny-random-llama", "--device", "cuda:99"), "cuda:99"),
    "dtype": (("grade", *PLAIN, "--dtype", "float99"), "unknown dtype 'float99'"),
    "quantization": (("grade", *PLAIN, "--quantization", "int9"), "unknown quantization 'int9'"),
    "edge": (("knockout", *ALL, "--edges", "t2>t1"), "'t2>t1' is no edge"),
    "span": (("knockout", *ALL, "--edges", "t2->t3"), "each one of t1, t2, e1"),
    "window": (("knockout", *ALL, "--window", -1), "--window"),
    "head": (("knockout", *ALL, "--heads", "0,9"), "no head 9: the model has heads 0 to 3"),
    "heads": (("knockout", *ALL, "--heads", "all"), "heads are numbers with commas"),
    "nothing to knock out": (("knockout", *PLAIN), "is an empty query set"),
    "site": (("project", *ALL, "--sites", "resid_mid"), "unknown site 'resid_mid'"),
    "rank": (("project", *ALL, "--rank", -1), "--rank"),
    "prompt": (("describe", *ALL, "--prompts", "poem"), "unknown prompt 'poem'"),
    "samples": (("describe", *ALL, "--samples", -2), "--samples"),
    "described position": (("describe", *ALL, "--positions", "t9"), "unknown position 't9'"),
    "stages of no subset": (("stages", *PLAIN, "--subset", "half"), "unknown subset 'half'"),
    "patched site": (("patch", *ALL, "--sites", "q"), "unknown site 'q'"),
    "no partner": (("patch", *TINY, "-q", "alone.csv", "--subset", "all"), "has a partner"),
    "noise": (("trace", *ALL, "--noise", 0), "noise must be above 0"),
    "traced position": (("trace", *ALL, "--positions", ""), "give a list of positions"),
    "nothing to recall": (
        ("recall", *TINY, "-q", "alone.csv", "--subset", "all"),
        "has a partner",
    ),
    "target": (("probe", *PLAIN, "--target", "e9"), "unknown target 'e9'"),
    "folds": (("probe", *PLAIN, "--folds", 1), "--folds"),
    "few to probe": (("probe", *PLAIN), "0 classes of e2 have 5 source entities"),
    "order": (("permute", *WORLD_DOCS, "--orders", "sideways"), "unknown order 'sideways'"),
    "no order": (("permute", *WORLD_DOCS, "--orders", ","), "give a list of orders"),
    "skipped order": (
        ("permute", *WORLD_DOCS, "--orders", "sideways", "--skip-impossible"),
        "unknown order 'sideways'",
    ),
    "impossible order": (("permute", *WORLD_DOCS, "--orders", "forward_9"), "needs 9 distractors"),
    "mask": (("permute", *WORLD_DOCS, "--masks", "diagonal"), "unknown mask 'diagonal'"),
    "way": (("permute", *WORLD_DOCS, "--permuting", "words"), "unknown way 'words'"),
    "template": (("permute", *WORLD_DOCS, "--template", "poem"), "unknown template 'poem'"),
    "distractors": (("permute", *WORLD_DOCS, "--distractors", -1), "--distractors"),
    "questions": (("permute", *TINY, "-q", "none.jsonl"), "no question set 'none.jsonl'"),
    "questions in csv": (("permute", *PLAIN), "plain.csv: expected a file that ends in .jsonl"),
    "attended order": (("attention", *WORLD_DOCS, "--orders", "up"), "unknown order 'up'"),
    "attended mask": (("attention", *WORLD_DOCS, "--masks", "x"), "unknown mask 'x'"),
    "whose attention": (("attention", *WORLD_DOCS, "--read", "first"), "unknown read 'first'"),
    "study preset": (("study", *PLAIN, "--preset", "full", "-o", "run"), "unknown preset"),
    "limit": (("grade", *PLAIN, "--limit", 0), "--limit"),
    "option": (("grade", "--colour", "red"), "No such option"),
    "command": (("gradee",), "No such command"),
}


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_exits_with_2(hopscope: Command, name: str) -> None:
    arguments, message = MISTAKES[name]
    done = hopscope(*arguments)
    assert done.code == 2, done
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not Path("run").exists()


def test_a_damaged_part_is_computed_again(hopscope: Command, csv: Path) -> None:
    asked = ("grade", *TINY, "-q", csv, "-o", "run")
    whole = hopscope(*asked)
    before = Path("run/frame-000000.parquet").read_bytes()
    Path("run/frame-000000.parquet").write_bytes(b"PAR1 and no more")
    again = hopscope(*asked)
    assert (again.code, again.out) == (0, whole.out)
    assert Path("run/frame-000000.parquet").read_bytes() == before


def test_a_damaged_record_exits_with_1(hopscope: Command, csv: Path) -> None:
    asked = ("grade", *TINY, "-q", csv, "-o", "run")
    assert hopscope(*asked).code == 0
    Path("run/run.json").write_text("{")
    done = hopscope(*asked)
    assert done.code == 1
    assert "is damaged" in done.err
    assert "Traceback" not in done.err


def test_another_run_in_the_folder_exits_with_2(hopscope: Command, csv: Path) -> None:
    asked = ("grade", *TINY, "-q", csv, "-o", "run")
    assert hopscope(*asked).code == 0
    done = hopscope(*asked, "--match", "substring")
    assert done.code == 2
    assert "holds another run: its settings match is word, not substring" in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_foreign_folder_exits_with_2(hopscope: Command, csv: Path) -> None:
    Path("thesis").mkdir()
    Path("thesis/thesis.tex").write_text("ten years of work")
    done = hopscope("grade", *TINY, "-q", csv, "-o", "thesis")
    assert done.code == 2
    assert "hopscope: thesis is there and is not a run folder" in done.err
    assert [path.name for path in Path("thesis").iterdir()] == ["thesis.tex"]


def test_a_folder_that_is_no_model_exits_with_2(hopscope: Command, csv: Path) -> None:
    Path("model").mkdir()
    done = hopscope("grade", "-m", "model", "-q", csv)
    assert done.code == 2
    assert "hopscope: model has no config.json" in done.err


def test_a_figure_without_results_exits_with_1(
    hopscope: Command, figures: tuple[object, ...], tmp_path: Path
) -> None:
    plain_queries(3).to_csv(tmp_path / "answered.csv")  # of which none is right
    done = hopscope(*figures, "back_patching")
    assert done.code == 1
    assert "no query was graded incorrect or correct" in done.err
    assert "Traceback" not in done.err


def test_an_interrupt_exits_with_130(
    hopscope: Command, csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hopscope.experiments.two_hop.grading.generate", interrupted)
    done = hopscope("grade", *TINY, "-q", csv, "-o", "run")
    assert done.code == 130
    assert "the same command goes on from here" in done.err
    assert "Traceback" not in done.err


def test_an_interrupted_command_goes_on(
    hopscope: Command, csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("back-patch", *TINY, "-q", csv, "--subset", "all", "--layer-step", 3)
    calls, real = iter(range(100)), sweep.sweep

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    whole = hopscope(*asked).out
    with monkeypatch.context() as patch:
        patch.setattr("hopscope.prompting.query_prompts.sweep", interrupted)
        assert hopscope(*asked, "-o", "run").code != 0
    assert 0 < len(list(Path("run").glob("frame-*.parquet"))) < 4
    assert hopscope(*asked, "-o", "run").out == whole
