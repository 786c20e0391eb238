"""Tests of permute_documents(): answers beside plain ones, a known model, and tables by hand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import comb, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded, short_name
from first_document import FORM, first_model, first_questions
from multidoc import OTHER, QUESTION, SHORT, by_brute_force, encode_by
from plain import generated
from torch import Tensor

import hopscope as hs
from hopscope.documents.lay_out import lay_out
from hopscope.documents.layout import Layout
from hopscope.documents.question_set import Document, MultiDocQuestion, QuestionSet
from hopscope.documents.templates import Template
from hopscope.errors import HopscopeError, QueryError, ResultError, UsageError
from hopscope.experiments.documents import permutation
from hopscope.experiments.documents.permutation import Permutation, permute_documents
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import build_tiny
from hopscope.prompting.document_prompts import DocumentPrompts

COLUMNS = ["query", "order", "mask", "permuting", "generation"]
COLUMNS += ["contained", "matched", "exact_match", "f1", "bridge"]
N_TOKENS = 3
TITLES = ("Nairobi", "Ottawa", "Oxford")


def third() -> MultiDocQuestion:
    """A question whose gold documents stand in the order of the chain already."""
    documents = tuple(Document(title, f"{title} is the city of Titanic.") for title in TITLES)
    hops = (replace(OTHER.hops[0], document=0), replace(OTHER.hops[1], document=2))
    return MultiDocQuestion("third", "Who was born in Oxford?", "Nobody", documents, hops)


QUESTIONS = QuestionSet((QUESTION, OTHER, third()), "made")


def permuted(model: LanguageModel, questions: QuestionSet, *args: Any, **more: Any) -> Permutation:
    options = {"template": SHORT, "max_new_tokens": N_TOKENS, "progress": False, **more}
    return permute_documents(model, questions, *args, **options)


def shown(question: MultiDocQuestion, order: Sequence[int], label: str = "position") -> list[str]:
    """The parts of the prompt of `SHORT`."""
    parts = ["Answer.\n"]
    for place, index in enumerate(order, start=1):
        number = {"position": f" [{place}]", "fixed": f" [{index + 1}]", "none": ""}[label]
        document = question.documents[index]
        parts.append(f"Document{number} {document.title}: {document.text}\n")
    return [*parts, f"Question: {question.question}\nAnswer:"]


def answer_text(model: LanguageModel, ids: Sequence[int]) -> str:
    """The first line of what transformers' own `generate` says."""
    row = torch.tensor([list(ids)])
    (tokens,) = generated(model.hf, row, torch.ones_like(row), N_TOKENS, model.end_tokens)
    return model.tokenizer.decode(tokens, skip_special_tokens=True).split("\n")[0].strip()


def said_of(model: LanguageModel, parts: Sequence[str]) -> str:
    return answer_text(model, model.tokenizer("".join(parts))["input_ids"])


FORWARD = {"tower": (0, 3, 2, 1), "song": (0, 1), "third": (0, 1, 2)}
BACKWARD = {"tower": (0, 1, 2, 3), "song": (1, 0), "third": (2, 1, 0)}


def test_answers_are_those_to_the_permuted_text(tiny_model: LanguageModel) -> None:
    frame = permuted(tiny_model, QUESTIONS, ["original", "forward", "backward"]).frame
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 3 * 3
    for question in QUESTIONS:
        orders = {
            "original": range(len(question.documents)),
            "forward": FORWARD[question.id],
            "backward": BACKWARD[question.id],
        }
        for name, order in orders.items():
            rows = frame[(frame["query"] == question.id) & (frame["order"] == name)]
            assert list(rows["generation"]) == [said_of(tiny_model, shown(question, order))]
    assert frame["generation"].nunique() > 2


@pytest.mark.parametrize("label", ["position", "fixed", "none"])
def test_labels_are_places_or_original_numbers_or_nothing(llama: LanguageModel, label: str) -> None:
    frame = permuted(llama, QUESTIONS[:1], [[3, 0, 1]], label=label).frame
    assert list(frame["order"]) == ["3-0-1"]
    parts = shown(QUESTION, (3, 0, 1), label)
    assert list(frame["generation"]) == [said_of(llama, parts)]


