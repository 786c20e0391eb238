"""Tests of masked_paths(): each cell beside brute-force attention, controls, and tables by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import loaded, short_name
from first_document import FORM, first_model, first_questions
from plain import plain_output

import hopscope as hs
from hopscope.documents.question_set import Document, Hop, MultiDocQuestion, QuestionSet
from hopscope.documents.templates import Template
from hopscope.engine.edits import Knockout
from hopscope.errors import HopscopeError, QueryError, UsageError
from hopscope.experiments.documents import masked_paths as paths_module
from hopscope.experiments.documents.masked_paths import MaskedPaths, masked_paths
from hopscope.models.language_model import LanguageModel
from hopscope.statistics import share_difference, wilson

COLUMNS = ["query", "edge", "control", "layer", "generation", "changed", "lost"]
COLUMNS += ["answer_logprob", "answer_change"]
N_TOKENS = 2
FAMILIES = ("tiny-random-llama", "tiny-random-gpt2", "tiny-random-gemma2")
FORM_SHORT = Template("", "{text}\n", "Question: {question}\nAnswer:")
ASKED = MultiDocQuestion(
    "short",
    "capital of Imagine?",
    "Paris",
    (
        Document("", "the capital of the country of Italy"),
        Document("", "Paris is the capital"),
        Document("", "Tokyo"),
        Document("", "the country is France"),
    ),
    (Hop("", "France", 3), Hop("", "Paris", 1)),
    aliases=("Rome",),
)
FORWARD = (0, 3, 2, 1)
EDGES = ("gold 2->gold 1", "question->gold 2", "last->gold 1")


def blocked(model: LanguageModel, *args: Any, **more: Any) -> MaskedPaths:
    options = {"template": FORM_SHORT, "max_new_tokens": N_TOKENS, "progress": False, **more}
    return masked_paths(model, QuestionSet((ASKED,)), *args, **options)


@cache
def parts_of(name: str) -> tuple[list[int], dict[str, list[int]]]:
    """The tokens of the prompt in the order forward, and those of its parts."""
    parts = [f"{ASKED.documents[index].text}\n" for index in FORWARD]
    parts.append(f"Question: {ASKED.question}\nAnswer:")
    row = loaded(name).tokenizer("".join(parts), return_offsets_mapping=True)
    ends = np.cumsum([len(part) for part in parts])
    number = [int((ends <= start).sum()) for start, _ in row["offset_mapping"]]
    names = ["document 0", "gold 1", "document 2", "gold 2", "question"]
    spans = {
        name: [place for place, each in enumerate(number) if each == index]
        for index, name in enumerate(names)
    }
    return row["input_ids"], {**spans, "last": [len(number) - 1]}


def control_of(name: str, edge: str) -> str:
    """The distractor before the query whose length is nearest to that of the key."""
    _, spans = parts_of(name)
    wanted = len(spans[edge.split("->")[1]])
    return min(("document 0", "document 2"), key=lambda each: abs(len(spans[each]) - wanted))


@pytest.mark.parametrize("name", FAMILIES, ids=short_name)
def test_every_cell_is_a_forward_of_its_own_without_the_edge(name: str) -> None:
    model = loaded(name)
    ids, spans = parts_of(name)
    answers = model.answer_tokens(ASKED.names)
    clean = plain_output(model.hf, ids, [], N_TOKENS, model.end_tokens)
    frame = blocked(model, EDGES, window=1, layers=[3]).frame
    assert list(frame.columns) == COLUMNS
    assert len(frame) == len(EDGES) * 2
    for row in frame.itertuples():
        query, key = row.edge.split("->")
        key = control_of(name, row.edge) if row.control == "distractor" else key
        edit = Knockout(range(2, 4), tuple(spans[query]), tuple(spans[key]))
        expected = plain_output(model.hf, ids, [edit], N_TOKENS, model.end_tokens)
        logprob = expected.logprob(answers)
        assert row.answer_logprob == pytest.approx(logprob, abs=1e-4), row
        assert row.answer_change == pytest.approx(logprob - clean.logprob(answers), abs=2e-4)
        said, before = (
            model.tokenizer.decode(each.tokens, skip_special_tokens=True).split("\n")[0].strip()
            for each in (expected, clean)
        )
        assert (row.generation, row.changed) == (said, said != before), row
    assert frame["answer_logprob"].round(4).nunique() > len(frame) / 2


def test_windows_are_as_wide_as_asked_and_end_with_the_model(llama: LanguageModel) -> None:
    ids, spans = parts_of("tiny-random-llama")
    answers = llama.answer_tokens(ASKED.names)
    for window in (0, 5):
        frame = blocked(llama, ["question->gold 2"], [], window=window).frame
        assert list(frame["layer"]) == [0, 1, 2, 3]
        assert set(frame["control"]) == {"none"}
        found = frame["answer_logprob"].to_list()
        for layer in (1, 2):
            layers = [layer] if window == 0 else range(4)
            edit = Knockout(layers, tuple(spans["question"]), tuple(spans["gold 2"]))
            expected = plain_output(llama.hf, ids, [edit]).logprob(answers)
            assert found[layer] == pytest.approx(expected, abs=1e-4)
        assert len(set(np.round(found, 4))) == (4 if window == 0 else 1)


def test_the_control_is_the_distractor_of_the_nearest_length() -> None:
    """Both are used: gold 2 is about as long as the longer one, gold 1 made as short as Tokyo."""
    name = "tiny-random-llama"
    _, spans = parts_of(name)
    assert len(spans["document 0"]) > len(spans["gold 2"]) > len(spans["document 2"])
    frames = {}
    for text in ("Kyoto", "the capital of the country of Japan"):
        documents = (*ASKED.documents[:3], Document("", text))
        asked = QuestionSet((replace(ASKED, documents=documents),))
        options = {"template": FORM_SHORT, "window": 9, "layers": [0], "progress": False}
        frames[text] = masked_paths(
            loaded(name),
            asked,
            ["question->gold 1", "question->document 0", "question->document 2"],
            max_new_tokens=1,
            **options,
        ).frame.set_index(["edge", "control"])["answer_logprob"]
    for text, nearest in (("Kyoto", 2), ("the capital of the country of Japan", 0)):
        table = frames[text]
        control = table["question->gold 1", "distractor"]
        assert control == pytest.approx(table[f"question->document {nearest}", "none"], abs=1e-5)
        other = table[f"question->document {2 - nearest}", "none"]
        assert abs(control - other) > 1e-4


def test_a_control_comes_before_the_query_or_is_left_out(llama: LanguageModel) -> None:
    """In this order only document 2 stands before gold 2, and nothing before gold 1."""
    edges = ["gold 2->gold 1", "question->gold 1", "gold 1->gold 1"]
    frame = blocked(llama, edges, order=[3, 2, 1, 0], layers=[1]).frame
    found = frame.groupby("edge", sort=False)["control"].agg(list).to_dict()
    assert found == {
        "gold 2->gold 1": ["none", "distractor"],
        "question->gold 1": ["none", "distractor"],
        "gold 1->gold 1": ["none"],
    }
    before = blocked(llama, ["gold 2->document 2"], [], order=[3, 2, 1, 0], layers=[1]).frame
    control = frame[(frame["edge"] == edges[0]) & (frame["control"] == "distractor")]
    np.testing.assert_allclose(control["answer_logprob"], before["answer_logprob"], atol=1e-5)


def test_the_known_model_needs_one_edge_in_one_block() -> None:
    """Backward: the answer's document, then the bridge's, then a distractor."""
    result = masked_paths(
        first_model(),
        first_questions(),
        ["question->gold 2", "question->gold 1", "gold 1->gold 2"],
        order="backward",
        window=0,
        template=FORM,
        progress=False,
    )
    assert result.details["contained"].all()
    frame = result.frame
    lost = frame.groupby(["edge", "control", "layer"])["lost"].mean().to_dict()
    assert lost == {
        ("question->gold 2", "none", 0): 0,
        ("question->gold 2", "none", 1): 1,  # the name is taken over here
        ("question->gold 2", "distractor", 0): 0,
        ("question->gold 2", "distractor", 1): 0,
        ("question->gold 1", "none", 0): 0,
        ("question->gold 1", "none", 1): 0,
        ("question->gold 1", "distractor", 0): 0,
        ("question->gold 1", "distractor", 1): 0,
        ("gold 1->gold 2", "none", 0): 1,  # the second name takes itself for the first
        ("gold 1->gold 2", "none", 1): 0,
    }
    assert list(frame["changed"]) == list(frame["lost"] == 1)
    dead = frame[frame["changed"]]
    assert set(dead["generation"]) == {"Metro"}
    assert (dead["answer_change"] < -0.2).all()
    assert (frame[~frame["changed"]]["answer_change"].abs() < 1e-3).all()
    gain = result.above_chance("lost").set_index(["edge", "layer"])["difference"].to_dict()
    assert gain == {
        ("question->gold 2", 0): 0,
        ("question->gold 2", 1): 1,
        ("question->gold 1", 0): 0,
        ("question->gold 1", 1): 0,
    }


def test_what_was_wrong_cannot_be_lost() -> None:
    result = masked_paths(
        first_model(),
        first_questions(),
        ["question->gold 1"],
        order="forward",
        window=0,
        template=FORM,
        progress=False,
    )
    assert not result.details["contained"].any()
    assert result.frame["lost"].isna().all()
    assert result.frame["changed"].any()
    assert result.effect("lost").empty


@pytest.mark.parametrize(
    "edge", ["gold 1->gold 2", "gold 1->question", "instruction->gold 1", "gold 2->answer"]
)
def test_an_edge_that_looks_ahead_or_at_nothing_is_told(llama: LanguageModel, edge: str) -> None:
    with pytest.raises(QueryError, match=f"the edge '{edge}' looks ahead or at nothing in the ord"):
        blocked(llama, [edge])


def test_an_edge_may_look_back_in_another_order(llama: LanguageModel) -> None:
    frame = blocked(llama, ["gold 1->gold 2"], order="backward", layers=[0]).frame
    assert set(frame["edge"]) == {"gold 1->gold 2"}


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no edge": ({"edges": []}, r"give a list of edges such as .*not \[\]"),
    "no arrow": (
        {"edges": ["question>gold 1"]},
        "'question>gold 1' is no edge: write 'query->key'",
    ),
    "window": ({"window": -1}, "window must be 0 or more, not -1"),
    "control": ({"controls": ["random"]}, "unknown control 'random'"),
    "layer": ({"layers": [4]}, "layers are numbers from 0 to 3; got 4"),
    "order": ({"order": "sideways"}, "unknown order 'sideways'"),
    "span": ({"edges": ["question->bridge"]}, "unknown span 'bridge'"),
    "gold": ({"edges": ["question->gold 3"]}, "no gold 3: the question has gold documents 1 to 2"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(llama: LanguageModel, name: str) -> None:
    arguments, message = MISTAKES[name]
    with pytest.raises(HopscopeError, match=message):
        blocked(llama, **arguments)


def made() -> MaskedPaths:
    rows = [
        ("a", "e", "none", 0, "x", True, 1.0, -2.0, -1.5),
        ("b", "e", "none", 0, "x", True, np.nan, -2.0, -0.5),
        ("c", "e", "none", 0, "x", False, 0.0, -2.0, -1.0),
        ("a", "e", "distractor", 0, "x", False, 0.0, -1.0, -0.5),
        ("b", "e", "distractor", 0, "x", True, np.nan, -1.0, 0.5),
        ("a", "e", "none", 1, "x", False, 0.0, -1.0, 0.0),
        ("a", "f", "none", 1, "x", True, 1.0, -1.0, 3.0),
    ]
    return MaskedPaths(pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame({"query": ["a", "b"]}))


def test_the_effect_is_the_mean_over_questions() -> None:
    table = made().effect()
    assert list(table.columns) == ["edge", "control", "layer", "n", "effect", "low", "high"]
    found = table.set_index(["edge", "control", "layer"])[["n", "effect"]]
    assert found.loc[("e", "none", 0)].to_list() == pytest.approx([3, 2 / 3])
    assert found.loc[("e", "distractor", 0)].to_list() == pytest.approx([2, 1 / 2])
    assert found.loc[("f", "none", 1)].to_list() == [1, 1]
    lost = made().effect("lost").set_index(["edge", "control", "layer"])[["n", "effect"]]
    assert lost.loc[("e", "none", 0)].to_list() == [2, 0.5]  # b was wrong before
    assert lost.loc[("e", "distractor", 0)].to_list() == [1, 0]
    row = made().effect("lost").iloc[0]
    assert tuple(row[["effect", "low", "high"]]) == wilson(1, 2)
    nats = made().effect("answer_change").set_index(["edge", "control", "layer"])["effect"]
    assert nats["e", "none", 0] == pytest.approx(-1.0)
    with pytest.raises(UsageError, match="unknown measure 'rank': choose one of changed, lost"):
        made().effect("rank")


def test_above_chance_is_paired_with_the_distractor() -> None:
    table = made().above_chance()
    assert list(table.columns) == ["edge", "layer", "n", "difference", "low", "high"]
    (row,) = table.to_dict("records")  # c, layer 1 and edge f have no control
    assert (row["edge"], row["layer"], row["n"]) == ("e", 0, 2)
    assert (row["difference"], row["low"], row["high"]) == share_difference(1, 0, 2)
    (nats,) = made().above_chance("answer_change").to_dict("records")
    assert nats["difference"] == pytest.approx(-1.0)
    alone = made().frame
    alone = alone[alone["control"] == "none"]
    assert MaskedPaths(alone, made().details).above_chance().empty


def test_it_is_saved_and_comes_together_of_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = ["question->gold 2", "question->gold 1"]
    options: dict[str, Any] = {"order": "backward", "template": FORM, "progress": False}
    whole = masked_paths(first_model(), first_questions(), edges, **options)
    monkeypatch.setattr(paths_module, "PER_PART", 1)
    for shard in ((2, 2), (1, 2)):
        other = masked_paths(
            first_model(), first_questions(), edges, out=tmp_path / "run", shard=shard, **options
        )
    for result in (other, hs.load_result(tmp_path / "run")):
        assert isinstance(result, MaskedPaths)
        pd.testing.assert_frame_equal(result.frame, whole.frame, atol=1e-5)
        pd.testing.assert_frame_equal(result.details, whole.details)
    assert whole.run["settings"]["edges"] == edges
    assert whole.run["settings"]["window"] == 3
