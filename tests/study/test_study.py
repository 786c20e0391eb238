"""Tests of study.py and of the figure scripts: what is run, and what is drawn from it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from first_document import FORM, first_model, first_questions
from known import (
    CORRECT,
    INCORRECT,
    RIGHT,
    known_model,
    known_queries,
    made_back_patching,
    made_grading,
)

import hopscope as hs
from hopscope.documents.question_set import QuestionSet
from hopscope.errors import ResultError, UsageError
from hopscope.experiments.analysis import limited
from hopscope.experiments.documents.order_choice import OrderChoice
from hopscope.experiments.documents.permutation import STUDIED_MASKS, Permutation
from hopscope.experiments.two_hop.back_patching import BackPatching, cells_of
from hopscope.models.load import load_model
from hopscope.queries.query_set import QuerySet
from hopscope.study import study
from hopscope.study.figures import draw_figures, figure_scripts, results_of, scripts_folder
from hopscope.study.presets import PRESETS, Preset, preset
from hopscope.study.standalone_figures import STANDALONE_FIGURES
from hopscope.study.study import (
    COMPOSED,
    Study,
    estimate_study,
    run_study,
    study_analyses,
    study_folder,
)

SCRIPTS = Path(__file__).parents[2] / "figures"
CELLS = [(a, b) for a in range(5) for b in range(a)]
FIGURES = ["back_patching", "grading"]
SMALL = Preset(limit=None, most=2, layer_step=3)


def made(seed: int, controls: tuple[str, ...] = ("none", "other", "random")) -> BackPatching:
    """A result of some queries, with hits drawn by seed."""
    rng = np.random.default_rng(seed)
    hits = {
        (f"q{i}", position, control): {cell for cell in CELLS if rng.random() < 0.1}
        for i in range(7)
        for position in ("t1", "t2")
        for control in controls
    }
    return made_back_patching(hits, CELLS)


def save_all(runs: Path) -> Path:
    """Save the results that the figures are drawn from."""
    made_grading(RIGHT).save(runs / "grading")
    made(0).save(runs / "back_patching.incorrect")
    made(1).save(runs / "back_patching.correct")
    return runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_all(tmp_path_factory.mktemp("study") / "runs")


@pytest.fixture(scope="module")
def drawn(runs: Path) -> dict[str, Path]:
    """The files of all figures, drawn once, by name."""
    paths = draw_figures(SCRIPTS, FIGURES, runs, runs.parent / "rendered")
    return {path.name: path for path in paths}


def test_presets() -> None:
    assert preset("paper") == Preset(limit=None, most=None, layer_step=1)
    quick = preset("quick")
    assert quick.limit is not None
    assert quick.most is not None
    assert quick.layer_step > 1


def test_an_unknown_preset_is_told() -> None:
    with pytest.raises(
        UsageError, match="unknown preset 'full': choose one of quick, paper, hopping-too-late"
    ):
        preset("full")
    assert set(PRESETS) == {"quick", "paper", "hopping-too-late"}


@pytest.mark.parametrize(
    ("step", "cells"),
    [(2, [(2, 0), (4, 0), (4, 2)]), (3, [(3, 0)]), (4, [(4, 0)]), (5, [])],
)
def test_cells_of_every_so_many_layers(step: int, cells: list[tuple[int, int]]) -> None:
    assert cells_of(range(0, 5, step)) == cells


def test_limited_draws_by_seed() -> None:
    queries = known_queries()
    assert limited(queries, None) is queries
    assert limited(queries, 12) is queries
    assert limited(queries, 99) is queries
    drawn = [tuple(query.id for query in limited(queries, 4, seed)) for seed in (0, 0, 1)]
    assert len(drawn[0]) == 4
    assert drawn[0] == drawn[1] != drawn[2]


def run(folder: Path, queries: QuerySet | None = None, size: Preset = SMALL) -> Study:
    """The known model's study, of back-patching alone."""
    asked = known_queries() if queries is None else queries
    return run_study(known_model(), asked, folder, size, ["back_patching"], progress=False)


