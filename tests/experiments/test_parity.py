"""Tests of the settings of papers: in Python, in the shell, and in a study."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from known import known_model, known_queries

import hopscope as hs
from hopscope import cli
from hopscope.commands import specs
from hopscope.errors import UsageError
from hopscope.experiments.analysis import PAPERS, Analysis
from hopscope.experiments.catalogue import analyses
from hopscope.experiments.two_hop import description
from hopscope.study.presets import PRESETS, Preset
from hopscope.study.study import Study, run_study

HOPPING = "hopping-too-late"
OF_THE_PAPER = [
    "grading",
    "back_patching",
    "cross_patching",
    "description",
    "projection",
    "knockout",
    "stages",
]
SMALL: dict[str, dict[str, Any]] = {
    "grading": {},
    "back_patching": {"cells": [(3, 1)]},
    "cross_patching": {"source_layers": [1], "target_layers": [0]},
    "description": {"source_layers": [1], "target_layers": [0]},
    "projection": {"positions": ["t2"]},
    "knockout": {"layers": [2]},
    "stages": {"layers": [1]},
}
"""What makes each analysis quick."""


@pytest.fixture(autouse=True)
def known_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target prompt is in words that the known model knows; see test_description.py."""
    monkeypatch.setitem(description.PROMPTS, "sentences", "The country of")


def entry(name: str) -> Analysis:
    return next(each for each in analyses() if each.name == name)


def asked(name: str, **settings: Any) -> Any:
    queries = known_queries()[:2].with_few_shot(2, 7)
    given = {**SMALL[name], "progress": False, **settings}
    return entry(name).function(known_model(), queries, **given)


def test_every_analysis_of_the_paper_has_its_setting() -> None:
    there = [each.name for each in analyses() if each.preset == HOPPING]
    assert there == OF_THE_PAPER
    for each in analyses():
        assert (each.preset is None) == (not each.parity)
        assert not set(each.parity) - set(each.own_parameters), each.name
        assert each.preset in (None, PAPERS.get(each.asks))
    with_option = [each.command for each in specs.list_specs() if each.parity]
    assert [entry(name).command for name in OF_THE_PAPER] == with_option[: len(OF_THE_PAPER)]


DESCRIBED: dict[str, Any] = {
    "prompts": ("sentences",),
    "samples": 3,
    "max_new_tokens": 10,
    "match": "substring",
    "naming": "delimited",
    "sampling": "checkpoint",
}
BLOCKED: dict[str, Any] = {
    "edges": (
        *("t2->t1", "t2->r1_word", "t2->r2_word"),
        *("t1->r1_word", "t1->r2_word", "r1_word->r2_word"),
    ),
    "window": 3,
    "max_new_tokens": 10,
    "match": "substring",
    "one_line": False,
    "compare": "answer",
}
THEIRS: dict[str, dict[str, Any]] = {
    "grading": {
        "match": "substring",
        "max_new_tokens": 10,
        "one_line": False,
        "relation_shortcut": "cut",
    },
    "back_patching": {"match": "substring", "stop_early": False},
    "cross_patching": {
        "routes": ("t1->r2(x)", "t1->r2(r1(x))", "r2->x(r1(e1))"),
        "match": "substring",
        "stop_early": False,
    },
    "description": DESCRIBED,
    "projection": {"articles": True},
    "knockout": BLOCKED,
    "stages": {
        "second_stage": "mean",
        "knockout_layer": "middle",
        "description": DESCRIBED,
        "knockout": {**BLOCKED, "edges": ("t2->t1",)},
        "projection": {"articles": True},
    },
}
"""What the authors' code does, as docs/papers.md says it."""


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_the_setting_is_that_of_the_authors(name: str) -> None:
    assert dict(entry(name).parity) == THEIRS[name]


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_a_preset_is_its_arguments_without_demonstrations(name: str) -> None:
    result = asked(name, preset=HOPPING)
    parity = {**entry(name).parity, **SMALL[name]}
    queries = known_queries()[:2].with_few_shot(0, 7)
    same = entry(name).function(known_model(), queries, progress=False, **parity)
    pd.testing.assert_frame_equal(result.frame, same.frame)
    for part in ("settings", "queries"):
        assert result.run[part] == same.run[part]
    assert result.run["queries"]["few_shot"] == 0
    usual = asked(name)
    assert usual.run["queries"]["few_shot"] == 2
    for setting, value in entry(name).parity.items():
        if setting not in (
            "description",
            "knockout",
            "projection",
            "prompts",
            "sampling",
            "routes",
        ):
            assert result.run["settings"][setting] == (
                list(value) if isinstance(value, tuple) else value
            )
    assert asked(name, preset=None).run["settings"] == usual.run["settings"]


def test_what_is_given_wins() -> None:
    result = asked("knockout", preset=HOPPING, match="word", edges=["t2->t1"])
    assert result.run["settings"]["match"] == "word"
    assert result.run["settings"]["edges"] == ["t2->t1"]
    assert result.run["settings"]["compare"] == "answer"
    stepped = asked("knockout", preset=HOPPING, layers=None)
    assert stepped.run["settings"]["layers"] == list(range(6))


def test_an_unknown_preset_is_told() -> None:
    message = "unknown preset 'hopping-to-late': choose one of hopping-too-late; did you mean"
    with pytest.raises(UsageError, match=message):
        asked("projection", preset="hopping-to-late")
    with pytest.raises(TypeError, match="unexpected keyword argument 'preset'"):
        hs.recall(known_model(), known_queries()[:2], preset=HOPPING)
    with pytest.raises(UsageError, match="queries must be a QuerySet"):
        hs.project(known_model(), ["The capital"], preset=HOPPING)  # type: ignore[arg-type]


