"""Tests of best_order(): its shuffles and peaks, and what each strategy chooses, by hand."""

from __future__ import annotations

from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded, short_name
from first_document import FORM, first_model, first_questions
from multidoc import OTHER, QUESTION, SHORT
from plain import generated

import hopscope as hs
from hopscope.documents.orders import order_name, shuffles
from hopscope.documents.question_set import QuestionSet
from hopscope.errors import HopscopeError, UsageError
from hopscope.experiments.documents import order_choice
from hopscope.experiments.documents.attention import attention_to_documents
from hopscope.experiments.documents.order_choice import STRATEGIES, OrderChoice, best_order
from hopscope.models.language_model import LanguageModel
from hopscope.statistics import wilson

COLUMNS = ["query", "shuffle", "order", "generation", "peak"]
COLUMNS += ["contained", "matched", "exact_match", "f1"]
N_TOKENS = 3
QUESTIONS = QuestionSet((QUESTION, OTHER), "made")


def chosen(model: LanguageModel, questions: QuestionSet, **more: Any) -> OrderChoice:
    options = {"k": 2, "template": SHORT, "max_new_tokens": N_TOKENS, "progress": False, **more}
    return best_order(model, questions, **options)


def answer_text(model: LanguageModel, order: tuple[int, ...]) -> str:
    """What transformers' own `generate` says to the shuffled text."""
    documents = [QUESTION.documents[index] for index in order]
    lines = [f"Document [{n}] {d.title}: {d.text}\n" for n, d in enumerate(documents, start=1)]
    text = f"Answer.\n{''.join(lines)}Question: {QUESTION.question}\nAnswer:"
    row = torch.tensor([model.tokenizer(text)["input_ids"]])
    (tokens,) = generated(model.hf, row, torch.ones_like(row), N_TOKENS, model.end_tokens)
    return model.tokenizer.decode(tokens, skip_special_tokens=True).split("\n")[0].strip()


@pytest.mark.parametrize("name", ["tiny-random-llama", "tiny-random-gpt2"], ids=short_name)
def test_answers_are_those_to_the_seeded_shuffles(name: str) -> None:
    model = loaded(name)
    frame = chosen(model, QUESTIONS[:1], k=4, seed=3).frame
    assert list(frame.columns) == COLUMNS
    drawn = shuffles(QUESTION, 4, 3)
    assert list(frame["order"]) == [order_name(order) for order in drawn]
    assert list(frame["shuffle"]) == [0, 1, 2, 3]
    assert list(frame["generation"]) == [answer_text(model, order) for order in drawn]
    assert frame["generation"].nunique() > 1


@pytest.mark.parametrize("read", ["answer", "last"])
@pytest.mark.parametrize("mask", ["causal", "document_block"])
def test_peaks_are_those_of_the_attention_to_documents(
    llama: LanguageModel, read: str, mask: str
) -> None:
    frame = chosen(llama, QUESTIONS, mask=mask, read=read).frame
    for question in QUESTIONS:
        here = frame[frame["query"] == question.id]
        attention = attention_to_documents(
            llama,
            QuestionSet((question,)),
            shuffles(question, 2, 0),
            mask,
            read=read,
            template=SHORT,
            max_new_tokens=N_TOKENS,
            progress=False,
        )
        np.testing.assert_allclose(here["peak"], attention.peaks()["peak"], rtol=1e-4)
        assert here["peak"].nunique() == (2 if mask == "causal" else here["peak"].nunique())
        assert list(here["generation"]) == list(attention.details["generation"])


def test_the_known_model_is_right_where_the_answer_comes_first() -> None:
    result = best_order(
        first_model(), first_questions(), k=factorial(3), template=FORM, progress=False
    )
    starts = result.frame["order"].str.startswith("1-")
    assert list(result.frame["contained"]) == list(starts)
    table = result.summary().set_index("strategy")
    assert table["accuracy"].to_dict() == pytest.approx(
        {**table["accuracy"].to_dict(), "mean": 1 / 3, "oracle": 1.0}
    )
    assert table.loc["oracle", "gain"] == pytest.approx(2 / 3)


SHUFFLES = {
    # (generation, peak, contained) of each shuffle
    "peak is right": [("Rome", 1.0, False), ("Paris", 3.0, True), ("Rome", 2.0, False)],
    "majority is right": [("Oslo", 5.0, False), ("paris", 1.0, True), ("Paris.", 1.0, True)],
    "tied votes": [("Paris", 1.0, True), ("Rome", 2.0, False), ("Oslo", 0.5, False)],
    "tied peaks": [("Rome", 1.0, False), ("Paris", 2.0, True), ("Oslo", 2.0, False)],
    "none is right": [("Rome", 1.0, False), ("Rome", 2.0, False), ("Oslo", 3.0, False)],
}


