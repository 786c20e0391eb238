"""The authors' way to ask over documents (Huang et al. 2025), beside small versions of our own.

Nothing here is their code: prompts are written out, and what their code reads is told anew.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from multidoc import OTHER, QUESTION, SHORT, chat_model
from plain import generated
from typer.testing import CliRunner

import hopscope as hs
from hopscope.cli import app
from hopscope.documents.orders import arrange, order_name, shuffles
from hopscope.documents.question_set import Document, QuestionSet
from hopscope.documents.templates import TEMPLATES, Template
from hopscope.errors import ResultError, UsageError
from hopscope.experiments.documents.attention import attention_to_documents, read_masses
from hopscope.experiments.documents.order_choice import best_order
from hopscope.experiments.documents.permutation import (
    Permutation,
    accuracy_table,
    permute_documents,
)
from hopscope.experiments.registry import REGISTERED
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.document_prompts import DocumentPrompts
from hopscope.queries.answers import ANSWER_RULES, contains_ascii
from hopscope.statistics import wilson

SPACED = replace(
    OTHER,
    documents=(
        Document("Imagine ", " The  performer\tis Lennon.\n"),
        Document("Lennon", "His spouse is Yoko Ono."),
    ),
)
QUESTIONS = QuestionSet((SPACED, QUESTION), "made")
N_TOKENS = 6

USER = (
    "<|im_start|>user\nAnswer the question using only the provided search results (some of which "
    "might be irrelevant). \n\n"
    "Document [0](Title: Lennon) His spouse is Yoko Ono.\n"
    "Document [1](Title: Imagine )  The  performer\tis Lennon.\n\n"
    "\nQuestion: Who is the spouse of the performer of Imagine?\n.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
ANSWER_ONLY = (
    "<|im_start|>system\nYou are Qwen and are now helping answer question based on some search "
    "result. Only provide the exact final answer and put it within \\boxed{}.<|im_end|>\n"
    f"{USER}\\boxed{{"
)
COT = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}."
    f"<|im_end|>\n{USER}"
)
TUNED = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    f"<|im_end|>\n{USER}"
)
PROMPTS = {
    "paper": ANSWER_ONLY,
    "paper_whole": ANSWER_ONLY,
    "paper_cot": COT,
    "paper_cot_last_line": COT,
    "paper_tuned": TUNED,
}


@pytest.fixture(scope="module")
def qwen() -> LanguageModel:
    return chat_model()


@pytest.fixture(scope="module")
def llama_chat() -> LanguageModel:
    return chat_model("tiny-random-llama")


def prompt_of(model: LanguageModel, template: str, order: Any = "backward") -> str:
    prompts = DocumentPrompts(model, QUESTIONS, template)
    return prompts.layout(prompts.fitted_question(SPACED), order).text


@pytest.mark.parametrize("template", PROMPTS)
def test_prompts_are_theirs_byte_for_byte(qwen: LanguageModel, template: str) -> None:
    assert prompt_of(qwen, template) == PROMPTS[template]
    assert TEMPLATES[template].max_new_tokens == (512 if template == "paper_whole" else 768)


@pytest.mark.parametrize("template", ["paper", "paper_tuned"])
def test_a_llama_is_called_so(llama_chat: LanguageModel, template: str) -> None:
    expected = PROMPTS[template].replace("You are Qwen", "You are Llama", 1)
    assert prompt_of(llama_chat, template) == expected.replace("Alibaba Cloud", "Meta")


def test_an_encoder_decoder_reads_the_users_text_alone() -> None:
    t5 = hs.load_encoder_decoder("tiny-random-t5", device="cpu")
    prompts = DocumentPrompts(t5, QUESTIONS, "paper")
    text = prompts.layout(prompts.fitted_question(SPACED), "backward").text
    assert text == USER.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
    assert prompts.answer(t5.tokenizer("Rome\nParis\n")["input_ids"]) == "Paris"


def test_fixed_labels_begin_with_nought_too(qwen: LanguageModel) -> None:
    prompts = DocumentPrompts(qwen, QUESTIONS, "paper", "fixed")
    text = prompts.layout(prompts.fitted_question(SPACED), "backward").text
    assert "Document [1](Title: Lennon)" in text
    assert "Document [0](Title: Imagine )" in text


def test_gold_documents_keep_their_original_order_if_so_wished() -> None:
    assert arrange(QUESTION, "gold") == (3, 1)
    assert arrange(QUESTION, "gold_original") == (1, 3)
    assert arrange(replace(QUESTION, ordered=False), "gold_original") == (1, 3)


def said_of(model: LanguageModel, text: str, n_tokens: int = N_TOKENS) -> list[int]:
    """The tokens that transformers' own `generate` gives."""
    row = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    return generated(model.hf, row, torch.ones_like(row), n_tokens, model.end_tokens)[0]


