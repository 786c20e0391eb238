"""Tests that a bad input is one message, whoever gives it, and leaves nothing behind.

In the shell it ends with exit code 2. In Python it is an error of hopscope's own, before anything
is computed: for what has no meaning a `UsageError`.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import pickle
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded
from known import known_model, known_queries

import hopscope as hs
from hopscope import cli
from hopscope.errors import HopscopeError, UsageError
from hopscope.experiments.analysis import COMMON, RUN_KEYWORDS, Analysis
from hopscope.experiments.catalogue import analyses
from hopscope.models.tiny import build_tiny

SCRIPTS = str(Path(__file__).parents[1] / "figures")
LLAMA = "tiny-random-llama"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of folders and files that are no good models, beside one that is."""
    place = tmp_path_factory.mktemp("models")
    hf, tokenizer = build_tiny(LLAMA)
    hf.save_pretrained(place / "good")
    tokenizer.save_pretrained(place / "good")
    files = {path.name: path.read_bytes() for path in (place / "good").iterdir()}
    config = json.loads(files["config.json"])
    deep = b"[" * 100_000 + b"]" * 100_000
    changed: dict[str, dict[str, bytes | None]] = {
        "config-list": {"config.json": b"[1, 2]"},
        "config-text": {"config.json": b'"llama"'},
        "config-empty": {"config.json": b""},
        "config-deep": {"config.json": b'{"a": ' + deep + b"}"},
        "config-binary": {"config.json": b"\xff\xfe\x00"},
        "config-no-type": {"config.json": b"{}"},
        "config-width-text": {"config.json": as_json({**config, "hidden_size": "wide"})},
        "config-width-zero": {"config.json": as_json({**config, "hidden_size": 0})},
        "config-layers-negative": {"config.json": as_json({**config, "num_hidden_layers": -1})},
        "config-layers-fewer": {"config.json": as_json({**config, "num_hidden_layers": 2})},
        "config-layers-more": {"config.json": as_json({**config, "num_hidden_layers": 6})},
        "config-heads": {"config.json": as_json({**config, "num_attention_heads": 3})},
        "config-vocab": {"config.json": as_json({**config, "vocab_size": 7})},
        "config-type-list": {"config.json": as_json({**config, "model_type": ["llama"]})},
        "config-bert": {"config.json": as_json({"model_type": "bert"})},
        "config-code": {
            "config.json": as_json({"model_type": "mine", "auto_map": {"AutoConfig": "mine.C"}})
        },
        "tokenizer-list": {"tokenizer.json": b"[]"},
        "tokenizer-empty": {"tokenizer.json": b""},
        "tokenizer-deep": {"tokenizer.json": deep},
        "tokenizer-missing": {"tokenizer.json": None, "tokenizer_config.json": None},
        "weights-missing": {"model.safetensors": None},
        "weights-empty": {"model.safetensors": b""},
        "weights-cut": {"model.safetensors": files["model.safetensors"][:1000]},
        "weights-text": {"model.safetensors": b"no weights at all"},
        "weights-pickled": {"model.safetensors": None, "pytorch_model.bin": b"cos\nsystem\n"},
        "index-list": {"model.safetensors": None, "model.safetensors.index.json": b"[]"},
        "index-nowhere": {
            "model.safetensors": None,
            "model.safetensors.index.json": as_json({"weight_map": {"a": "gone.safetensors"}}),
        },
        "only-readme": dict.fromkeys(files) | {"README.md": b"# A model"},
    }
    for name, replaced in changed.items():
        (place / name).mkdir()
        for file, content in {**files, **replaced}.items():
            if content is not None:
                (place / name / file).write_bytes(content)
    (place / "empty.gguf").write_bytes(b"")
    (place / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x10")
    (place / "text.gguf").write_bytes(b"this is no model " * 100)
    (place / "huge.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 16)
    (place / "model.onnx").write_bytes(b"\x00")
    return place


def as_json(content: object) -> bytes:
    return json.dumps(content).encode()


MODELS = (
    *("config-list", "config-text", "config-empty", "config-deep", "config-binary"),
    *("config-no-type", "config-width-text", "config-width-zero", "config-layers-negative"),
    *("config-layers-fewer", "config-layers-more", "config-heads", "config-vocab"),
    *("config-type-list", "config-bert", "config-code"),
    *("tokenizer-list", "tokenizer-empty", "tokenizer-deep", "tokenizer-missing"),
    *("weights-missing", "weights-empty", "weights-cut", "weights-text", "weights-pickled"),
    *("index-list", "index-nowhere", "only-readme"),
    *("empty.gguf", "cut.gguf", "text.gguf", "huge.gguf", "model.onnx", "gone", "gone.gguf"),
)
ROW = {
    "e1_label": "Kyoto",
    "e2_label": "Japan",
    "e3_label": "Tokyo",
    "e1_aliases": "[]",
    "e2_aliases": "[]",
    "e3_aliases": "[]",
    "r1_template": "The country of {}",
    "r2_template": "The capital of {}",
}
HEADER = ",".join(ROW)
TABLES: Mapping[str, bytes | None] = {
    "empty.csv": b"",
    "binary.csv": b"\xff\xfe\x00\x01" * 10,
    "quote.csv": f'{HEADER}\n"Kyoto'.encode(),
    "wide.csv": f"{HEADER}\n{'x,' * 20}".encode(),
    "no-slot.csv": f"{HEADER}\nKyoto,Japan,Tokyo,[],[],[],The country,The {{}}".encode(),
    "no-label.csv": f"{HEADER}\n,Japan,Tokyo,[],[],[],The {{}},The capital of {{}}".encode(),
    "twice.csv": f"{HEADER},{HEADER}\n".encode(),
    "text.parquet": b"this is no table",
    "cut.parquet": b"PAR1\x00\x00",
    "list.jsonl": b"[1, 2]\n",
    "number.jsonl": b"1\n2\n",
    "cut.jsonl": b'{"e1_label": "Kyo',
    "deep.jsonl": b"[" * 100_000,
    "label-list.jsonl": as_json({**ROW, "e2_label": ["Japan", "Nippon"]}),
    "label-object.jsonl": as_json({**ROW, "e3_label": {"name": "Tokyo"}}),
    "template-list.jsonl": as_json({**ROW, "r1_template": ["The country of {}"]}),
    "aliases-object.jsonl": as_json({**ROW, "e3_aliases": {"a": 1}}),
    "queries.txt": b"The capital of the country of Kyoto is",
    "folder.csv": None,
}
QUESTION = {
    "id": "1",
    "question": "Where?",
    "answer": "here",
    "paragraphs": [{"idx": 0, "title": "A", "paragraph_text": "It is here."}],
    "question_decomposition": [
        {"question": "Where?", "answer": "here", "paragraph_support_idx": 0}
    ],
}
QUESTIONS: Mapping[str, bytes | None] = {
    "empty.json": b"",
    "number.json": b"7",
    "object.json": b"{}",
    "deep.json": b"[" * 100_000,
    "cut.jsonl": b'{"question": "Wh',
    "rows-list.json": b"[[1], [2]]",
    "question-list.json": as_json([{**QUESTION, "question": ["Where?"]}]),
    "answer-list.json": as_json([{**QUESTION, "answer": ["here"]}]),
    "paragraphs-text.json": as_json([{**QUESTION, "paragraphs": "It is here."}]),
    "support-text.json": as_json(
        [{**QUESTION, "question_decomposition": [{"question": "", "answer": "here"}]}]
    ),
    "title-list.json": as_json(
        [{**QUESTION, "paragraphs": [{"idx": 0, "title": [], "paragraph_text": ["x"]}]}]
    ),
    "binary.jsonl": b"\xff\xfe\x00",
    "text.parquet": b"no table",
    "folder.json": None,
}
TINY = ("-m", LLAMA, "--device", "cpu")
ALL = (*TINY, "-q", "good.csv", "--subset", "all")
OPTIONS: Mapping[str, tuple[object, ...]] = {
    "model without a name": ("grade", "-m", "", "-q", "good.csv"),
    "model of a blank": ("back-patch", "-m", " ", "-q", "good.csv"),
    "queries without a name": ("grade", *TINY, "-q", ""),
    "device meta": ("grade", "-m", LLAMA, "--device", "meta", "-q", "good.csv"),
    "device of nothing": ("grade", "-m", LLAMA, "--device", "", "-q", "good.csv"),
    "dtype of whole numbers": ("grade", *TINY, "-q", "good.csv", "--dtype", "int8"),
    "dtype that is a function": ("grade", *TINY, "-q", "good.csv", "--dtype", "zeros"),
    "huge seed": ("back-patch", *ALL, "--seed", 10**40),
    "negative seed": ("back-patch", *ALL, "--seed", -1),
    "seed that is text": ("grade", *TINY, "-q", "good.csv", "--seed", "lucky"),
    "noise that is no number": ("trace", *ALL, "--noise", "nan"),
    "noise without end": ("trace", *ALL, "--noise", "inf"),
    "noise below zero": ("trace", *ALL, "--noise", -3),
    "no draws": ("trace", *ALL, "--draws", 0),
    "mass beyond one": ("classify-heads", *TINY, "-q", "good.csv", "--mass", 1.5),
    "mass that is no number": ("classify-heads", *TINY, "-q", "good.csv", "--mass", "nan"),
    "edge that looks ahead": ("knockout", *ALL, "--edges", "t1->t2"),
    "edge to itself": ("knockout", *ALL, "--edges", "t2->t2"),
    "edge of three": ("knockout", *ALL, "--edges", "t2->t1->e1"),
    "no edge": ("knockout", *ALL, "--edges", ""),
    "heads below zero": ("knockout", *ALL, "--heads", "-1"),
    "more demonstrations than there are": ("grade", *TINY, "-q", "good.csv", "--few-shot", 10**9),
    "tokens beyond the context": ("grade", *TINY, "-q", "good.csv", "--max-new-tokens", 10**6),
    "no tokens": ("grade", *TINY, "-q", "good.csv", "--max-new-tokens", 0),
    "shard of words": ("back-patch", *ALL, "--shard", "first/last", "-o", "run"),
    "shard zero": ("back-patch", *ALL, "--shard", "0/2", "-o", "run"),
    "shard with nothing to do": ("back-patch", *ALL, "--shard", "9/9", "-o", "run"),
    "route to nowhere": ("cross-patch", *ALL, "--routes", "t1->nowhere"),
    "condition that is none": ("prompt-conditions", *ALL, "--conditions", "louder"),
    "position of auto-patching": ("auto-patch", *ALL, "--positions", "t9"),
    "prompt of a description": ("describe", *ALL, "--prompts", "poem"),
    "position of a projection": ("project", *ALL, "--positions", "t9"),
    "rank of a layer order": ("layer-order", *ALL, "--rank", -1),
    "step of stages": ("stages", *ALL, "--layer-step", 0),
    "site of a patch": ("patch", *ALL, "--sites", "resid"),
    "site of attribution": ("attribution-patch", *ALL, "--sites", "resid"),
    "receiver of a path": ("path-patch", *ALL, "--receivers", "everyone"),
    "position of a probe": ("probe", *TINY, "-q", "good.csv", "--position", "t9"),
    "order of attention": ("attention", *TINY, "--limit", 1, "--orders", "sideways"),
    "window of masked paths": ("masked-paths", *TINY, "--limit", 1, "--window", -1),
    "retriever": ("haystack", *TINY, "--limit", 1, "--retrievers", "crystal-ball"),
    "runs that are not there": ("runs", "retry", "nowhere"),
    "figures from nowhere": ("figures", "--from", "nowhere"),
    "table of nothing": ("accuracy-table", "nowhere"),
    "label": ("permute", *TINY, "--limit", 1, "--label", "letters"),
    "no mask": ("permute", *TINY, "--limit", 1, "--masks", ","),
    "no orders to choose from": ("best-order", *TINY, "--limit", 1, "--k", 0),
    "clusters": ("rank-neighbours", *TINY, "-q", "good.csv", "--n-clusters", 10**6),
    "no ranks": ("rank-neighbours", *TINY, "-q", "good.csv", "--ranks", 0),
    "encoder-decoder": ("back-patch", "-m", "tiny-random-t5", "-q", "good.csv", "--subset", "all"),
    "chat without a template": ("grade", *TINY, "-q", "good.csv", "--chat"),
    "world": ("worlds", "train", "two-hop-square"),
    "huge seed of a world": ("worlds", "train", "two-hop-looped", "--seed", 10**20),
    "seed of a world that is text": ("grade", "-m", "world:two-hop-looped@x", "-q", "good.csv"),
    "no world": ("grade", "-m", "world:", "-q", "good.csv"),
    "split of a world": ("grade", *TINY, "-q", "world:two-hop-looped.no_such_split"),
    "threads": ("worlds", "train", "two-hop-looped", "--threads", 0),
    "device of a world": ("worlds", "train", "two-hop-looped", "--device", "meta", "-o", "run"),
    "no table of accuracies": ("accuracy-table", "gone"),
    "accuracies of something else": ("accuracy-table", "thesis"),
    "figures beside an empty table": (
        *("figures", "recall", "--scripts", SCRIPTS, "--rendered", "drawn", "--check"),
        *(*TINY, "-q", "good.csv"),
    ),
    "folder of another thing": ("back-patch", *ALL, "-o", "thesis"),
    "study in a file": ("study", *TINY, "-q", "good.csv", "-o", "good.csv"),
    "study without queries": ("study", *TINY, "-q", "gone.csv", "-o", "run"),
    "tolerance": ("figures", "recall", "--scripts", SCRIPTS, "--check", "--tolerance", -1),
    "model to check": ("models", "check", "no-such-model"),
}


class Shell:
    """Runs the command in a folder that it must leave as it was."""

    def __init__(self, folder: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.capfd, self.monkeypatch = folder, capfd, monkeypatch

    def refused(self, *arguments: object) -> str:
        """What is said of a call that exits with 2: one message, and nothing is left behind."""
        before = contents(self.folder)
        self.monkeypatch.setattr(sys, "argv", ["hopscope", *map(str, arguments)])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = self.capfd.readouterr()
        assert stop.value.code == 2, err
        assert out == ""
        assert "Traceback" not in err
        assert err.count("hopscope: ") == 1 or "Usage: " in err
        assert contents(self.folder) == before
        return str(err)


def contents(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def shell(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HOPSCOPE_CACHE", str(tmp_path / "cache"))
    hs.QuerySet(tuple(query(id=str(n), e1_label=f"Town{n}") for n in range(3))).to_csv(
        tmp_path / "good.csv"
    )
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("ten years of work")
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "recall.csv").touch()
    for folder, files in (("tables", TABLES), ("questions", QUESTIONS)):
        for name, content in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(exist_ok=True)
            path.mkdir() if content is None else path.write_bytes(content)
    return Shell(tmp_path, capfd, monkeypatch)


def test_there_are_enough_kinds() -> None:
    assert len(MODELS) + len(TABLES) + len(QUESTIONS) + len(OPTIONS) >= 60


@pytest.mark.parametrize("name", MODELS)
def test_what_is_no_model_is_refused(shell: Shell, saved: Path, name: str) -> None:
    before = contents(saved)
    said = shell.refused("grade", "-m", saved / name, "--device", "cpu", "-q", "good.csv")
    assert name in said
    assert contents(saved) == before


@pytest.mark.parametrize("name", TABLES)
def test_what_is_no_table_of_queries_is_refused(shell: Shell, name: str) -> None:
    said = shell.refused("grade", *TINY, "-q", Path("tables") / name, "-o", "run")
    assert name.split(".")[0] in said


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_is_no_set_of_questions_is_refused(shell: Shell, name: str) -> None:
    said = shell.refused("permute", *TINY, "-q", Path("questions") / name, "-o", "run")
    assert name.split(".")[0] in said


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_makes_no_sense_is_refused(shell: Shell, name: str) -> None:
    shell.refused(*OPTIONS[name])


@cache
def documents() -> hs.QuestionSet:
    return hs.load_questions("world-docs", distractors=1)[:2]


STRANGE: tuple[Any, ...] = (
    *("", "no such thing", b"bytes", -7, 2**70, 2.5, math.nan, math.inf, True, None),
    *([], [None], ["no such thing"], [[]], [-7], [2.5], (), {}, {"no": "such"}, {1, "a"}),
    *(object(), len, np.array([1.5]), np.array([]), pd.DataFrame({"a": [1]}), torch.zeros(2)),
    *(Path("no/such"), range(0), range(99), SimpleNamespace(name="x"), Exception("no")),
)
"""What might be given by mistake for anything."""


@pytest.mark.parametrize("entry", analyses(), ids=lambda entry: entry.name)
def test_every_parameter_is_declared(entry: Analysis) -> None:
    declared = {*entry.accepts, "preset"}
    assert set(entry.own_parameters) <= declared
    assert set(COMMON) & set(RUN_KEYWORDS) == set(RUN_KEYWORDS)


@pytest.mark.parametrize("entry", analyses(), ids=lambda entry: entry.name)
def test_whatever_is_given_for_a_parameter_is_taken_or_refused(entry: Analysis) -> None:
    """No parameter of any analysis lets an error of Python's own through."""
    for name, constraint in entry.accepts.items():
        for value in STRANGE:
            try:
                constraint.checked(name, value, known_model())
            except UsageError:
                pass
            except Exception as error:
                pytest.fail(f"{name}={value!r}: {type(error).__name__}: {error}")


def of_sets(model: Any = "model", queries: Any = "queries", **given: Any) -> Any:
    return hs.back_patch(model, queries, **given)


PYTHON: Mapping[str, Callable[[], object]] = {
    "a model that is text": lambda: hs.back_patch("smollm2-135m", known_queries()),
    "a model that is a number": lambda: hs.load_model(3),
    "a model that is None": lambda: hs.load_model(None),
    "a model that is a class": lambda: hs.load_model(hs.LanguageModel),
    "a model that is a list": lambda: hs.load_model([LLAMA]),
    "a model without a name": lambda: hs.load_model(""),
    "a model whose path has a zero": lambda: hs.load_model("a\0b"),
    "a model of too long a name": lambda: hs.load_model("x" * 5000),
    "a device that is a list": lambda: hs.load_model(LLAMA, device=["cpu"]),
    "a device and a map": lambda: hs.load_model(LLAMA, device="cpu", device_map="auto"),
    "a dtype that is a list": lambda: hs.load_model(LLAMA, dtype=["float32"]),
    "a dtype of whole numbers": lambda: hs.load_model(LLAMA, dtype=torch.int8),
    "a quantization that is a number": lambda: hs.load_model(LLAMA, quantization=4),
    "a quantization of an unknown name": lambda: hs.load_model(LLAMA, quantization="int9"),
    "a tokenizer that is text": lambda: hs.load_model(LLAMA, tokenizer="gpt2"),
    "a name that is a number": lambda: hs.load_model(LLAMA, name=3),
    "queries that are a list": lambda: hs.grade(known_model(), ["The capital of France is"]),
    "queries that are one query": lambda: hs.grade(known_model(), known_queries()[0]),
    "queries that are a number": lambda: hs.load_queries(3),
    "queries that are None": lambda: hs.load_queries(None),
    "queries of too long a name": lambda: hs.load_queries("x" * 5000),
    "queries whose path has a zero": lambda: hs.load_queries("a\0b.csv"),
    "demonstrations that are text": lambda: hs.load_queries("world", few_shot="5"),
    "half a demonstration": lambda: hs.load_queries("world", few_shot=2.5),
    "fewer than no demonstrations": lambda: hs.load_queries("world", few_shot=-1),
    "a set of texts": lambda: hs.QuerySet(("The capital of France is",)),
    "a set of one text": lambda: hs.QuerySet("The capital of France is"),
    "a set of a number": lambda: hs.QuerySet(3),
    "a frame that is a list": lambda: hs.QuerySet.from_pandas([ROW]),
    "a label that is a list": lambda: query(e2_label=["Japan", "Nippon"]),
    "a label that is a number": lambda: query(e3_label=3),
    "a label that is None": lambda: query(e1_label=None),
    "a template that is a list": lambda: query(r1_template=["The country of {}"]),
    "a template that is None": lambda: query(r2_template=None),
    "aliases that are text": lambda: query(e3_aliases="Tokyo"),
    "aliases that are a number": lambda: query(e3_aliases=3),
    "an id that is a list": lambda: query(id=["1"]),
    "an ending that is None": lambda: query(r1_ending=None),
    "a sample of a text": lambda: known_queries().sample("3"),
    "half a sample": lambda: known_queries().sample(2.5),
    "a sample of too many": lambda: known_queries().sample(10**9),
    "a share that is text": lambda: known_queries().split("half"),
    "a share that is no number": lambda: known_queries().split(math.nan),
    "a balance of a list": lambda: known_queries().balance(["e2_type"]),
    "a balance of a text": lambda: known_queries().balance(most="50"),
    "an id that there is not": lambda: known_queries().by_id(["early-1"]),
    "prompts of a list": lambda: known_queries().prompts(["two_hop"]),
    "questions that are a number": lambda: hs.load_questions(3),
    "questions that are None": lambda: hs.load_questions(None),
    "questions that are one row": lambda: hs.load_questions(QUESTION),
    "questions of too long a name": lambda: hs.load_questions("x" * 5000),
    "questions whose path has a zero": lambda: hs.load_questions("a\0b.json"),
    "distractors that are text": lambda: hs.load_questions("world-docs", distractors="4"),
    "distractors without end": lambda: hs.load_questions("world-docs", distractors=10**9),
    "half a distractor": lambda: hs.load_questions("world-docs", distractors=1.5),
    "a seed of questions that is a list": lambda: hs.load_questions("world-docs", seed=[1]),
    "a set of questions that are texts": lambda: hs.QuestionSet(("Where?",)),
    "a set of questions of a number": lambda: hs.QuestionSet(3),
    "questions for queries": lambda: hs.back_patch(known_model(), documents()),
    "queries for questions": lambda: hs.permute_documents(known_model(), known_queries()),
    "an encoder-decoder": lambda: hs.back_patch(encoder_decoder(), known_queries()),
    "an encoder-decoder to trace": lambda: hs.trace(encoder_decoder(), known_queries()),
    "an encoder-decoder to grade": lambda: hs.grade(encoder_decoder(), known_queries()),
    "an encoder-decoder to capture": lambda: hs.capture(encoder_decoder(), ["text"]),
    "shard zero": lambda: back_patch(shard=(0, 2), out="run"),
    "a shard of text": lambda: back_patch(shard="1/2", out="run"),
    "a shard of one": lambda: back_patch(shard=1, out="run"),
    "a shard of three": lambda: back_patch(shard=(1, 2, 3), out="run"),
    "a shard of halves": lambda: back_patch(shard=(1.5, 2), out="run"),
    "a shard without a folder": lambda: back_patch(shard=(1, 2)),
    "a folder without a name": lambda: back_patch(out=""),
    "a folder that is a number": lambda: back_patch(out=3),
    "a folder with a zero": lambda: back_patch(out="a\0b"),
    "a huge seed": lambda: back_patch(seed=10**40),
    "a seed that is text": lambda: back_patch(seed="lucky"),
    "a seed that is no number": lambda: back_patch(seed=math.nan),
    "progress that is text": lambda: back_patch(progress="yes"),
    "no memory": lambda: back_patch(max_memory=0),
    "memory in words": lambda: back_patch(max_memory="8 GB"),
    "cells of numbers": lambda: back_patch(cells=[1, 2]),
    "one cell": lambda: back_patch(cells=(3, 1)),
    "cells of a text": lambda: back_patch(cells="3->1"),
    "layers of a text": lambda: hs.knockout(known_model(), known_queries(), layers="all"),
    "half a layer": lambda: hs.knockout(known_model(), known_queries(), layers=[1.5]),
    "a layer too many": lambda: hs.knockout(known_model(), known_queries(), layers=[99]),
    "edges of numbers": lambda: hs.knockout(known_model(), known_queries(), edges=[1]),
    "an edge that looks ahead": lambda: hs.knockout(known_model(), known_queries(), edges="t1->t2"),
    "heads of a text": lambda: hs.knockout(known_model(), known_queries(), heads="all"),
    "noise without end": lambda: hs.trace(known_model(), known_queries(), noise=math.inf),
    "noise that is no number": lambda: hs.trace(known_model(), known_queries(), noise=math.nan),
    "noise in words": lambda: hs.trace(known_model(), known_queries(), noise="3"),
    "half a draw": lambda: hs.trace(known_model(), known_queries(), draws=2.5),
    "prompts of a number": lambda: hs.describe(known_model(), known_queries(), prompts=3),
    "own prompts that are numbers": lambda: hs.describe(
        known_model(), known_queries(), prompts={"mine": 3}
    ),
    "routes of a number": lambda: hs.cross_patch(known_model(), known_queries(), routes=3),
    "own routes that are texts": lambda: hs.cross_patch(
        known_model(), known_queries(), routes={"mine": "t1"}
    ),
    "settings of a list": lambda: hs.stages(known_model(), known_queries(), knockout=["window"]),
    "settings of nonsense": lambda: hs.stages(
        known_model(), known_queries(), knockout={"window": "wide"}
    ),
    "a need of words": lambda: hs.grade_until(known_model(), known_queries(), {"correct": "many"}),
    "a need of a list": lambda: hs.grade_until(known_model(), known_queries(), ["correct"]),
    "a need of nothing": lambda: hs.grade_until(known_model(), known_queries(), {"right": 1}),
    "at least half": lambda: hs.grade_until(
        known_model(), known_queries(), {"correct": 1}, at_least=1.5
    ),
    "a probe of half a layer": lambda: hs.fit_probe(known_model(), known_queries(), layers=[1.5]),
    "a label of documents that is a list": lambda: permute(label=["position"]),
    "orders of a number": lambda: permute(orders=3),
    "an order of texts": lambda: permute(orders=[["a", "b"]]),
    "an order of documents that there are not": lambda: permute(orders=[[0, 99]]),
    "masks of a number": lambda: permute(masks=3),
    "a template of a list": lambda: permute(template=["plain"]),
    "tokens in words": lambda: permute(max_new_tokens="ten"),
    "a mask that is a tensor": lambda: hs.best_order(
        known_model(), documents(), mask=torch.ones(2, 2)
    ),
    "a patch of texts": lambda: hs.Patch(0, 0, ["1.0", "2.0"]),
    "a patch of a list of unlike rows": lambda: hs.Patch(0, 0, [[1.0], [1.0, 2.0]]),
    "a patch of a matrix": lambda: hs.Patch(0, 0, torch.zeros(2, 2)),
    "a patch at half a layer": lambda: edited(hs.Patch(0.5, 0, torch.zeros(48))),
    "a patch at a token in words": lambda: edited(hs.Patch(0, "t1", torch.zeros(48))),
    "a patch of a wrong width": lambda: edited(hs.Patch(0, 0, torch.zeros(7))),
    "a patch of no number": lambda: edited(hs.Patch(0, 0, torch.full((48,), math.nan))),
    "a patch of an unknown site": lambda: hs.Patch(0, 0, torch.zeros(2), site=["z"]),
    "a knockout of a text": lambda: hs.Knockout("all", [1], [0]),
    "a knockout of half a layer": lambda: hs.Knockout(1.5, 1, 0),
    "a knockout of words": lambda: hs.Knockout([1], ["t2"], ["t1"]),
    "an edit that is text": lambda: hs.edit(known_model(), ["Patch"], 3).__enter__(),
    "edits that are text": lambda: hs.edit(known_model(), "Patch", 3).__enter__(),
    "edits of a model's name": lambda: hs.edit(LLAMA, [], 3).__enter__(),
    "tokens of a prompt in words": lambda: hs.edit(known_model(), [], "three").__enter__(),
    "a sweep over no prompt": lambda: hs.sweep(known_model(), [], [[]], hs.ReadOut()),
    "a sweep over unknown tokens": lambda: hs.sweep(known_model(), [10**6], [[]], hs.ReadOut()),
    "a sweep over text": lambda: swept(ids="The capital of"),
    "a sweep over halves of tokens": lambda: swept(ids=[0.5]),
    "a sweep over tokens in a batch": lambda: swept(ids=torch.ones(1, 3, dtype=torch.long)),
    "a sweep of text": lambda: swept(cells="Patch"),
    "a sweep of cells of text": lambda: swept(cells=[["Patch"]]),
    "a sweep of numbers": lambda: swept(cells=[1]),
    "a sweep without a model": lambda: swept(model=LLAMA),
    "a sweep that reads tokens": lambda: swept(read_out=[5]),
    "a sweep that reads unknown tokens": lambda: swept(read_out=read_out(answer_tokens=10**6)),
    "a sweep that reads more tokens than there are": lambda: swept(read_out=read_out(top_k=10**6)),
    "a read-out of text": lambda: read_out(answer_tokens="Rome"),
    "a read-out of texts": lambda: read_out(track=["Rome"]),
    "a read-out of half a token": lambda: read_out(also_rank=0.5),
    "a read-out that stops at a text": lambda: read_out(stop="."),
    "a read-out of a list of draws": lambda: read_out(draws=[0.5]),
    "a read-out that samples by a number": lambda: read_out(sampling=0.5),
    "a read-out of fewer than no tokens": lambda: read_out(max_new_tokens=-1),
    "a capture of a number": lambda: hs.capture(known_model(), 3),
    "a capture of numbers": lambda: hs.capture(known_model(), [1, 2]),
    "a capture of nothing": lambda: hs.capture(known_model(), []),
    "a capture of an empty text": lambda: hs.capture(known_model(), [""]),
    "a capture of a site in a list": lambda: hs.capture(known_model(), ["The"], sites=[["z"]]),
    "a capture at half a place": lambda: hs.capture(known_model(), ["The"], positions=[0.5]),
    "a capture of a query set": lambda: hs.capture(known_model(), known_queries()),
    "a capture of a site of no such name": lambda: hs.capture(known_model(), "The", "resid"),
    "a capture of a site that is a number": lambda: hs.capture(known_model(), "The", 3),
    "a capture of no token in a batch": lambda: hs.capture(known_model(), "The", batch_size=0),
    "accuracies of a number": lambda: hs.accuracy_table(3),
    "accuracies of a grading": lambda: hs.accuracy_table(graded()),
    "accuracies of paths": lambda: hs.accuracy_table(["runs/0.5b"]),
    "a capture by a model's name": lambda: hs.capture(LLAMA, ["The"]),
    "a lens of a model's name": lambda: hs.logit_lens(LLAMA),
    "a result in no folder": lambda: hs.load_result("gone"),
    "a result without a name": lambda: hs.load_result(""),
    "a result that is a number": lambda: hs.load_result(3),
    "a result that is None": lambda: hs.load_result(None),
    "packing nothing": lambda: hs.pack_run("gone", "packed"),
    "packing a number": lambda: hs.pack_run(3, "packed"),
    "a result saved nowhere": lambda: graded().save(""),
    "a result saved to a number": lambda: graded().save(3),
    "a column that there is not": lambda: graded().in_run("no such column", "x"),
    "no partial result": lambda: hs.partial(),
    "an estimate of text": lambda: hs.estimate("back_patch", known_model(), known_queries()),
    "references of a list": lambda: hs.references(["knockout"]),
    "a world that is a number": lambda: hs.load_world(3),
    "a world of no name": lambda: hs.load_world("two-hop-square"),
    "a world in no folder": lambda: hs.load_world("gone"),
    "a world of a seed in words": lambda: hs.load_world("two-hop-looped", seed="x"),
    "a world of a seed below zero": lambda: hs.load_world("two-hop-looped", seed=-1),
    "training of no world": lambda: hs.train_world("two-hop-square"),
    "training of a seed in words": lambda: hs.train_world("two-hop-looped", seed="x"),
    "snapshots without a folder": lambda: hs.train_world("two-hop-looped", snapshots=[1]),
    "snapshots in words": lambda: hs.train_world("two-hop-looped", snapshots=["a"], out="run"),
    "circuits of text": lambda: hs.circuit(["two-hop-looped"]),
    "circuits of nothing": lambda: hs.circuit([]),
    "training on queries": lambda: hs.train(known_queries()),
    "training under no mask": lambda: hs.train(documents(), "diagonal"),
    "training by settings in a dictionary": lambda: hs.train(documents(), settings={"steps": 1}),
    "settings without end": lambda: hs.TrainingSettings(steps=math.inf),
    "settings in words": lambda: hs.TrainingSettings(steps="many"),
    "settings of no number": lambda: hs.TrainingSettings(learning_rate=math.nan),
    "a view of text": lambda: hs.explore(LLAMA),
    "a mask painted by name": lambda: hs.paint_mask(LLAMA, documents()),
    "a mask painted on text": lambda: hs.paint_mask(known_model(), "Where?"),
    "attention of a number": lambda: hs.attention_view(known_model(), 3),
    "a check of a name": lambda: hs.check_model(LLAMA),
}


def query(**given: Any) -> hs.TwoHopQuery:
    plain = {
        "id": "1",
        "e1_label": "Kyoto",
        "e2_label": "Japan",
        "e3_label": "Tokyo",
        "r1_template": "The country of {}",
        "r2_template": "The capital of {}",
    }
    return hs.TwoHopQuery(**{**plain, **given})


def back_patch(**given: Any) -> object:
    return hs.back_patch(known_model(), known_queries(), **given)


def permute(**given: Any) -> object:
    return hs.permute_documents(loaded(LLAMA), documents(), **given)


def edited(edit: Any) -> object:
    return hs.sweep(known_model(), [1, 2, 3], [[edit]], hs.ReadOut())


def swept(**given: Any) -> Any:
    """A sweep without the check of types that is there in tests alone."""
    usual = {
        "model": known_model(),
        "ids": [1, 2, 3],
        "cells": [[]],
        "read_out": hs.ReadOut(top_k=9),
    }
    return inspect.unwrap(hs.sweep)(**{**usual, **given})


def read_out(**given: Any) -> hs.ReadOut:
    """What to read, made without that check."""
    made = object.__new__(hs.ReadOut)
    inspect.unwrap(hs.ReadOut.__init__)(made, **given)
    return made


def graded() -> hs.Result:
    from known import RIGHT, made_grading

    return made_grading(RIGHT)


@cache
def encoder_decoder() -> Any:
    return hs.load_any("tiny-random-t5", device="cpu")


@pytest.mark.parametrize("name", PYTHON)
def test_a_call_that_makes_no_sense_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HopscopeError) as refused:
        PYTHON[name]()
    assert str(refused.value)
    assert not list(tmp_path.iterdir())


MEANT: Mapping[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "a prompt": (
        lambda: hs.capture(known_model(), "The capital of", "attn_out", -1)["attn_out"].tolist(),
        lambda: hs.capture(known_model(), ["The capital of"], ["attn_out"], [-1])[
            "attn_out"
        ].tolist(),
    ),
    "a knockout": (lambda: hs.Knockout(1, -1, 0, 2), lambda: hs.Knockout([1], [-1], [0], [2])),
    "tokens": (
        lambda: read_out(answer_tokens=5, track=np.array([7, 8]), also_rank=[9]),
        lambda: hs.ReadOut((5,), track=(7, 8), also_rank=(9,)),
    ),
    "edits for cells": (
        lambda: tokens(swept(cells=[patch(), KNOCKOUT], ids=torch.tensor([1, 2, 3]))),
        lambda: tokens(swept(cells=[[patch()], [KNOCKOUT]])),
    ),
    "an edit for cells": (
        lambda: tokens(swept(cells=patch(), base=KNOCKOUT)),
        lambda: tokens(swept(cells=[[patch()]], base=[KNOCKOUT])),
    ),
    "an array for a vector": (
        lambda: tokens(swept(cells=[hs.Patch(1, -1, vector())])),
        lambda: tokens(swept(cells=[[patch()]])),
    ),
    "numbers for a vector": (
        lambda: tokens(swept(cells=[hs.Patch(1, -1, vector().tolist())])),
        lambda: tokens(swept(cells=[[patch()]])),
    ),
    "an edit to be made": (
        lambda: edited_logits(patch()),
        lambda: edited_logits([patch()]),
    ),
}
"""Calls that say what is meant in a shorter way, each with the same in full."""
KNOCKOUT = hs.Knockout([1], [2], [1])


def vector() -> Any:
    return np.linspace(-1, 1, known_model().d_model)


def patch() -> hs.Patch:
    return hs.Patch(1, -1, torch.tensor(vector()))


def tokens(outputs: Any) -> list[list[int]]:
    return outputs.top_tokens.tolist()


def edited_logits(edits: Any) -> list[float]:
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad(), hs.edit(known_model(), edits, 3):
        return known_model().hf(ids).logits.flatten().tolist()


@pytest.mark.parametrize("name", MEANT)
def test_one_alone_is_taken_as_it_is_meant(name: str) -> None:
    short, full = MEANT[name]
    assert short() == full()


NEAR: Mapping[str, tuple[Callable[[], Any], str]] = {
    "a keyword": (lambda: back_patch(layersteps=2), r"'layersteps'; did you mean layer_step\?$"),
    "a keyword of documents": (lambda: permute(orderings=["forward"]), r"did you mean order"),
    "a keyword that is near nothing": (lambda: back_patch(zzz=2), r"'zzz'$"),
    "a method of a result": (lambda: graded().incorect(), "did you mean incorrect"),
    "a field of a result": (lambda: graded().frames, "did you mean frame"),
    "a method of queries": (lambda: known_queries().with_fewshot(3), "did you mean with_few_shot"),
    "a method of questions": (lambda: documents().with_fewshot(3), "did you mean with_few_shot"),
    "an attribute that is near nothing": (lambda: graded().zzz, r"no attribute 'zzz'$"),
}
"""Names that are not there, and what is said of them."""


@pytest.mark.parametrize("name", NEAR)
def test_near_names_are_suggested(name: str) -> None:
    call, said = NEAR[name]
    with pytest.raises((TypeError, AttributeError), match=said):
        call()


@pytest.mark.parametrize("make", [graded, known_queries, documents])
def test_what_suggests_names_is_probed_and_copied_as_before(make: Callable[[], Any]) -> None:
    made = make()
    assert not hasattr(made, "_repr_jpeg_")
    assert not hasattr(made, "_ipython_canary_method_should_not_exist_")
    assert not hasattr(made, "__array__")
    for again in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert repr(again) == repr(made)
    assert not hasattr(object.__new__(type(made)), "no_such_name")


def test_a_property_that_fails_says_why() -> None:
    strange: Any = {"query": ["1"]}
    with pytest.raises(AttributeError, match="'list' object has no attribute 'nunique'"):
        print(dataclasses.replace(graded(), details=strange).n_queries)