def made(times: int = 1) -> OrderChoice:
    rows = [
        (
            f"{query}{' again' * again}",
            number,
            f"o{number}",
            text,
            peak,
            right,
            right,
            False,
            right / 2,
        )
        for again in range(times)
        for query, answers in SHUFFLES.items()
        for number, (text, peak, right) in enumerate(answers)
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return OrderChoice(frame, frame[["query"]].drop_duplicates())


def test_each_strategy_chooses_among_the_same_shuffles() -> None:
    table = made().choices()
    assert list(table.columns) == list(STRATEGIES)
    assert list(table.index) == list(SHUFFLES)
    assert table["mean"].to_list() == pytest.approx([1 / 3, 2 / 3, 1 / 3, 1 / 3, 0])
    assert table["peak"].to_list() == [1, 0, 0, 1, 0]
    assert table["majority"].to_list() == [0, 1, 1, 0, 0]
    assert table["oracle"].to_list() == [1, 1, 1, 1, 0]
    halves = made().choices("f1")
    assert halves["oracle"].to_list() == [0.5, 0.5, 0.5, 0.5, 0]
    assert halves["mean"].to_list() == pytest.approx([1 / 6, 1 / 3, 1 / 6, 1 / 6, 0])
    assert made().choices("exact_match").to_numpy().sum() == 0


def test_the_summary_has_the_gain_over_a_random_shuffle() -> None:
    table = made().summary()
    names = ["strategy", "n", "accuracy", "low", "high", "gain", "gain_low", "gain_high"]
    assert list(table.columns) == names
    assert list(table["strategy"]) == list(STRATEGIES)
    assert set(table["n"]) == {5}
    found = table.set_index("strategy")
    assert found["accuracy"].to_dict() == pytest.approx(
        {"mean": 1 / 3, "peak": 0.4, "majority": 0.4, "oracle": 0.8}
    )
    assert found["gain"].to_dict() == pytest.approx(
        {"mean": 0, "peak": 0.4 - 1 / 3, "majority": 0.4 - 1 / 3, "oracle": 0.8 - 1 / 3}
    )
    assert found[["gain_low", "gain_high"]].isna().all(axis=None)  # five are too few to resample
    assert found.loc["mean", ["low", "high"]].isna().all()
    twice = made(2).summary().set_index("strategy")
    # The oracle is never worse than a random shuffle, and better for eight of ten.
    assert twice.loc["oracle", "gain_low"] > 0
    assert twice.loc["peak", "gain_low"] < 0
    assert twice.loc["mean", "low"] < 1 / 3 < twice.loc["mean", "high"]
    for name, right in (("peak", 2), ("oracle", 4)):
        assert tuple(found.loc[name, ["accuracy", "low", "high"]]) == wilson(right, 5)
    pd.testing.assert_frame_equal(made().summary(seed=4), made().summary(seed=4))


def test_an_unknown_metric_is_told() -> None:
    with pytest.raises(UsageError, match="unknown metric 'bleu': choose one of contained"):
        made().choices("bleu")


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"k": 0}, "k must be 1 or more, not 0"),
    "too many": ({"k": 3}, "'song' has 2 documents, which have only 2 orders, but 3 different"),
    "mask": ({"mask": "diagonal"}, "unknown mask 'diagonal'"),
    "template": ({"template": "poem"}, "unknown template 'poem'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_before_anything_runs(
    llama: LanguageModel, name: str, tmp_path: Path
) -> None:
    arguments, message = MISTAKES[name]
    options = {"out": tmp_path / "run", **arguments}
    if name == "template":
        options.pop("out")
    with pytest.raises(HopscopeError, match=message):
        chosen(llama, QUESTIONS, **options)
    assert not (tmp_path / "run").exists()


def test_it_is_saved_and_comes_together_of_shards(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = chosen(llama, QUESTIONS)
    monkeypatch.setattr(order_choice, "PER_PART", 1)
    for shard in ((2, 2), (1, 2)):
        other = chosen(llama, QUESTIONS, out=tmp_path / "run", shard=shard)
    for result in (other, hs.load_result(tmp_path / "run")):
        assert isinstance(result, OrderChoice)
        pd.testing.assert_frame_equal(result.frame, whole.frame, atol=1e-5)
        pd.testing.assert_frame_equal(result.details, whole.details)
    assert list(whole.details["query"]) == ["tower", "song"]
    assert (whole.run["settings"]["k"], whole.run["settings"]["read"]) == (2, "answer")