def test_demonstrations_stand_in_front(llama: LanguageModel) -> None:
    asked = replace(QUESTIONS[:1], pool=(QUESTION, OTHER)).with_few_shot(1)
    frame = permuted(llama, asked, ["forward"]).frame
    parts = shown(QUESTION, FORWARD["tower"])
    before = "".join([*shown(OTHER, (0, 1))[1:], " Yoko Ono\n\n"])
    assert list(frame["generation"]) == [said_of(llama, [parts[0], before, *parts[1:]])]


def in_parts(model: LanguageModel, parts: Sequence[str]) -> tuple[list[int], Tensor]:
    """The tokens of a prompt, and for each the number of the part that it begins in."""
    row = model.tokenizer("".join(parts), return_offsets_mapping=True)
    ends = np.cumsum([len(part) for part in parts])
    numbers = [int((ends <= start).sum()) for start, _ in row["offset_mapping"]]
    return row["input_ids"], torch.tensor(numbers)


def seen_under(mask: str, part: Tensor, rank: Tensor) -> Tensor:
    """Who sees whom, shape (1, query, key)."""
    query, key = part[:, None], part[None, :]
    before = rank[:, None] >= rank[None, :]
    in_document = (query > 0) & (query < part.max())
    seen = {
        "causal": before,
        "prefix_bidirectional": torch.ones_like(before),
        "document_bidirectional": before | ((query == key) & in_document),
        "document_block": before & (~in_document | (query == key)),
        "document_block_instruction": before & (~in_document | (query == key) | (key == 0)),
    }
    return seen[mask][None]


def plain_layout(model: LanguageModel, ids: Sequence[int], positions: Sequence[int]) -> Layout:
    """What `by_brute_force` reads of a layout: tokens and position ids."""
    made = lay_out(encode_by(model), QUESTION, template=SHORT)
    return replace(made, ids=tuple(ids), positions=tuple(positions))


def masked_answer(
    model: LanguageModel, question: MultiDocQuestion, order: Sequence[int], mask: str, way: str
) -> str:
    """The answer when the order changes the text, the positions, the ranks, or the last two."""
    original = range(len(question.documents))
    ids, part = in_parts(model, shown(question, order if way == "text" else original))
    in_row = torch.arange(len(ids))
    if way == "text":
        moved = in_row
    else:
        new_place = {0: 0, len(original) + 1: len(original) + 1}
        new_place |= {each + 1: place + 1 for place, each in enumerate(order)}
        keys = torch.tensor([new_place[int(each)] for each in part])
        moved = torch.argsort(torch.argsort(keys, stable=True), stable=True)
    rank = moved if "mask" in way else in_row
    positions = moved if "positions" in way else in_row
    seen = [seen_under(mask, part, rank)] * model.n_layers
    layout = plain_layout(model, ids, positions.tolist())
    tokens = by_brute_force(model, layout, seen, N_TOKENS).tokens
    return model.tokenizer.decode(tokens, skip_special_tokens=True).split("\n")[0].strip()


MASKS = (
    "causal",
    "prefix_bidirectional",
    "document_bidirectional",
    "document_block",
    "document_block_instruction",
)
WAYS = ("text", "positions", "mask", "positions+mask")
FAMILIES = ("tiny-random-llama", "tiny-random-gpt2", "tiny-random-gemma2")


@pytest.mark.parametrize("name", FAMILIES, ids=short_name)
def test_every_mask_and_way_answers_as_attention_written_out(name: str) -> None:
    model = loaded(name)
    frame = permuted(model, QUESTIONS[:1], ["original", "forward"], MASKS, WAYS).frame
    assert len(frame) == 2 * len(MASKS) * len(WAYS)
    assert not frame.duplicated(COLUMNS[:4]).any()
    for row in frame.itertuples():
        order = {"original": (0, 1, 2, 3), "forward": FORWARD["tower"]}[row.order]
        expected = masked_answer(model, QUESTION, order, row.mask, row.permuting)
        assert row.generation == expected, row
    assert frame["generation"].nunique() > 5


