"""Tests of the papers' numbers in figures: of which results, and where they go."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from known import known_model, known_queries
from matplotlib import pyplot as plt

import hopscope as hs
from hopscope.experiments.two_hop import description
from hopscope.study.figures import draw_figures
from hopscope.study.reference_marks import follows_paper, marks

SCRIPTS = Path(__file__).parents[2] / "figures"
HOPPING = "hopping-too-late"


@pytest.fixture
def usual_and_theirs(monkeypatch: pytest.MonkeyPatch) -> list[hs.Description]:
    """A result as hopscope makes it, and one by the authors' rules."""
    monkeypatch.setitem(description.PROMPTS, "sentences", "The country of")  # known words
    given = {"source_layers": [1], "target_layers": [0], "progress": False}
    queries = known_queries()[:2]
    return [
        hs.describe(known_model(), queries, ["t1", "t2"], preset=preset, **given)
        for preset in (None, HOPPING)
    ]


def test_a_result_follows_its_paper_if_every_rule_is_theirs(
    usual_and_theirs: list[hs.Description],
) -> None:
    usual, theirs = usual_and_theirs
    assert not follows_paper(usual)
    assert follows_paper(theirs)
    own = {"preset": HOPPING, "match": "word", "progress": False}
    assert not follows_paper(hs.back_patch(known_model(), known_queries()[:1], **own))
    shown = known_queries().with_few_shot(1)[:1]
    assert not follows_paper(hs.project(known_model(), shown, articles=True, progress=False))
    assert follows_paper(
        hs.project(known_model(), known_queries()[:1], articles=True, progress=False)
    )


def test_marks_are_the_papers_numbers_at_their_places(
    usual_and_theirs: list[hs.Description],
) -> None:
    usual, theirs = usual_and_theirs
    places = {("t1", "e2"): 0.0, ("t2", "e3"): 3.0}
    chosen = {"measure": "share", "subset": "correct"}
    ax = plt.figure().subplots()
    assert marks(ax, usual, "description", places, **chosen).empty
    assert not ax.lines
    drawn = marks(ax, theirs, "description", places, **chosen)
    found = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert found == {
        "Llama-3-8B-Instruct (CaKE)": [[0.0, 0.631], [3.0, 0.565]],
        "Qwen2.5-7B-Instruct (CaKE)": [[0.0, 0.712], [3.0, 0.712]],
    }
    assert len(drawn) == 4
    plt.close("all")


def test_the_figure_tells_which_numbers_are_the_papers(
    usual_and_theirs: list[hs.Description], tmp_path: Path
) -> None:
    for name, result in zip(("usual", "theirs"), usual_and_theirs, strict=True):
        result.save(tmp_path / name / "description.correct")
        draw_figures(SCRIPTS, ["description"], tmp_path / name, tmp_path / f"{name}.drawn")
    usual, theirs = (
        pd.read_csv(tmp_path / f"{name}.drawn" / "description.csv") for name in ("usual", "theirs")
    )
    assert "paper" not in usual
    reported = theirs[theirs["panel"] == "reference"]
    assert set(reported["model"]) == {"Llama-3-8B-Instruct", "Qwen2.5-7B-Instruct"}
    assert set(reported["subset"]) == {"correct"}