@pytest.mark.parametrize("template", PROMPTS)
def test_answers_are_taken_from_what_is_generated(qwen: LanguageModel, template: str) -> None:
    frame = permute_documents(
        qwen,
        QUESTIONS[:1],
        ["backward"],
        template=template,
        max_new_tokens=N_TOKENS,
        progress=False,
    ).frame
    text = qwen.tokenizer.decode(said_of(qwen, PROMPTS[template]), skip_special_tokens=True)
    expected = {
        "paper_whole": text,
        "paper_cot": "",
    }.get(template, text.strip().split("\n")[-1])
    assert list(frame["generation"]) == [expected]


@pytest.mark.parametrize(
    ("template", "text", "answer", "right"),
    [
        ("paper", "Yoko Ono}", "Yoko Ono}", True),
        ("paper", "Yoko Ono}\nShe was not asked for.", "She was not asked for.", False),
        ("paper_whole", "John}\nYoko Ono", "John}\nYoko Ono", True),
        ("paper_cot", "The spouse is Yoko Ono. \\boxed{Lennon}", "Lennon", False),
        ("paper_cot", "So \\boxed{Yoko Ono}. Not \\boxed{Lennon}.", "Yoko Ono", True),
        ("paper_cot", "The spouse is Yoko Ono.", "", False),
        ("paper_cot_last_line", "\\boxed{Lennon}\nYoko Ono", "Yoko Ono", True),
        ("paper_tuned", "Yoko Ono", "Yoko Ono", True),
    ],
)
def test_where_the_answer_stands(
    qwen: LanguageModel, template: str, text: str, answer: str, right: bool
) -> None:
    tokens = qwen.tokenizer(text, add_special_tokens=False)["input_ids"]
    found = DocumentPrompts(qwen, QUESTIONS, template).answer(tokens)
    assert found == answer
    assert contains_ascii(found, SPACED.names) is right


def test_a_box_that_the_prompt_opens_can_be_read(qwen: LanguageModel) -> None:
    form = replace(TEMPLATES["paper"], answer="boxed")
    prompts = DocumentPrompts(qwen, QUESTIONS, form)
    tokens = qwen.tokenizer("Yoko Ono}, not Lennon", add_special_tokens=False)["input_ids"]
    assert prompts.answer(tokens) == "Yoko Ono"


def asked(answers: dict[str, str], template: str | dict[str, Any] = "paper") -> Permutation:
    """A result in which one question was answered in several orders."""
    rows = [
        ("q", order, "causal", "text", text, False, False, False, 0.0, False)
        for order, text in answers.items()
    ]
    frame = pd.DataFrame(rows, columns=list(Permutation.columns))
    details = pd.DataFrame({"query": ["q"], "names": [json.dumps(["New York", "Beyoncé"])]})
    return Permutation(frame, details, {"settings": {"template": template}})


ANSWERS = {"original": "new york", "forward": "NewYork", "backward": "Beyonce!"}


