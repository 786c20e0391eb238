"""Tests of attention_to_documents(): masses beside eager attention, and IC and peaks by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded, short_name
from first_document import FORM, first_model, first_questions
from multidoc import OTHER, QUESTION, SHORT, encode_by, with_attention

import hopscope as hs
from hopscope.documents.lay_out import lay_out
from hopscope.documents.question_set import QuestionSet
from hopscope.errors import HopscopeError, UsageError
from hopscope.experiments.documents import attention
from hopscope.experiments.documents.attention import (
    DocumentAttention,
    attention_to_documents,
    document_masses,
    peak_of,
    read_masses,
)
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.document_prompts import DocumentPrompts
from hopscope.prompting.generation import answer_span

COLUMNS = ["query", "order", "mask", "layer", "head", "document", "hop", "slot", "mass"]
N_TOKENS = 3
FAMILIES = ("tiny-random-llama", "tiny-random-gpt2", "tiny-random-gemma2")
QUESTIONS = QuestionSet((QUESTION, OTHER), "made")
ORDERS = {"original": (0, 1, 2, 3), "forward": (0, 3, 2, 1)}


def attended(model: LanguageModel, questions: QuestionSet, *args: Any, **more: Any) -> Any:
    options = {"template": SHORT, "max_new_tokens": N_TOKENS, "progress": False, **more}
    return attention_to_documents(model, questions, *args, **options)


def weights_by_hand(
    name: str, order: tuple[int, ...], mask: str, n_read: int
) -> tuple[torch.Tensor, list[list[int]]]:
    """Mean attention of the generated tokens (or the last), shape (layer, head, key), and the
    tokens of each document of the order."""
    hf = with_attention(name, "eager").hf
    tokenizer = loaded(name).tokenizer
    parts = ["Answer.\n"]
    for place, index in enumerate(order, start=1):
        document = QUESTION.documents[index]
        parts.append(f"Document [{place}] {document.title}: {document.text}\n")
    parts.append(f"Question: {QUESTION.question}\nAnswer:")
    row = tokenizer("".join(parts), return_offsets_mapping=True)
    ends = np.cumsum([len(part) for part in parts])
    part_of = torch.tensor([int((ends <= start).sum()) for start, _ in row["offset_mapping"]])
    ids = list(row["input_ids"])
    n_prompt = len(ids)
    for step in range(N_TOKENS + 1):
        n = len(ids)
        kwargs: dict[str, Any] = {}
        if mask == "document_block":
            inside = (part_of > 0) & (part_of < len(parts) - 1)
            seen = torch.ones(n, n, dtype=torch.bool).tril()
            same = part_of[:, None] == part_of[None, :]
            seen[:n_prompt, :n_prompt] &= same | ~inside[:, None]
            least = torch.finfo(torch.float32).min
            kwargs["attention_mask"] = torch.where(seen, 0.0, least)[None, None]
        with torch.no_grad():
            output = hf(input_ids=torch.tensor([ids]), output_attentions=True, **kwargs)
        if step < N_TOKENS:
            ids.append(int(output.logits[0, -1].argmax()))
    patterns = torch.cat(output.attentions)  # (layer, head, query, key)
    rows = (
        patterns[:, :, n_prompt : n_prompt + n_read] if n_read else patterns[:, :, [n_prompt - 1]]
    )
    tokens = [torch.nonzero(part_of == 1 + slot)[:, 0].tolist() for slot in range(len(order))]
    return rows.mean(dim=2), tokens


@pytest.mark.parametrize("read", ["answer", "last"])
@pytest.mark.parametrize("name", FAMILIES, ids=short_name)
def test_masses_are_the_weights_of_an_eager_model(name: str, read: str) -> None:
    masks = ["causal", "document_block"] if name == "tiny-random-llama" else ["causal"]
    result = attended(loaded(name), QUESTIONS[:1], list(ORDERS), masks, read=read)
    assert list(result.frame.columns) == COLUMNS
    model = loaded(name)
    n_cells = model.n_layers * model.n_heads * 4
    assert len(result.frame) == len(ORDERS) * len(masks) * n_cells
    spread = 0.0
    for details in result.details.itertuples():
        n_read = details.tokens_read
        assert n_read == (0 if read == "last" else N_TOKENS), "the tiny model says three tokens"
        order = ORDERS[details.order]
        weights, tokens = weights_by_hand(name, order, details.mask, n_read)
        frame = result.frame[
            (result.frame["order"] == details.order) & (result.frame["mask"] == details.mask)
        ]
        for slot, index in enumerate(order):
            rows = frame[frame["document"] == index].sort_values(["layer", "head"])
            assert set(rows["slot"]) == {slot}
            assert set(rows["hop"]) == {{3: 1, 1: 2}.get(index, 0)}
            expected = weights[:, :, tokens[slot]].sum(dim=-1).flatten()
            np.testing.assert_allclose(rows["mass"], expected, atol=1e-5)
        spread = max(spread, float(frame["mass"].std()))
    assert spread > 0.01


def test_an_answer_is_read_up_to_the_end_of_its_line() -> None:
    llama = loaded("tiny-random-llama")
    prompts = DocumentPrompts(llama, QUESTIONS, SHORT)

    def tokens(text: str) -> list[int]:
        return list(llama.tokenizer(text, add_special_tokens=False)["input_ids"])

    line, more = tokens(" Paris"), tokens("\nThe")
    assert answer_span(llama, line, one_line=True) == range(len(line))
    assert answer_span(llama, [*line, *more], one_line=True) == range(len(line))
    assert not answer_span(llama, more, one_line=True)
    assert not answer_span(llama, [], one_line=True)
    assert answer_span(llama, [*line, *more], one_line=False) == range(len(line) + len(more))
    masses = torch.arange(9.0)[:, None, None, None].expand(9, 2, 3, 4)
    mass, n = read_masses(prompts, masses, [*line, *more], "answer")
    assert n == len(line)
    assert mass.shape == (2, 3, 4)
    assert float(mass[0, 0, 0]) == pytest.approx(np.mean(range(1, len(line) + 1)))
    for given, read in (([*line], "last"), (more, "answer"), ([], "answer")):
        mass, n = read_masses(prompts, masses, given, read)
        assert (float(mass.max()), n) == (0.0, 0)


def test_attention_is_read_at_the_answer_behind_a_thought() -> None:
    llama = loaded("tiny-random-llama")
    prompts = DocumentPrompts(llama, QUESTIONS, SHORT)
    thought, answer, more = (
        list(llama.tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in ("<think>\nFrance\n</think>\n\n", "Paris", "\nThe")
    )
    masses = torch.arange(99.0)[:, None, None, None].expand(99, 2, 3, 4)
    mass, n = read_masses(prompts, masses, [*thought, *answer, *more], "answer")
    assert n == len(answer)
    first = 1 + len(thought)
    assert float(mass[0, 0, 0]) == pytest.approx(np.mean(range(first, first + len(answer))))
    mass, n = read_masses(prompts, masses, thought[:-5], "answer")
    assert (float(mass.max()), n) == (0.0, 0)


def test_masses_belong_to_documents_hops_and_slots() -> None:
    layout = lay_out(encode_by(loaded("tiny-random-llama")), QUESTION, (3, 0, 1), template=SHORT)
    mass = torch.arange(2 * 2 * 6, dtype=torch.float32).reshape(2, 2, 6)
    table = document_masses(layout, mass)
    assert len(table) == 2 * 2 * 3
    for row in table.itertuples():
        assert (row.document, row.hop) == ((3, 1), (0, 0), (1, 2))[row.slot]
        assert row.mass == mass[row.layer, row.head, 1 + row.slot]
    means = mass[:, :, 1:4].mean(dim=1).sum(dim=0)
    assert peak_of(layout, mass) == pytest.approx(float(means.max()))


def test_the_known_model_looks_at_the_first_document() -> None:
    """Block 0 at the "end" of each document alike, block 1 at the first name alone."""
    result = attention_to_documents(
        first_model(),
        first_questions(),
        ["forward", "backward"],
        read="last",
        template=FORM,
        progress=False,
    )
    ic = result.ic()
    expected = np.where(ic["slot"] == 0, 4 / 3, 1 / 3)
    np.testing.assert_allclose(ic["ic"], expected, atol=1e-3)
    peaks = result.peaks()
    assert list(peaks["order"]) == ["forward", "backward"] * 3
    assert list(peaks["hop"]) == [1, 2] * 3
    assert list(peaks["correct"]) == [False, True] * 3
    np.testing.assert_allclose(peaks["peak"], 4 / 3, atol=1e-3)


MASSES = {  # (layer, head) -> documents 0 and 1
    "right": {(0, 0): (0.2, 0.1), (0, 1): (0.4, 0.3), (1, 0): (0.6, 0.0), (1, 1): (0.2, 0.2)},
    "wrong": {(0, 0): (0.1, 0.5), (0, 1): (0.1, 0.3), (1, 0): (0.0, 0.1), (1, 1): (0.0, 0.2)},
}


def made(
    answers: dict[str, tuple[str, bool]] | None = None, scale: dict[str, float] | None = None
) -> DocumentAttention:
    """Two layers, two heads; document 1 is the first hop and document 0 a distractor."""
    answers = answers or {"right": ("right", True), "wrong": ("wrong", False)}
    rows = [
        (query, "forward", "causal", layer, head, document, 1 - (document == 0), document, mass)
        for query, (which, _) in answers.items()
        for (layer, head), both in MASSES[which].items()
        for document, mass in enumerate(np.array(both) * (scale or {}).get(query, 1))
    ]
    details = pd.DataFrame(
        {
            "query": list(answers),
            "order": "forward",
            "mask": "causal",
            "contained": [correct for _, correct in answers.values()],
            "exact_match": False,
        }
    )
    return DocumentAttention(pd.DataFrame(rows, columns=COLUMNS), details)


def test_ic_is_the_sum_over_blocks_of_the_mean_over_heads() -> None:
    table = made().ic()
    assert list(table.columns) == ["query", "order", "mask", "document", "hop", "slot", "ic"]
    found = table.set_index(["query", "document"])["ic"].to_dict()
    assert found == pytest.approx(
        {
            ("right", 0): (0.2 + 0.4) / 2 + (0.6 + 0.2) / 2,
            ("right", 1): (0.1 + 0.3) / 2 + (0.0 + 0.2) / 2,
            ("wrong", 0): (0.1 + 0.1) / 2,
            ("wrong", 1): (0.5 + 0.3) / 2 + (0.1 + 0.2) / 2,
        }
    )


def test_peaks_are_the_largest_ic_of_each_version() -> None:
    table = made().peaks()
    names = ["query", "order", "mask", "peak", "document", "hop", "correct"]
    assert list(table.columns) == names
    rows = [tuple(row) for row in table.drop(columns=["order", "mask"]).to_numpy()]
    assert rows == [
        ("right", pytest.approx(0.7), 0, 0, True),
        ("wrong", pytest.approx(0.55), 1, 1, False),
    ]
    assert list(made().peaks("exact_match")["correct"]) == [False, False]


def test_right_and_wrong_answers_are_compared_pair_by_pair() -> None:
    answers = {
        "a": ("right", True),  # 0.7
        "b": ("wrong", True),  # 0.55
        "c": ("wrong", False),  # 0.55
        "d": ("right", False),  # 0.35
        "e": ("wrong", False),  # 1.1
    }
    table = made(answers, {"d": 0.5, "e": 2.0}).compare()
    (row,) = table.to_dict("records")
    assert (row["order"], row["mask"], row["right"], row["wrong"]) == ("forward", "causal", 2, 3)
    assert row["median_right"] == pytest.approx((0.7 + 0.55) / 2)
    assert row["median_wrong"] == pytest.approx(0.55)
    # of six pairs: a beats c and d, b beats d and ties with c
    assert row["auc"] == pytest.approx((2 + 1 + 0.5) / 6)
    assert 0.5 < row["p"] <= 1


def test_the_p_value_of_a_clear_difference_is_that_of_mann_and_whitney() -> None:
    answers = {f"r{n}": ("right", True) for n in range(4)}
    answers |= {f"w{n}": ("right", False) for n in range(4)}
    scale = {name: 2 - number / 10 for number, name in enumerate(answers)}
    (row,) = made(answers, scale).compare().to_dict("records")
    assert row["auc"] == 1.0
    assert row["p"] == pytest.approx(2 / 70)  # 8 choose 4 orders, both ends


@pytest.mark.parametrize("correct", [True, False])
def test_nothing_is_compared_where_all_are_right_or_all_wrong(correct: bool) -> None:
    table = made({"a": ("right", correct), "b": ("wrong", correct)}).compare()
    (row,) = table.to_dict("records")
    assert (row["right"], row["wrong"]) == ((2, 0) if correct else (0, 2))
    assert np.isnan(row["auc"])
    assert np.isnan(row["p"])
    known, unknown = ("right", "wrong") if correct else ("wrong", "right")
    assert row[f"median_{known}"] == pytest.approx((0.7 + 0.55) / 2)
    assert np.isnan(row[f"median_{unknown}"])


def test_layers_are_means_over_heads_by_verdict() -> None:
    answers = {"a": ("right", True), "b": ("wrong", True), "c": ("wrong", False)}
    table = made(answers).by_layer()
    names = ["order", "mask", "correct", "hop", "layer", "n", "mass", "low", "high"]
    assert list(table.columns) == names
    found = table.set_index(["correct", "hop", "layer"])[["n", "mass"]]
    assert found.loc[(True, 1, 0)].to_list() == pytest.approx([2, (0.2 + 0.4) / 2])
    assert found.loc[(True, 1, 1)].to_list() == pytest.approx([2, (0.1 + 0.15) / 2])
    assert found.loc[(True, 0, 1)].to_list() == pytest.approx([2, (0.4 + 0.0) / 2])
    assert found.loc[(False, 1, 0)].to_list() == pytest.approx([1, 0.4])


def test_heads_are_means_over_questions() -> None:
    table = made().by_head()
    assert list(table.columns) == ["order", "mask", "hop", "layer", "head", "mass"]
    found = table.set_index(["hop", "layer", "head"])["mass"]
    assert found[1, 0, 1] == pytest.approx((0.3 + 0.3) / 2)
    assert found[0, 1, 0] == pytest.approx((0.6 + 0.0) / 2)
    assert len(found) == 2 * 2 * 2


def test_only_what_is_right_or_wrong_has_peaks() -> None:
    for metric in ("f1", "bleu"):
        with pytest.raises(UsageError, match=f"unknown metric {metric!r}: choose one of contained"):
            made().peaks(metric)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "read": ({"read": "first"}, "unknown read 'first': choose one of answer, last"),
    "order": ({"orders": ["sideways"]}, "unknown order 'sideways'"),
    "mask": ({"masks": "diagonal"}, "unknown mask 'diagonal'"),
    "template": ({"template": "poem"}, "unknown template 'poem'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(llama: LanguageModel, name: str) -> None:
    arguments, message = MISTAKES[name]
    with pytest.raises(HopscopeError, match=message):
        attended(llama, QUESTIONS, **arguments)


def test_it_is_saved_and_comes_together_of_shards(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = attended(llama, QUESTIONS)
    monkeypatch.setattr(attention, "PER_PART", 1)
    for shard in ((2, 2), (1, 2)):
        other = attended(llama, QUESTIONS, out=tmp_path / "run", shard=shard)
    for result in (other, hs.load_result(tmp_path / "run")):
        assert isinstance(result, DocumentAttention)
        pd.testing.assert_frame_equal(result.details, whole.details)
        # other questions in the batch, other rounding
        pd.testing.assert_frame_equal(result.frame, whole.frame, atol=1e-6)
    assert list(whole.details["query"]) == ["tower", "song"]
    assert whole.run["settings"]["read"] == "answer"


def test_attention_needs_no_answers(llama: LanguageModel, tmp_path: Path) -> None:
    """Verdicts are unknown; the masses are those of the same questions with answers."""
    unknown = [replace(each, answer="", aliases=()) for each in QUESTIONS]
    result = attended(llama, QuestionSet(tuple(unknown), "made"), out=tmp_path / "run")
    answered = attended(llama, QUESTIONS)
    assert result.frame["mass"].tolist() == answered.frame["mass"].tolist()
    for metric in ("contained", "matched", "exact_match", "f1"):
        assert result.details[metric].isna().all()
    assert result.peaks()["correct"].isna().all()
    assert (result.compare()[["right", "wrong"]] == 0).all(axis=None)
    assert result.by_layer().empty
    assert len(result.by_head()) == len(answered.by_head())
    result.tables()
    assert hs.load_result(tmp_path / "run").details["contained"].isna().all()
    mixed = QuestionSet((unknown[0], OTHER), "made")
    assert attended(llama, mixed).compare()[["right", "wrong"]].sum(axis=None) == len(
        result.compare()
    )
    nowhere = QuestionSet((replace(unknown[0], hops=()),), "made")
    assert (attended(llama, nowhere).frame["hop"] == 0).all()