def test_the_metrics_are_of_the_answer_and_the_bridge_of_the_first_hop(
    llama: LanguageModel,
) -> None:
    forward, backward = (
        said_of(llama, shown(QUESTION, each["tower"])) for each in (FORWARD, BACKWARD)
    )
    assert forward != backward
    first, second = QUESTION.hops
    asked = replace(QUESTION, answer=forward, hops=(replace(first, answer=backward), second))
    frame = permuted(llama, QuestionSet((asked,)), ["forward", "backward"]).frame
    for metric in ("contained", "exact_match"):
        assert list(frame[metric]) == [True, False]
    assert list(frame["bridge"]) == [False, True]
    named = replace(asked, answer="somebody", aliases=(backward,))
    frame = permuted(llama, QuestionSet((named,)), ["forward", "backward"]).frame
    assert list(frame["contained"]) == [False, True]
    unknown = replace(asked, hops=(replace(first, answer=""), second))
    frame = permuted(llama, QuestionSet((unknown,)), ["forward", "backward"]).frame
    assert list(frame["bridge"]) == [False, False]


def test_the_order_decides_what_the_known_model_answers() -> None:
    result = permute_documents(
        first_model(),
        first_questions(),
        masks=["causal", "document_block"],
        template=FORM,
        progress=False,
    )
    table = result.accuracy().set_index(["mask", "order"])["accuracy"]
    assert table["causal"].to_dict() == {"original": 0, "forward": 0, "backward": 1}
    assert table["document_block"].to_dict() == {"original": 0, "forward": 0, "backward": 0}
    bridges = result.frame.groupby(["mask", "order"])["bridge"].mean()
    assert bridges["causal"].to_dict() == {"original": 1, "forward": 1, "backward": 0}
    blind = result.frame[result.frame["mask"] == "document_block"]
    assert set(blind["generation"]) == {"Metro"}
    best = result.compare("forward").set_index(["mask", "order"]).loc[("causal", "backward")]
    assert (best["n"], best["better"], best["worse"]) == (3, 3, 0)


def test_ranks_alone_decide_what_the_known_model_answers() -> None:
    """It knows no positions: `mask` is as good as `text`, and `positions` change nothing."""
    result = permute_documents(
        first_model(),
        first_questions(),
        ["backward"],
        permuting=WAYS,
        template=FORM,
        progress=False,
    )
    table = result.accuracy().set_index("permuting")["accuracy"]
    assert table.to_dict() == {"text": 1, "positions": 0, "mask": 1, "positions+mask": 1}


def test_the_template_suits_the_set(llama: LanguageModel) -> None:
    short = QUESTIONS[1:2]
    assert permuted(llama, short, template=None).run["settings"]["template"] == "answer_only"
    few = replace(short, pool=(OTHER, QUESTION)).with_few_shot(1)
    assert permuted(llama, few, template=None).run["settings"]["template"] == "plain"
    assert permuted(llama, short, template="plain").run["settings"]["template"] == "plain"


def test_a_chat_template_is_put_around_the_prompt() -> None:
    hf, tokenizer = build_tiny("tiny-random-gemma2")  # adds <bos> to other texts
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} [end]{% endfor %}"
        "{% if add_generation_prompt %}[model]{% endif %}"
    )
    model = load_model(hf, device="cpu", tokenizer=tokenizer, name="chat")
    form = replace(SHORT, chat=True)
    frame = permuted(model, QUESTIONS[:1], ["forward"], template=form).frame
    text = "".join(["[user] ", *shown(QUESTION, FORWARD["tower"]), " [end][model]"])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(frame["generation"]) == [answer_text(model, ids)]


@pytest.mark.parametrize(
    ("one_line", "text", "answer"),
    [
        (True, " Paris\nThe answer is: Rome", "Paris"),
        (False, "The Tower. The answer is: Rome. Answer: Paris\n", "Paris"),
        (False, "It is Paris", "It is Paris"),
        (False, "So the ANSWER IS Paris", "Paris"),
    ],
)
def test_what_counts_as_the_answer(
    llama: LanguageModel, one_line: bool, text: str, answer: str
) -> None:
    form = Template("", "{text}", "{question}", one_line=one_line)
    tokens = llama.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert DocumentPrompts(llama, QUESTIONS, form).answer(tokens) == answer


