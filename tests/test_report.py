"""The report of a study: its words, numbers and files, and that a kill leaves no trace in them."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from known import CORRECT, INCORRECT, RIGHT, known_model, known_queries, made_grading

from hopscope import findings, report, study
from hopscope.experiments import DocumentAttention, MaskedPaths, OrderChoice, Permutation
from hopscope.findings import ANALYSES
from hopscope.results import Result
from hopscope.study import Preset, Study, run_study

SMALL = Preset(limit=None, most=2, layer_step=2)


def run(folder: Path) -> Study:
    return run_study(known_model(), known_queries(), folder / "runs", SMALL, progress=False)


@cache
def shared(base: Path) -> tuple[Study, Path]:
    """One study and its page, for all tests that only read."""
    found = run(base / "study")
    return found, report.write(found, base / "study")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    return shared(tmp_path_factory.getbasetemp() / "report")


def files(folder: Path) -> dict[str, bytes]:
    """What a study leaves for its reader, by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "runs" not in path.relative_to(folder).parts
    }


# --- files ---------------------------------------------------------------------------------------


def test_every_analysis_has_its_section_figure_and_tables(written: tuple[Study, Path]) -> None:
    found, page = written
    text = page.read_text("utf-8")
    assert set(re.findall(r'<h2 id="(\w+)"', text)) == set(ANALYSES)
    there = files(page.parent)
    for name in ANALYSES:
        ran = name == "grading" or any(key.startswith(f"{name}.") for key in found.results)
        assert (f"figures/{name}.png" in there) == ran, name
        assert any(key.startswith(f"tables/{name}.") for key in there) == ran, name


def test_the_page_needs_no_other_file(written: tuple[Study, Path]) -> None:
    _, page = written
    text = page.read_text("utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources
    for source in sources:
        assert source.startswith("data:image/png;base64,")
        assert base64.b64decode(source.partition(",")[2]).startswith(b"\x89PNG")
    assert "http" not in text


def test_the_page_is_interactive_with_no_server(written: tuple[Study, Path]) -> None:
    found, page = written
    text = page.read_text("utf-8")
    shown = [name for name in found.results if name.startswith(("back_patching", "description"))]
    assert text.count("data-hopscope>") == len(shown) > 0
    assert text.count("function renderGrid(") == 1
    assert 'src="data:image/png;base64,' in text
    assert "://" not in text.partition("<script")[2]


def test_tables_are_the_results_own(written: tuple[Study, Path]) -> None:
    found, page = written
    table = pd.read_csv(page.parent / "tables" / "back_patching.incorrect.success_rate.csv")
    expected = found.results["back_patching.incorrect"].success_rate()  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(table, expected, check_dtype=False, atol=1e-5)


# --- words ---------------------------------------------------------------------------------------


def finding(found: Study, name: str) -> str:
    (section,) = (each for each in report.sections(found) if each.name == name)
    return " ".join(section.findings)


def test_the_known_model_is_told_as_it_is(written: tuple[Study, Path]) -> None:
    found, _ = written
    grading = finding(found, "grading")
    assert f"{len(CORRECT)} queries are answered (subset correct)" in grading
    assert f"and {len(INCORRECT)} fail although" in grading
    patched = finding(found, "back_patching")
    assert "Both hops right, composition wrong (n = 2): at t1 some cell has the answer" in patched
    assert "0 % with another query's state and 0 % with a random vector" in patched
    assert "blocking t2 → t1 changes what is said most around layer" in finding(found, "knockout")


def test_what_was_left_out_is_said_with_its_reason(written: tuple[Study, Path]) -> None:
    found, page = written
    assert found.left_out
    for name, reason in found.left_out.items():
        subset = name.partition(".")[2]
        which = "questions over documents" if subset == "documents" else f"queries graded {subset}"
        assert f"Not run on {which}: {reason}." in finding(found, name.partition(".")[0])
    assert "Not run on" in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("n", "low", "high", "said"),
    [
        (6, 0.1, 0.4, "more than chance"),
        (9, -0.4, -0.1, "less than chance"),
        (9, -0.1, 0.2, "not told apart from chance"),
        (9, 0.0, 0.2, "not told apart from chance"),
        (5, 1.0, 1.0, "too few queries to tell"),
        (1, float("nan"), float("nan"), "too few queries to tell"),
    ],
)
def test_verdicts(n: int, low: float, high: float, said: str) -> None:
    assert findings.verdict({"n": n, "low": low, "high": high}) == said