def test_the_metric_is_that_of_the_template_if_none_is_named() -> None:
    right = {"original": 1, "forward": 0, "backward": 1}
    accuracy = asked(ANSWERS).accuracy().set_index("order")["accuracy"]
    assert accuracy.to_dict() == right
    assert asked(ANSWERS).accuracy("contained")["accuracy"].sum() == 0
    usual = asked(ANSWERS, "answer_only")
    assert usual.accuracy()["accuracy"].sum() == 0
    assert usual.accuracy("paper").set_index("order")["accuracy"].to_dict() == right
    compared = asked(ANSWERS).compare("original").set_index("order")
    assert compared.loc["forward", "worse"] == 1
    own = replace(SHORT, metric="paper").as_record()
    assert asked(ANSWERS, own).accuracy()["accuracy"].sum() == 2
    assert asked(ANSWERS, SHORT.as_record()).accuracy()["accuracy"].sum() == 0


def test_a_result_without_aliases_says_so() -> None:
    result = asked(ANSWERS)
    earlier = replace(result, details=result.details.drop(columns="names"))
    with pytest.raises(ResultError, match="did not keep the aliases"):
        earlier.accuracy("paper")
    assert len(earlier.accuracy("contained")) == 3


def test_a_record_names_what_was_added_only_where_it_is_set() -> None:
    assert set(SHORT.as_record()) == {
        *("instruction", "document", "question", "one_line", "max_new_tokens", "chat", "prefill"),
    }
    assert Template(**TEMPLATES["paper_cot"].as_record()) == TEMPLATES["paper_cot"]


# Attention


def read_by_theirs(model: LanguageModel, ids: list[int], ended: bool) -> int:
    """How many generated tokens the authors' code averages over: told anew, one by one."""
    everything = [*ids, -1] if ended else ids  # with the token that ends the turn
    *before, _ = everything
    if len(everything) > 2 and model.tokenizer.decode(before[-1:]) == "}":
        before.pop()
    return len(before)


@pytest.mark.parametrize("text", ["Yoko}", "Yoko", "}", "a}b", "a}}"])
def test_the_rows_that_are_read_leave_a_closing_brace_out(qwen: LanguageModel, text: str) -> None:
    ids = qwen.tokenizer(text, add_special_tokens=False)["input_ids"]
    masses = torch.arange(99.0)[:, None, None, None].expand(99, 2, 3, 4)
    for room, ended in ((50, True), (len(ids), False)):
        prompts = DocumentPrompts(qwen, QUESTIONS, "paper_whole", max_new_tokens=room)
        mass, n = read_masses(prompts, masses, ids, "generated")
        n_theirs = read_by_theirs(qwen, ids, ended)
        assert n == n_theirs
        assert float(mass[0, 0, 0]) == (np.mean(range(1, 1 + n)) if n else 0.0)


def peak_by_hand(model: LanguageModel, text: str) -> float:
    """The highest IC of a document, from eager attention weights over the finished text."""
    row = model.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    ids, starts = list(row["input_ids"]), [start for start, _ in row["offset_mapping"]]
    said = said_of(model, text)
    n_read = read_by_theirs(model, said, ended=len(said) < N_TOKENS)
    with torch.no_grad():
        output = model.hf(input_ids=torch.tensor([[*ids, *said]]), output_attentions=True)
    rows = torch.cat(output.attentions)[:, :, len(ids) : len(ids) + n_read]
    where = [text.find("Document [0]"), text.find("Document [1]"), text.find("\nQuestion:")]
    peaks = []
    for start, end in pairwise(where):
        inside = [n for n, place in enumerate(starts) if start <= place < end]
        peaks.append(rows[..., inside].sum(dim=-1).mean(dim=(1, 2)).sum())
    return float(max(peaks))


