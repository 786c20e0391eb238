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
from known import CORRECT, INCORRECT, known_model, known_queries

from hopscope.study import report
from hopscope.study.presets import Preset
from hopscope.study.study import Study, run_study, study_analyses

SMALL = Preset(limit=None, most=2, layer_step=2)

ANALYSES = {"grading", *(each.name for each in study_analyses())}


def run(folder: Path, steps: Sequence[str] | None = None) -> Study:
    return run_study(known_model(), known_queries(), folder / "runs", SMALL, steps, progress=False)


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


def test_every_analysis_has_its_section_figure_and_tables(written: tuple[Study, Path]) -> None:
    found, page = written
    text = page.read_text("utf-8")
    sections = re.findall(r'<h2 id="(\w+)"', text)
    listed = re.findall(r'<li id="(\w+)"', text.partition('<h2 id="not-run">')[2])
    assert {*sections, *listed} == ANALYSES
    assert listed, "some find no query"
    there = files(page.parent)
    for name in ANALYSES:
        ran = name == "grading" or any(key.startswith(f"{name}.") for key in found.results)
        assert (name in sections) == ran, name
        assert (f"figures/{name}.png" in there) == ran, name
        assert any(key.startswith(f"tables/{name}.") for key in there) == ran, name


def test_the_page_needs_no_other_file(written: tuple[Study, Path]) -> None:
    _, page = written
    text = page.read_text("utf-8")
    sources = re.findall(r'(?:src|href)="([^"#][^"]*)"', text)
    assert sources
    for source in sources:
        assert source.startswith("data:image/png;base64,")
        assert base64.b64decode(source.partition(",")[2]).startswith(b"\x89PNG")
    assert "http" not in text


def test_the_page_is_interactive_with_no_server(written: tuple[Study, Path]) -> None:
    found, page = written
    text = page.read_text("utf-8")
    shown = [name for name in found.results if name.startswith(("back_patching", "description"))]
    assert text.count('data-hopscope="') == len(shown) > 0
    assert text.count("function renderGrid(") == 1
    assert 'src="data:image/png;base64,' in text
    assert "://" not in text.partition("<script")[2]


def test_tables_are_the_results_own(written: tuple[Study, Path]) -> None:
    found, page = written
    table = pd.read_csv(page.parent / "tables" / "back_patching.incorrect.success_rate.csv")
    expected = found.results["back_patching.incorrect"].success_rate()  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(table, expected, check_dtype=False, atol=1e-5)


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
    assert "0 % (0–66) with another query's state and 0 % (0–66) with a random vector" in patched
    assert "blocking t2 → t1 changes what is said most around layer" in finding(found, "knockout")


NOT_OF_QUERIES = (
    *("chance 50 %", "by chance", "the largest class being"),
    *("the mean over layers is", "a random one is right for", "the same sign in", "tenth"),
)
"""What stands before levels that chance has, and before means of a share of each query, which few
queries tell without an interval."""


def test_every_share_of_queries_is_told_with_its_interval(written: tuple[Study, Path]) -> None:
    told = 0
    for section in report.sections(written[0]):
        if section.name in ("head_classes", "rank_neighbours"):  # of heads, of ranks
            continue
        for sentence in section.findings:
            for share in re.finditer(r"\d+ %", sentence):
                before, after = sentence[: share.end()], sentence[share.end() :]
                if any(name in before[-40:] for name in NOT_OF_QUERIES):
                    continue
                assert re.match(r" \(\d+–\d+\)", after), (section.name, sentence)
                told += 1
    assert told > 20


def test_what_was_left_out_is_said_with_its_reason(written: tuple[Study, Path]) -> None:
    found, page = written
    assert found.left_out
    for name, reason in found.left_out.items():
        subset = name.partition(".")[2]
        which = "questions over documents" if subset == "documents" else f"queries graded {subset}"
        assert f"Not run on {which}: {reason}." in finding(found, name.partition(".")[0])
    assert "Not run on" in page.read_text("utf-8")