def shell(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """What a command exits with, and prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["hopscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    done = capsys.readouterr()
    return int(stop.value.code or 0), done.out, done.err


@pytest.fixture
def known_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """Options that ask the known model the known queries."""
    monkeypatch.setattr("hopscope.loading.load_model", lambda *_, **__: known_model())
    known_queries().to_csv(tmp_path / "known.csv")
    return ("-q", tmp_path / "known.csv", "--json")


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_the_shell_has_the_setting(
    name: str,
    known_command: tuple[object, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    of_subset = entry(name).asks == "subset"
    more = ("--subset", "correct", "-o", tmp_path / "run") if of_subset else ()
    step = () if name in ("grading", "projection") else ("--layer-step", 3)
    code, out, err = shell(capsys, entry(name).command, *known_command, "--parity", *more, *step)
    assert code == 0, err
    run = json.loads(out)["run"]
    expected = {**entry(name).parity}
    settings = run["settings"]
    for setting in ("match", "compare", "naming", "articles", "relation_shortcut", "samples"):
        if setting in expected:
            assert settings[setting] == expected[setting]
    assert run["queries"]["few_shot"] == 0
    if name == "cross_patching":
        assert tuple(settings["routes"]) == expected["routes"]
        assert not settings["stop_early"]
    if name == "stages":
        assert settings["second_stage"] == "mean"
        assert settings["description"]["naming"] == "delimited"
    if of_subset:
        grading = hs.load_result(tmp_path / "run.grading").run
        assert grading["settings"]["relation_shortcut"] == "cut"
        assert (grading["settings"]["match"], grading["settings"]["one_line"]) == (
            "substring",
            False,
        )


def test_options_that_are_given_win_in_the_shell(
    known_command: tuple[object, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Also where they are what they would be by themselves."""
    more = ("--parity", "--match", "word", "--layer-step", 3, "-o", tmp_path / "run")
    code, out, err = shell(capsys, "knockout", *known_command, *more)
    assert code == 0, err
    settings = json.loads(out)["run"]["settings"]
    assert (settings["match"], settings["compare"]) == ("word", "answer")
    graded = hs.load_result(tmp_path / "run.grading").run["settings"]
    assert (graded["match"], graded["relation_shortcut"]) == ("word", "cut")
    code, out, err = shell(
        capsys, "grade", *known_command, "--parity", "--relation-shortcut", "whole"
    )
    settings = json.loads(out)["run"]["settings"]
    assert (settings["match"], settings["relation_shortcut"]) == ("substring", "whole")


@pytest.mark.parametrize(
    "command",
    [("grade", "--parity"), ("describe", "--parity"), ("study", "--preset", HOPPING)],
    ids=" ".join,
)
def test_demonstrations_are_refused_beside_it(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = shell(capsys, *command, "-m", "no-such-model", "--few-shot", 3)
    assert code == 2
    assert "has no demonstrations: leave out --few-shot 3" in " ".join(err.split())


def test_inconsistent_queries_in_the_shell(
    known_command: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = shell(capsys, "recall", *known_command, "--subset", "inconsistent")
    assert code == 0, err
    assert json.loads(out)["run"]["queries"]["n"] == 3


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    size = Preset(limit=None, most=3, layer_step=3, setting=HOPPING)
    steps = [*OF_THE_PAPER, "recall"]
    folder = tmp_path_factory.mktemp("study")
    queries = known_queries().with_few_shot(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(description.PROMPTS, "sentences", "The country of")
        return run_study(known_model(), queries, folder, size, steps, progress=False)


def test_a_study_in_the_setting_of_the_paper(study: Study) -> None:
    assert PRESETS[HOPPING].setting == HOPPING
    assert study.grading.run["settings"]["relation_shortcut"] == "cut"
    assert not [name for name in study.left_out if "incorrect" in name]
    for name, result in study.results.items():
        assert result.run["queries"]["few_shot"] == 0, name
    settings = {name: each.run["settings"] for name, each in study.results.items()}
    assert settings["back_patching.correct"]["stop_early"] is False
    assert settings["back_patching.correct"]["cells"] == [[3, 0]]
    assert settings["description.correct"]["naming"] == "delimited"
    assert settings["projection.correct"]["articles"] is True
    assert settings["knockout.correct"]["compare"] == "answer"
    assert settings["stages.correct"]["second_stage"] == "mean"
    assert settings["stages.correct"]["knockout_layer"] == "middle"
    assert settings["stages.correct"]["description"] == settings["description.correct"]


def test_runs_of_earlier_versions_go_on(tmp_path: Path) -> None:
    """What a record lacks was as it is by default today; another setting is another run."""
    for name in OF_THE_PAPER[:-1]:
        folder = tmp_path / name
        before = asked(name, out=folder)
        record = json.loads((folder / "run.json").read_text("utf-8"))
        added = entry(name).result.added_settings
        assert bool(added) == (name not in {"back_patching", "cross_patching"})
        for setting in added:
            assert record["settings"].pop(setting) == added[setting]
        (folder / "run.json").write_text(json.dumps(record), "utf-8")
        sorted(folder.glob("frame-*.parquet"))[-1].unlink()
        pd.testing.assert_frame_equal(asked(name, out=folder).frame, before.frame)
        read = hs.load_result(folder)
        assert read.run["settings"] == before.run["settings"]
        if added:
            with pytest.raises(UsageError, match="holds another run"):
                asked(name, out=folder, preset=HOPPING)