def test_a_template_of_several_lines_is_not_stopped_at_the_first(llama: LanguageModel) -> None:
    form = replace(SHORT, one_line=False, max_new_tokens=20)
    frame = permuted(llama, QUESTIONS[:1], ["forward"], template=form, max_new_tokens=None).frame
    row = torch.tensor([llama.tokenizer("".join(shown(QUESTION, FORWARD["tower"])))["input_ids"]])
    (tokens,) = generated(llama.hf, row, torch.ones_like(row), 20, llama.end_tokens)
    assert list(frame["generation"]) == [
        llama.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    ]


def crowded(n_words: int) -> MultiDocQuestion:
    """The question with two distractors more, of so many words each."""
    long = Document("Ottawa", " ".join(["city"] * n_words))
    return replace(QUESTION, documents=(*QUESTION.documents, replace(long, title="Oxford"), long))


def test_distractors_that_do_not_fit_are_dropped_the_last_first(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    long = crowded(65)
    with caplog.at_level(logging.WARNING):
        result = permuted(llama, QuestionSet((long, OTHER)), ["forward"])
    assert "1 of 6 documents are dropped, since tiny-random-llama reads 256 tokens: Ottawa" in (
        caplog.text
    )
    details = result.details.set_index("query")
    assert details["dropped"].to_dict() == {"tower": "Ottawa", "song": ""}
    assert details["documents"].to_dict() == {"tower": 5, "song": 2}
    parts = shown(long, (*FORWARD["tower"], 4))
    assert result.frame["generation"][0] == said_of(llama, parts)


def test_a_question_that_just_fits_keeps_all_its_documents(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    n = len(llama.tokenizer("".join(shown(QUESTION, range(4))))["input_ids"])
    prompts = DocumentPrompts(llama, QUESTIONS, SHORT, max_new_tokens=256 - n)
    assert prompts.fitted_question(QUESTION).question == QUESTION
    assert prompts.asked(QUESTION) == prompts.fitted_question(QUESTION), "notebooks call it so"
    assert not caplog.text
    less = replace(prompts, max_new_tokens=256 - n + 1).fitted_question(QUESTION)
    assert less.dropped == ("Rome",)
    assert less.question == QUESTION.without([2])


def test_gold_documents_that_do_not_fit_are_told(llama: LanguageModel) -> None:
    tower = Document("the Tower", "city " * 300)
    long = replace(QUESTION, documents=(*QUESTION.documents[:3], tower))
    with pytest.raises(QueryError, match="'tower' does not fit into the 256 tokens of tiny-random"):
        permuted(llama, QuestionSet((long,)))


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "order": ({"orders": ["sideways"]}, "unknown order 'sideways'"),
    "gap": ({"orders": ["forward_3"]}, "needs 3 distractors and has 2"),
    "document": ({"orders": [[0, 9]]}, "there is no document 9"),
    "no order": ({"orders": []}, "give a list of orders"),
    "mask": ({"masks": ["diagonal"]}, "unknown mask 'diagonal': choose one of causal"),
    "no mask": ({"masks": []}, "give at least one mask"),
    "way": ({"permuting": ["words"]}, "unknown way 'words'"),
    "template": ({"template": "poem"}, "unknown template 'poem'"),
    "label": ({"label": "roman"}, "unknown label 'roman'"),
    "chat": ({"template": replace(SHORT, chat=True)}, "has no chat template: .*take the template"),
    "left out": ({"orders": ["gold"], "permuting": ["positions"]}, "cannot leave documents out"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(llama: LanguageModel, name: str) -> None:
    arguments, message = MISTAKES[name]
    with pytest.raises(HopscopeError, match=message):
        permuted(llama, QUESTIONS[:1], **arguments)


def test_an_impossible_order_is_told_before_anything_runs(
    llama: LanguageModel, tmp_path: Path
) -> None:
    """The last question has too few distractors."""
    with pytest.raises(QueryError, match="'song' cannot be put in the order 'forward_1'"):
        permuted(llama, QUESTIONS[:2], ["original", "forward_1"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_repeated_orders_and_masks_are_asked_once(llama: LanguageModel) -> None:
    twice = permuted(llama, QUESTIONS[:1], ["forward", "forward"], ["causal"] * 2, ["text"] * 2)
    assert len(twice.frame) == 1
    assert len(permuted(llama, QUESTIONS[:1], ["forward"], "causal").frame) == 1


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "PER_PART", 1)


@cache
def whole() -> Permutation:
    return permuted(loaded("tiny-random-llama"), QUESTIONS, ["forward", "shuffle_0"])


def assert_whole(result: hs.results.Result) -> None:
    assert isinstance(result, Permutation)
    pd.testing.assert_frame_equal(result.frame, whole().frame)
    pd.testing.assert_frame_equal(result.details, whole().details)


@pytest.mark.usefixtures("one_by_one")
def test_a_stopped_run_goes_on_to_the_same_result(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, read = iter(range(9)), permutation.DocumentPrompts.read

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return read(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(permutation.DocumentPrompts, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            permuted(llama, QUESTIONS, ["forward", "shuffle_0"], out=tmp_path / "run")
    assert len(list((tmp_path / "run").glob("frame-*.parquet"))) == 2
    assert_whole(permuted(llama, QUESTIONS, ["forward", "shuffle_0"], out=tmp_path / "run"))
    assert next(calls) == 3


@pytest.mark.usefixtures("one_by_one")
def test_shards_come_together(llama: LanguageModel, tmp_path: Path) -> None:
    for shard in ((2, 2), (1, 2)):
        result = permuted(
            llama, QUESTIONS, ["forward", "shuffle_0"], out=tmp_path / "run", shard=shard
        )
    assert_whole(result)
    assert_whole(hs.load_result(tmp_path / "run"))


def test_a_result_is_saved_and_read_again(tmp_path: Path) -> None:
    whole().save(tmp_path / "saved")
    read = hs.load_result(tmp_path / "saved")
    assert_whole(read)
    assert read.run["settings"] == whole().run["settings"]
    assert read.run["settings"]["orders"] == ["forward", "shuffle_0"]
    assert read.run["settings"]["masks"] == ["causal"]


def test_another_order_needs_another_folder(llama: LanguageModel, tmp_path: Path) -> None:
    permuted(llama, QUESTIONS[:1], ["forward"], out=tmp_path / "run")
    with pytest.raises(ResultError, match="holds another run: its settings"):
        permuted(llama, QUESTIONS[:1], ["backward"], out=tmp_path / "run")


def test_the_seed_draws_the_shuffles(llama: LanguageModel) -> None:
    said = [
        list(permuted(llama, QUESTIONS[:1], ["shuffle_0", "shuffle_1"], seed=seed).frame.generation)
        for seed in (0, 0, 1)
    ]
    assert said[0] == said[1] != said[2]


RIGHT = {
    ("forward", "causal"): [1, 1, 1, 0, 0, 1, 1, 0],
    ("backward", "causal"): [0, 0, 1, 0, 1, 0, 0, 0],
    ("forward", "document_block"): [0, 0, 0, 0, 0, 0, 0, 0],
    ("backward", "document_block"): [0, 1, 0, 0, 0, 0, 0, 0],
}


def made() -> Permutation:
    rows = [
        (f"q{number}", order, mask, "text", bool(right), bool(right), False, right / 2)
        for number in range(8)
        for (order, mask), column in RIGHT.items()
        for right in column[number : number + 1]
    ]
    columns = ["query", "order", "mask", "permuting", "contained", "matched", "exact_match", "f1"]
    frame = pd.DataFrame(rows, columns=columns)
    return Permutation(frame, pd.DataFrame({"query": [f"q{number}" for number in range(8)]}))


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    p = right / n
    middle, half = p + z**2 / (2 * n), z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


def test_accuracy_has_wilsons_intervals() -> None:
    table = made().accuracy()
    names = ["order", "mask", "permuting", "n", "accuracy", "low", "high"]
    assert list(table.columns) == names
    assert list(zip(table["order"], table["mask"], strict=True)) == list(RIGHT)
    for row, column in zip(table.itertuples(), RIGHT.values(), strict=True):
        assert (row.n, row.accuracy) == (8, pytest.approx(sum(column) / 8))
        assert (row.low, row.high) == pytest.approx(wilson(sum(column), 8), abs=1e-6)
    assert set(made().accuracy("exact_match")["accuracy"]) == {0.0}


def test_the_f1_has_a_bootstrap_over_questions() -> None:
    table = made().accuracy("f1").set_index(["order", "mask"])
    assert table.loc[("forward", "causal"), "accuracy"] == pytest.approx(5 / 16)
    low, high = table.loc[("forward", "causal"), ["low", "high"]]
    assert 0 < low < 5 / 16 < high < 0.5
    assert table.loc[("forward", "document_block"), "accuracy"] == 0
    assert table.loc[("forward", "document_block"), ["low", "high"]].isna().all(), "all are equal"
    pd.testing.assert_frame_equal(made().accuracy("f1", 3), made().accuracy("f1", 3))


def mcnemar(better: int, worse: int) -> float:
    """Twice the smaller tail of a fair coin."""
    n = better + worse
    tail = sum(comb(n, k) for k in range(min(better, worse) + 1)) / 2**n
    return min(1.0, 2 * tail)


def test_orders_are_compared_on_the_same_questions() -> None:
    table = made().compare()
    assert list(table.columns) == [
        *("order", "mask", "permuting", "base", "n", "difference", "low", "high"),
        *("better", "worse", "p", "p_holm"),
    ]
    assert set(table["base"]) == {"forward"}
    causal, block = table.to_dict("records")
    assert (causal["order"], causal["mask"], causal["n"]) == ("backward", "causal", 8)
    assert (causal["better"], causal["worse"]) == (1, 4)
    assert causal["difference"] == pytest.approx(-3 / 8)
    assert causal["p"] == pytest.approx(mcnemar(1, 4)) == pytest.approx(0.375)
    assert causal["low"] < -3 / 8 < causal["high"]
    assert (block["better"], block["worse"], block["p"]) == (1, 0, 1.0)
    turned = made().compare("backward").to_dict("records")[0]
    assert (turned["order"], turned["better"], turned["worse"]) == ("forward", 4, 1)
    assert turned["difference"] == pytest.approx(3 / 8)


def test_masks_are_compared_on_the_same_questions_and_orders() -> None:
    table = made().compare_masks()
    assert list(zip(table["order"], table["mask"], strict=True)) == [
        ("forward", "document_block"),
        ("backward", "document_block"),
    ]
    assert set(table["base"]) == {"causal"}
    assert list(table["better"]) == [0, 1]
    assert list(table["worse"]) == [5, 2]
    assert list(table["p"]) == pytest.approx([mcnemar(0, 5), mcnemar(1, 2)])
    assert list(table["p_holm"]) == pytest.approx([2 * mcnemar(0, 5), mcnemar(1, 2)])
    none = made().compare_masks(metric="exact_match")
    assert set(none["p"]) == {1.0}
    assert set(made().compare_masks("document_block")["mask"]) == {"causal"}


def test_unfinished_questions_are_not_compared() -> None:
    result = made()
    result = replace(result, frame=result.frame.drop(index=0))  # q0, forward, causal
    causal = result.compare("forward").to_dict("records")[0]
    assert (causal["n"], causal["better"], causal["worse"]) == (7, 1, 3)


def test_what_there_is_not_is_told() -> None:
    with pytest.raises(UsageError, match="no order 'gold': the run has forward, back"):
        made().compare("gold")
    with pytest.raises(UsageError, match="no mask 'gold': the run has causal, docu"):
        made().compare_masks("gold")
    with pytest.raises(UsageError, match="unknown metric 'bleu': choose one of contained, matched"):
        made().accuracy("bleu")


def test_answers_that_cannot_be_compared_are_refused(llama: LanguageModel) -> None:
    unknown = replace(QUESTION, answer="")
    with pytest.raises(QueryError, match="'tower' has no answer with which to compare"):
        permuted(llama, QuestionSet((unknown,), "made"))


def test_empty_answers_are_counted_beside_one_that_is_not() -> None:
    where = {"mask": "causal", "permuting": "text"}
    said = {"forward": ["", " ", "Brig", "Alba"], "backward": ["\n", "", "", " "]}
    frame = pd.DataFrame(
        [{"order": each, **where, "generation": text} for each in said for text in said[each]]
    )
    table = hs.Permutation(frame, pd.DataFrame()).answers()
    assert table[["order", "n", "empty", "example"]].to_numpy().tolist() == [
        ["forward", 4, 2, "Brig"],
        ["backward", 4, 4, ""],
    ]