def test_what_figures_need() -> None:
    every = [each.name for each in study_analyses()]
    assert [each.name for each in study_analyses(["grading"])] == []
    assert [each.name for each in study_analyses(["stages", "back_patching"])] == [
        "back_patching",
        "description",
        "projection",
        "knockout",
        "stages",
    ]
    assert not set(every) & set(STANDALONE_FIGURES)
    drawn = {*every, *STANDALONE_FIGURES, *COMPOSED, "grading"}
    assert drawn == set(figure_scripts(SCRIPTS, []))


def test_a_study_grades_and_back_patches_both_subsets(tmp_path: Path) -> None:
    study = run(tmp_path)
    assert [query.id for query in study.grading.incorrect()] == INCORRECT
    assert list(study.results) == ["back_patching.incorrect", "back_patching.correct"]
    assert not study.left_out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "back_patching.correct",
        "back_patching.incorrect",
        "grading",
    ]
    for name, subset in (("incorrect", INCORRECT), ("correct", CORRECT)):
        result = hs.load_result(tmp_path / f"back_patching.{name}")
        assert isinstance(result, BackPatching)
        assert set(result.frame["query"]) < set(subset)
        assert result.frame["query"].nunique() == SMALL.most
        assert set(result.frame["source_layer"]) == {3}
        assert result.run["settings"]["cells"] == [[3, 0]]


def test_a_study_goes_on(tmp_path: Path) -> None:
    run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    next(tmp_path.glob("back_patching.correct/frame-*.parquet")).unlink()
    run(tmp_path)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert set(after) == set(before)
    same = [path for path in before if path.parent.name != "back_patching.correct"]
    assert same
    assert all(after[path] == before[path] for path in same)


def test_a_subset_without_queries_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    right = known_queries().filter(lambda query: query.id in CORRECT)
    study = run(tmp_path, right)
    assert "no query was graded incorrect" in study.left_out["back_patching.incorrect"]
    assert not (tmp_path / "back_patching.incorrect").exists()
    assert (tmp_path / "back_patching.correct").exists()
    assert "no query was graded incorrect" in caplog.text