def test_the_box_at_the_top_says_what_matters_and_how_sure_it_is(
    written: tuple[Study, Path],
) -> None:
    found, page = written
    named = [section for section in report.sections(found) if section.headline is not None]
    assert {"back_patching", "knockout"} <= {section.name for section in named}
    assert len(named) <= 5
    box = page.read_text("utf-8").partition('<section class="first">')[2].partition("</section>")[0]
    assert re.findall(r'<a href="#(\w+)">More', box) == [section.name for section in named]
    assert "Too few queries to tell it apart from another query&#39;s state (n = 2)." in box


def test_the_contents_lead_to_every_section(written: tuple[Study, Path]) -> None:
    text = written[1].read_text("utf-8")
    places = re.findall(r'<h2 id="([\w-]+)"', text)
    assert re.findall(r'<li><a href="#([\w-]+)">', text) == places


def test_terms_are_explained_once_a_sentence_and_only_as_words() -> None:
    shown = report.explained("t1 < t1 and cells at1 in nats")
    assert re.sub(r' title="[^"]*"', "", shown) == (
        "<abbr>t1</abbr> &lt; t1 and cells at1 in <abbr>nats</abbr>"
    )
    assert {"t1", "t2", "e1", "e2", "e3", "r1", "r2", "cell", "IC", "EntRec", "nats"} == set(
        report.GLOSSARY
    )


def test_figures_have_their_natural_size(written: tuple[Study, Path]) -> None:
    text = written[1].read_text("utf-8")
    sized = re.findall(r'width="(\d+)" src="data:image/png;base64,([^"]*)"', text)
    assert len(sized) == text.count("<img")
    for width, image in sized:
        pixels = int.from_bytes(base64.b64decode(image)[16:20], "big")
        assert int(width) == pytest.approx(pixels / 300 * 96, abs=1)


def test_a_figure_whose_numbers_are_all_zero_shows_nothing() -> None:
    zero = pd.DataFrame({"layer": [1, 2], "effect": [0.0, None]})
    assert not report.shows_something(zero)
    assert report.shows_something(zero.assign(value=[0.0, 0.1]))
    assert report.shows_something(zero[["layer"]])


def test_names_are_escaped(written: tuple[Study, Path], tmp_path: Path) -> None:
    found = with_few(written[0])
    run_record: dict[str, Any] = dict(found.grading.run)
    run_record["model"] = {**run_record["model"], "name": "<script>alert(1)</script>"}
    hostile = replace(found, grading=replace(found.grading, run=run_record))
    text = report.write(hostile, tmp_path).read_text("utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def with_few(found: Study) -> Study:
    """The study with the results of one analysis, whose page is written sooner."""
    few = {name: each for name, each in found.results.items() if name.startswith("knockout.")}
    return replace(found, results=few, left_out={})


class Killed(Exception):
    """Stands for a kill."""


def killing_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the study when it has written `n` parts."""
    from hopscope.results import runs

    write, left = runs.write_part, iter(range(n))

    def dying(*args: Any) -> None:
        if next(left, None) is None:
            raise Killed
        write(*args)

    monkeypatch.setattr(runs, "write_part", dying)


def test_a_killed_study_ends_with_the_same_bytes(tmp_path: Path) -> None:
    steps = ["description", "knockout", "projection", "document_order"]  # and so stages
    whole = report.write(run(tmp_path / "whole", steps), tmp_path / "whole")
    for n in (1, 6):
        with pytest.MonkeyPatch.context() as patch:
            killing_after(n, patch)
            with pytest.raises(Killed):
                run(tmp_path / str(n), steps)
        page = report.write(run(tmp_path / str(n), steps), tmp_path / str(n))
        assert files(page.parent) == files(whole.parent)


def test_a_smaller_study_leaves_nothing_of_a_larger_one(
    written: tuple[Study, Path], tmp_path: Path
) -> None:
    found = with_few(written[0])
    report.write(found, tmp_path)
    assert (tmp_path / "figures" / "knockout.png").is_file()
    few = replace(found, results={}, left_out={})
    report.write(few, tmp_path)
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["grading.summary.csv"]
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"grading"}


def test_what_no_report_made_is_left_alone(written: tuple[Study, Path], tmp_path: Path) -> None:
    found = with_few(written[0])
    mine = [tmp_path / "figures" / "knockout.py", tmp_path / "tables" / "mine.csv"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("years of work")
    report.write(found, tmp_path)
    assert [path.read_text() for path in mine] == ["years of work"] * 2