def test_shares_and_differences_in_words() -> None:
    assert findings.with_interval(0.375, 0.12, 0.624) == "38 % (12\u201362)"
    assert findings.with_interval(1.0, float("nan"), float("nan")) == "100 %"
    assert findings.points(-0.065, -0.2, 0.07) == "-6 points (-20 to +7)"


def test_names_are_escaped(written: tuple[Study, Path], tmp_path: Path) -> None:
    found, _ = written
    run_record: dict[str, Any] = dict(found.grading.run)
    run_record["model"] = {**run_record["model"], "name": "<script>alert(1)</script>"}
    hostile = replace(found, grading=replace(found.grading, run=run_record))
    text = report.write(hostile, tmp_path).read_text("utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


# --- words on documents ---------------------------------------------------------------------------


def told(name: str, result: Result) -> tuple[str, dict[str, pd.DataFrame]]:
    """The findings and tables of one result on questions over documents."""
    found = Study(made_grading(RIGHT), {f"{name}.documents": result}, {}, Path())
    _, section = report.sections(found)
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
    assert re.search(r"backward over forward -38 points \(-\d+ to .{1,3}\): less than chance", said)
    assert "Under the mask document_block it answers" in said
    assert "backward over forward +0 points (+0 to +0): not told apart from chance" in said
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
    assert "Chosen by the highest peak: 100 %, +50 points (+50 to +50) over a random" in said
    assert "over a random shuffle: more than chance" in said
    assert "Chosen by the majority: 0 %, -50 points" in said
    assert "Chosen by an oracle: 100 %" in said


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
    assert "the same edge to a distractor 25 %: more than chance (the best of 2 windows)" in said
    assert len(tables["document_paths.documents.above_chance"]) == 2


# --- the same bytes ------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill."""


def killing_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the study when it has written `n` parts."""
    from hopscope import runs

    write, left = runs.write_part, iter(range(n))

    def dying(*args: Any) -> None:
        if next(left, None) is None:
            raise Killed
        write(*args)

    monkeypatch.setattr(runs, "write_part", dying)


@pytest.mark.parametrize("n", [1, 6])
def test_a_killed_study_ends_with_the_same_bytes(
    n: int, written: tuple[Study, Path], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        killing_after(n, patch)
        with pytest.raises(Killed):
            run(tmp_path)
    page = report.write(run(tmp_path), tmp_path)
    assert files(page.parent) == files(written[1].parent)


def test_a_smaller_study_leaves_nothing_of_a_larger_one(
    written: tuple[Study, Path], tmp_path: Path
) -> None:
    found, _ = written
    report.write(found, tmp_path)
    few = replace(found, results={}, left_out={})
    report.write(few, tmp_path)
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["grading.summary.csv"]
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"grading"}


def test_what_no_report_made_is_left_alone(written: tuple[Study, Path], tmp_path: Path) -> None:
    found, _ = written
    mine = [tmp_path / "figures" / "knockout.py", tmp_path / "tables" / "mine.csv"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("years of work")
    report.write(found, tmp_path)
    assert [path.read_text() for path in mine] == ["years of work"] * 2


def test_every_step_can_be_told() -> None:
    assert {"grading", *study.STEPS, "stages"} == set(ANALYSES)
    without_section = {"mask_gallery"}
    assert not without_section & set(ANALYSES)
    assert set(ANALYSES) | without_section == set(study.NEEDS)