def test_the_choice_of_an_order_is_theirs_with_the_registered_settings() -> None:
    model = chat_model()
    model.hf.set_attn_implementation("eager")
    result = best_order(
        model,
        QUESTIONS[:1],
        k=2,
        **REGISTERED["order_choice"].parity,
        max_new_tokens=N_TOKENS,
        progress=False,
    )
    orders = shuffles(SPACED, 2, 0)
    texts = [prompt_of(model, "paper_whole", order) for order in orders]
    assert ANSWER_ONLY in texts, "two documents have two orders"
    peaks = [peak_by_hand(model, text) for text in texts]
    np.testing.assert_allclose(result.frame["peak"], peaks, rtol=1e-4)
    assert list(result.frame["order"]) == [order_name(order) for order in orders]
    verdicts = [contains_ascii(text, SPACED.names) for text in result.frame["generation"]]
    choices = result.choices().iloc[0]
    assert choices["peak"] == verdicts[int(np.argmax(peaks))]
    assert choices["mean"] == np.mean(verdicts)
    attention = attention_to_documents(
        model,
        QUESTIONS[:1],
        orders,
        **REGISTERED["attention_peaks"].parity,
        max_new_tokens=N_TOKENS,
        progress=False,
    )
    np.testing.assert_allclose(attention.peaks()["peak"], peaks, rtol=1e-4)
    assert list(attention.peaks()["correct"]) == verdicts


# Tables


def test_runs_are_laid_side_by_side(caplog: pytest.LogCaptureFixture) -> None:
    def of(name: str, sha: str = "x", template: str = "paper", **answers: str) -> Permutation:
        result = asked(answers, template)
        run = {**result.run, "model": {"name": name}, "queries": {"sha256": sha}}
        return replace(result, run=run)

    small = of("small", original="new york", forward="Rome")
    large = of("large", original="new york", forward="Beyonce", backward="Oslo")
    with caplog.at_level(logging.WARNING):
        table = accuracy_table([small, large])
    assert not caplog.text
    orders = ["original", "forward", "backward"]
    ends = [f"{order}_{end}" for order in orders for end in ("low", "high")]
    assert sorted(table.columns) == sorted([*orders, *ends])
    assert list(table.columns)[:4] == ["original", "original_low", "original_high", "forward"]
    assert table["forward_high"].iloc[0] == pytest.approx(100 * wilson(0, 1)[2])
    assert np.isnan(table["backward_low"].iloc[0])
    assert [index[0] for index in table.index] == ["small", "large"]
    assert table.index.names == ["model", "template", "mask", "permuting", "n"]
    np.testing.assert_array_equal(table[orders], [[100, 0, np.nan], [100, 100, 0]])
    assert accuracy_table([small, large], "contained")[orders].to_numpy()[1].sum() == 0
    unknown = accuracy_table([small, large], "f1")  # a single question has no interval
    assert list(unknown.columns) == list(table.columns)
    assert unknown[ends].isna().all(axis=None)
    accuracy_table([small, of("other", "y", original="a")])
    assert "do not ask the same questions" in caplog.text
    with pytest.raises(UsageError, match="scored by paper and contained: give one metric"):
        accuracy_table([small, of("plain", template="plain", original="a")])
    with pytest.raises(UsageError, match="give at least one result"):
        accuracy_table([])
    pd.testing.assert_frame_equal(accuracy_table(small), accuracy_table([small]))


def test_a_command_lays_runs_side_by_side(tmp_path: Path) -> None:
    result = replace(
        asked(ANSWERS),
        run={
            **asked(ANSWERS).run,
            "model": {"name": "small"},
            "queries": {"name": "made", "n": 1, "sha256": "x"},
        },
    )
    result.save(tmp_path / "run")
    done = CliRunner().invoke(app, ["accuracy-table", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.output)["accuracy"]
    keys = {"model": "small", "template": "paper", "mask": "causal", "permuting": "text", "n": 1}
    assert row.items() >= (keys | {"original": 100.0, "forward": 0.0, "backward": 100.0}).items()
    assert row["forward_low"] == 0 < row["forward_high"] < 100
    done = CliRunner().invoke(app, ["accuracy-table", str(tmp_path / "run"), "--metric", "f1"])
    assert "0.00" in done.output


def test_every_rule_of_a_template_is_known() -> None:
    assert {form.answer for form in TEMPLATES.values()} <= set(ANSWER_RULES)