def test_what_a_family_cannot_do_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hybrid, whose blocks do not all have attention, has no projection; the rest goes on."""
    model = load_model("tiny-random-llama", device="cpu")
    monkeypatch.setitem(model.probed, "why plain", "a test says so")
    monkeypatch.setitem(model.probed, "writers", [None] * model.n_layers)
    asked = known_queries()[:2]
    graded = made_grading({query.id: {"first_hop", "second_hop"} for query in asked})
    monkeypatch.setattr(
        "hopscope.study.study.grade", lambda *_, **__: replace(graded, queries=asked)
    )
    steps = ["back_patching", "projection"]
    study = run_study(model, asked, tmp_path, SMALL, steps, progress=False)
    assert "attn_out cannot be read or changed in" in study.left_out["projection.incorrect"]
    assert list(study.results) == ["back_patching.incorrect"]


def test_the_limit_bounds_what_is_graded(tmp_path: Path) -> None:
    size = replace(SMALL, limit=5)
    assert len(run(tmp_path, size=size).grading.verdicts()) == 5


def test_a_study_has_a_folder_of_its_own(tmp_path: Path) -> None:
    model, queries = known_model(), replace(known_queries(), name="my set/2.csv")
    folder = study_folder(tmp_path, model, queries, "quick")
    assert folder.parent == tmp_path
    assert folder.name == "known.my-set-2-csv.0-shot.quick"
    assert study_folder(tmp_path, model, queries, "paper") != folder


def test_a_study_asks_each_analysis_its_usual_questions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def loaded(name: str, **_: Any) -> QuestionSet:
        asked.append(name)
        return first_questions()

    monkeypatch.setattr("hopscope.study.study.load_questions", loaded)
    size = Preset(limit=None, most=2, layer_step=1, questions=3)
    task: Any = study._Task(first_model(), known_queries(), Any, tmp_path, size, 0, False)  # type: ignore[arg-type]
    steps = {each.name: each for each in study_analyses() if each.asks == "documents"}
    found = {name: len(task.inputs(entry, "documents")) for name, entry in steps.items()}
    assert dict(zip(steps, asked, strict=True))["haystack"] == "world-docs-shared"
    assert set(asked) == {"world-docs", "world-docs-shared"}
    assert (found["document_order"], found["haystack"]) == (3, 2)


DOCUMENT_STEPS = ["document_order", "attention_peaks", "order_choice", "document_paths"]


@pytest.fixture(scope="module")
def over_documents(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of a model that says the name in the first document."""
    folder = tmp_path_factory.mktemp("documents")
    asked = known_queries()[:2]
    graded = replace(made_grading({query.id: set() for query in asked}), queries=asked)
    given = first_questions()
    size = Preset(limit=None, most=2, layer_step=1, questions=3, shuffles=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hopscope.study.study.grade", lambda *_, **__: graded)
        patch.setattr("hopscope.study.study.load_questions", lambda *_, **__: given)
        patch.setattr("hopscope.prompting.document_prompts.template_for", lambda *_: FORM)
        return run_study(first_model(), asked, folder, size, DOCUMENT_STEPS, progress=False)


def test_a_study_asks_over_documents(over_documents: Study) -> None:
    assert not over_documents.left_out
    assert list(over_documents.results) == [f"{name}.documents" for name in DOCUMENT_STEPS]
    found = over_documents.results
    order = results_of(over_documents.folder, "document_order", Permutation)["documents"]
    assert set(order.frame["mask"]) == set(STUDIED_MASKS)
    accuracy = order.accuracy().set_index(["mask", "order"])["accuracy"]["causal"]
    assert accuracy.to_dict() == {"original": 0, "forward": 0, "backward": 1}
    attention, choice, paths = (found[f"{name}.documents"] for name in DOCUMENT_STEPS[1:])
    assert set(attention.frame["order"]) == {"forward", "backward"}
    assert choice.frame.groupby("query").size().tolist() == [4, 4, 4]
    assert paths.frame["query"].nunique() == 2
    assert set(paths.frame["layer"]) == {0, 1}


def test_results_are_found_by_subset(over_documents: Study, tmp_path: Path) -> None:
    folder = over_documents.folder
    assert list(results_of(folder, "order_choice", OrderChoice)) == ["documents"]
    with pytest.raises(ResultError, match="holds no order-choice result"):
        results_of(tmp_path, "order_choice", OrderChoice)


@pytest.mark.parametrize("name", DOCUMENT_STEPS)
def test_a_figure_over_documents_is_drawn(over_documents: Study, name: str, tmp_path: Path) -> None:
    paths = draw_figures(SCRIPTS, [name], over_documents.folder, tmp_path)
    assert [path.name for path in paths] == [f"{name}.{each}" for each in ("png", "svg", "csv")]
    again = draw_figures(SCRIPTS, [name], over_documents.folder, tmp_path / "again")
    for one, other in zip(paths, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    table = pd.read_csv(paths[2])
    if name == "document_order":
        expected = results_of(over_documents.folder, name, Permutation)["documents"].accuracy()
        pd.testing.assert_frame_equal(table, expected, rtol=1e-5, check_dtype=False)
    if name == "document_paths":
        assert set(table["measure"]) == {"changed", "answer_change"}
    with pytest.raises(ResultError, match=f"holds no {name.replace('_', '-')} result"):
        draw_figures(SCRIPTS, [name], tmp_path / "empty", tmp_path)


def test_the_gallery_of_masks_needs_no_result(tmp_path: Path) -> None:
    paths = draw_figures(SCRIPTS, ["mask_gallery"], tmp_path / "nothing", tmp_path)
    table = pd.read_csv(paths[2])
    causal = table[table["mask"] == "causal"]["sees"].tolist()
    assert causal == list(range(1, len(causal) + 1))
    whole = table[table["mask"] == "prefix bidirectional"]["sees"]
    assert set(whole) == {len(causal)}


def test_each_script_is_a_figure() -> None:
    assert {"back_patching", "grading"} <= set(figure_scripts(SCRIPTS, []))
    assert list(figure_scripts(SCRIPTS, ["grading"])) == ["grading"]


def test_an_unknown_figure_is_told() -> None:
    with pytest.raises(UsageError, match=r"no figure 'bagging' in .*: there is attention_peaks, "):
        figure_scripts(SCRIPTS, ["grading", "bagging"])


def test_scripts_are_those_of_a_checkout_or_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = scripts_folder()
    assert packaged.is_absolute()
    assert {path.name for path in SCRIPTS.glob("[!_]*.py")} <= {
        path.name for path in packaged.glob("*.py")
    }
    (tmp_path / "figures" / "rendered").mkdir(parents=True)
    assert scripts_folder() == packaged, "what was drawn here is no checkout"
    (tmp_path / "figures" / "mine.py").touch()
    assert scripts_folder() == Path("figures")


def test_a_folder_without_scripts_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no figure scripts in .*another folder to --scripts"):
        figure_scripts(tmp_path, [])


def test_figures_are_drawn_from_saved_results(drawn: dict[str, Path], runs: Path) -> None:
    expected = [f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg", "csv")]
    assert list(drawn) == expected
    assert sorted(path.name for path in (runs.parent / "rendered").iterdir()) == sorted(expected)
    assert all(path.stat().st_size > 100 for path in drawn.values())


def test_drawing_again_gives_the_same_bytes(
    drawn: dict[str, Path], runs: Path, tmp_path: Path
) -> None:
    with mpl.rc_context({"font.size": 22.0, "figure.facecolor": "pink", "svg.hashsalt": None}):
        draw_figures(SCRIPTS, FIGURES, runs, tmp_path)
    for name, path in drawn.items():
        assert path.read_bytes() == (tmp_path / name).read_bytes(), name


def test_another_process_draws_the_same_bytes(
    drawn: dict[str, Path], runs: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from hopscope.study.figures import draw_figures; "
        "draw_figures(Path(sys.argv[1]), [], *map(Path, sys.argv[2:]))"
    )
    arguments = [str(SCRIPTS), str(runs), str(tmp_path)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    for name, path in drawn.items():
        assert path.read_bytes() == (tmp_path / name).read_bytes(), name


def numbers(runs: Path, folder: Path) -> pd.DataFrame:
    draw_figures(SCRIPTS, ["back_patching"], runs, folder)
    return pd.read_csv(folder / "back_patching.csv")


def loaded(runs: Path) -> Mapping[str, BackPatching]:
    found = {}
    for name in ("incorrect", "correct"):
        result = hs.load_result(runs / f"back_patching.{name}")
        assert isinstance(result, BackPatching)
        found[name] = result
    return found


def assert_rates(drawn: pd.DataFrame, subset: str, rates: pd.DataFrame) -> None:
    """Check that the drawn rows of a subset are these rates."""
    here = drawn[drawn["subset"] == subset].reset_index(drop=True)
    pd.testing.assert_frame_equal(here[list(rates.columns)], rates, rtol=1e-5)


def test_the_numbers_are_the_success_rates(drawn: dict[str, Path], runs: Path) -> None:
    table = pd.read_csv(drawn["back_patching.csv"])
    bars = table[table["panel"] == "any cell"]
    for name, result in loaded(runs).items():
        assert_rates(bars, name, result.success_rate())
    assert bars[["source_layer", "target_layer"]].isna().all(axis=None)


def test_right_compositions_are_drawn_by_how_many_cells_keep_them(
    drawn: dict[str, Path], runs: Path
) -> None:
    table = pd.read_csv(drawn["back_patching.csv"])
    shares = table[table["panel"] == "mean of cells"]
    for name, result in loaded(runs).items():
        assert_rates(shares, name, result.cell_rate())
    picture = drawn["back_patching.svg"].read_text("utf-8")
    assert picture.count("in any cell") == picture.count("mean of queries") == 1


def test_the_numbers_are_the_heatmaps(drawn: dict[str, Path], runs: Path) -> None:
    table = pd.read_csv(drawn["back_patching.csv"])
    cells = table[table["panel"] == "cell"]
    controls = ("none", "other", "random")
    assert len(cells) == 2 * 2 * len(controls) * len(CELLS)
    keys = product(loaded(runs).items(), ("t1", "t2"), controls)
    for (name, result), position, control in keys:
        share = result.heatmap(position, control)
        where = {"subset": name, "position": position, "control": control}
        here = cells[(cells[list(where)] == pd.Series(where)).all(axis=1)]
        assert len(here) == len(CELLS)
        for a, b, rate in zip(
            here["source_layer"], here["target_layer"], here["rate"], strict=True
        ):
            assert rate == pytest.approx(share.loc[b, a], abs=1e-6)


def test_the_numbers_of_grading_are_its_summary(drawn: dict[str, Path]) -> None:
    table = pd.read_csv(drawn["grading.csv"])
    pd.testing.assert_frame_equal(table, made_grading(RIGHT).summary(), rtol=1e-5)


def test_one_subset_of_one_query_without_controls_is_drawn(tmp_path: Path) -> None:
    hits = {("q", "t1", "none"): {(1, 0)}}
    made_back_patching(hits, [(1, 0)]).save(tmp_path / "runs" / "back_patching.correct")
    table = numbers(tmp_path / "runs", tmp_path)
    assert set(table["subset"]) == {"correct"}
    assert table["panel"].tolist() == ["any cell", "mean of cells", "cell"]
    assert table["rate"].tolist() == [1.0, 1.0, 1.0]
    assert table["low"].notna().tolist() == [
        True,
        False,
        False,
    ]  # a share has one, a mean of one none


def test_missing_results_are_told(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"holds no back-patching result.*--limit"):
        draw_figures(SCRIPTS, ["back_patching"], tmp_path, tmp_path / "rendered")
    with pytest.raises(ResultError, match="is not a run folder"):
        draw_figures(SCRIPTS, ["grading"], tmp_path, tmp_path / "rendered")
    assert not (tmp_path / "rendered").exists()


def test_a_result_of_another_kind_is_told(tmp_path: Path) -> None:
    runs = save_all(tmp_path / "runs")
    made(0).save(runs / "grading")
    with pytest.raises(ResultError, match="grading"):
        draw_figures(SCRIPTS, ["grading"], runs, tmp_path / "rendered")
    made_grading(RIGHT).save(runs / "back_patching.correct")
    with pytest.raises(ResultError, match=r"back_patching\.correct"):
        draw_figures(SCRIPTS, ["back_patching"], runs, tmp_path / "rendered")


def test_a_study_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_study(known_model(), known_queries(), tmp_path, SMALL, ["back_patching", "recall"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "analyses are done" in line]
    assert [line.rpartition("\r")[2] for line in lines] == [
        "1 of 3 analyses are done, next is back_patching",
        "2 of 3 analyses are done, next is recall",
    ]


def test_what_a_study_costs_is_told_before_and_nothing_is_written(tmp_path: Path) -> None:
    model, queries = known_model(), known_queries()
    size = replace(SMALL, questions=2, shuffles=2)
    found = estimate_study(model, queries, tmp_path, size, seconds=0)
    assert list(tmp_path.iterdir()) == []
    assert found["grading"].n == len(queries)
    assert found["recall.correct"].n <= 2
    names = {f"{each.name}.{subset}" for each in study_analyses() for subset in each.subsets}
    assert set(found) <= {"grading", *names}
    run_study(model, queries, tmp_path, size, ["recall"], progress=False)
    done = estimate_study(model, queries, tmp_path, size, seconds=0)
    assert "grading" not in done
    assert done["recall.correct"].n == 0
    assert done["back_patching.correct"].n == 2


def test_an_analysis_that_does_not_fit_the_context_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a world's model knows has few tokens, and some analyses ask more than it reads."""
    model = load_model("world:two-hop-looped", device="cpu")
    queries = hs.load_queries("world:two-hop-looped.in_distribution")
    size = Preset(limit=6, most=2, layer_step=1, questions=1, shuffles=2, probed=6)
    steps = ["description", "document_order"]
    found = run_study(model, queries, tmp_path, size, steps, progress=False)
    assert set(found.left_out) >= {"description.correct", "document_order.documents"}
    assert "description.correct is left out" in caplog.text
