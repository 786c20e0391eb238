"""What a report says of a result: numbers in words, and what the controls say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from known import RIGHT, made_grading

from hopscope.experiments.documents.attention import DocumentAttention
from hopscope.experiments.documents.masked_paths import MaskedPaths
from hopscope.experiments.documents.order_choice import OrderChoice
from hopscope.experiments.documents.permutation import Permutation
from hopscope.results import wording
from hopscope.results.result import Result
from hopscope.study.report import sections
from hopscope.study.study import Study


@pytest.mark.parametrize(
    ("n", "difference", "low", "high", "said"),
    [
        (6, 0.2, 0.1, 0.4, "more than chance"),
        (9, -0.2, -0.4, -0.1, "less than chance"),
        (9, 0.1, -0.1, 0.2, "not told apart from chance"),
        (9, 0.1, 0.0, 0.2, "not told apart from chance"),
        (5, 1.0, 0.4, 1.0, "too few queries to tell"),
        (1, 1.0, float("nan"), float("nan"), "too few queries to tell"),
        (6, 0.5, float("nan"), float("nan"), "more than chance"),
        (6, -0.5, float("nan"), float("nan"), "less than chance"),
        (6, 0.0, float("nan"), float("nan"), "not told apart from chance"),
    ],
)
def test_verdicts(n: int, difference: float, low: float, high: float, said: str) -> None:
    gain = {"n": n, "difference": difference, "low": low, "high": high}
    assert wording.verdict(gain) == said


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.4, "higher than forward"),
        (-0.4, -0.1, "lower than forward"),
        (-0.1, 0.2, "not told apart from forward"),
    ],
)
def test_what_is_no_control_is_named_in_a_verdict(low: float, high: float, said: str) -> None:
    gain = {"n": 9, "difference": (low + high) / 2, "low": low, "high": high}
    assert wording.verdict(gain, "forward") == said


def test_shares_and_differences_in_words() -> None:
    assert wording.with_interval(0.375, 0.12, 0.624) == "38 % (12\u201362)"
    assert wording.with_interval(1.0, float("nan"), float("nan")) == "100 %"
    assert wording.points(-0.065, -0.2, 0.07) == "-6 points (-20 to +7)"
    assert wording.points(-0.001, -0.004, 0.004) == "+0 points (+0 to +0)"


def told(name: str, result: Result) -> tuple[str, dict[str, pd.DataFrame]]:
    """The findings and tables of one result on questions over documents."""
    found = Study(made_grading(RIGHT), {f"{name}.documents": result}, {}, Path())
    _, section = sections(found)
    assert section.name == name
    return " ".join(section.findings), section.tables


def test_the_order_of_documents_is_told() -> None:
    rows = [
        (f"q{n}", order, mask, "text", right)
        for n in range(8)
        for mask in ("causal", "document_block")
        for order, right in (
            ("original", n < 2),
            ("forward", n < 4),
            ("backward", n < 4 if mask == "document_block" else n < 1),
        )
    ]
    frame = pd.DataFrame(rows, columns=["query", "order", "mask", "permuting", "contained"])
    said, tables = told("document_order", Permutation(frame, frame[["query"]].drop_duplicates()))
    assert said.startswith("Questions over documents (n = 8): under the mask causal it answers ")
    assert re.search(r"25 % \(\d+–\d+\) original, 50 % \(\d+–\d+\) forward, 12 % \(", said)
    words = r"backward over forward -38 points \(-\d+ to .{1,3}\): not told apart from forward"
    assert re.search(words, said)  # three worse, none better: p = .25
    assert "Under the mask document_block it answers" in said
    words = "backward over forward +0 points (-37 to +37): not told apart from forward"
    assert words in said
    assert "chance" not in said
    assert set(tables) == {
        f"document_order.documents.{name}" for name in ("accuracy", "compare", "compare_masks")
    }


def made_attention(right: Sequence[bool]) -> DocumentAttention:
    """The peak of question n is n + 1, at the second hop."""
    frame = pd.DataFrame(
        [
            (f"q{n}", "forward", "causal", 0, 0, document, document, document, float(mass))
            for n in range(len(right))
            for document, mass in ((0, 0), (1, 0), (2, n + 1))
        ],
        columns=["query", "order", "mask", "layer", "head", "document", "hop", "slot", "mass"],
    )
    details = frame[["query", "order", "mask"]].drop_duplicates().assign(contained=list(right))
    return DocumentAttention(frame, details)


def test_peaks_of_attention_are_told() -> None:
    said, tables = told("attention_peaks", made_attention([False, False, True, True]))
    assert "in the order forward 2 answers are right" in said
    assert "their median peak is 3.50, that of the 2 wrong ones 1.50" in said
    assert "a right one is higher in 100 % of the pairs, chance 50 %; p = 0.33)" in said
    assert list(tables["attention_peaks.documents.peaks"]["peak"]) == [1, 2, 3, 4]
    said, _ = told("attention_peaks", made_attention([True, True]))
    assert said.endswith("in the order forward 2 answers are right.")


def test_the_choice_of_an_order_is_told() -> None:
    rows = [
        (f"q{n}", number, f"answer {number}", peak, right)
        for n in range(8)
        for number, (peak, right) in enumerate([(1.0, False), (2.0, True)])
    ]
    columns = ["query", "shuffle", "generation", "peak", "contained"]
    frame = pd.DataFrame(rows, columns=columns)
    result = OrderChoice(frame, frame[["query"]].drop_duplicates(), {"settings": {"k": 2}})
    said, _ = told("order_choice", result)
    assert "of 2 shuffles a random one is right for 50 %" in said
    assert "Chosen by the highest peak: 100 % (68–100), +50 points over a random" in said
    assert "over a random shuffle: more than chance" in said
    assert "Chosen by the majority: 0 % (0–32), -50 points" in said
    assert "Chosen by an oracle: 100 % (68–100)" in said


def test_masked_paths_are_told() -> None:
    rows = [
        (f"q{n}", "question->gold 1", control, layer, changed)
        for n in range(8)
        for control, layer, changed in (
            ("none", 0, n < 2),
            ("none", 1, n < 6),
            ("distractor", 0, n < 2),
            ("distractor", 1, n < 2),
        )
    ]
    frame = pd.DataFrame(rows, columns=["query", "edge", "control", "layer", "changed"])
    result = MaskedPaths(frame, frame[["query"]].drop_duplicates(), {"settings": {"window": 1}})
    said, tables = told("document_paths", result)
    assert "blocking question->gold 1 in 3 layers changes most answers around layer 1, 75 %" in said
    words = "the same edge to a distractor 25 % (7–59): not told apart from chance (the best of"
    assert words in said  # four more, none less: p = .125
    assert len(tables["document_paths.documents.above_chance"]) == 2
