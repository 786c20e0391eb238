"""Tests of the papers' numbers in figures: of which results, and where they go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from known import known_model, known_queries
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import hopscope as hs
from hopscope.experiments.documents.attention import DocumentAttention
from hopscope.experiments.documents.order_choice import OrderChoice
from hopscope.experiments.documents.permutation import Permutation
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
    blocked = {"layers": [1], "progress": False, "preset": HOPPING}
    assert follows_paper(hs.knockout(known_model(), known_queries()[:1], **blocked))


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
    assert set(reported["measure"]) == {"share"}
    assert set(reported["model"]) == {"Llama-3-8B-Instruct", "Qwen2.5-7B-Instruct"}
    assert set(reported["subset"]) == {"correct"}


OF_DOCUMENTS = {"few_shot": 0, "name": "three", "n": 3}


def over_documents(kind: str, template: object, family: str = "llama") -> hs.Result:
    """Results of three questions by hand: of their order, or of the attention to two documents."""
    told = {"read": "generated"} if kind == "attention_peaks" else {}
    run = {
        "settings": {"template": template, **told},
        "queries": OF_DOCUMENTS,
        "model": {"name": "small", "family": family, "n_layers": 1},
    }
    queries, verdicts = ["a", "b", "c"], [True, True, False]
    details = pd.DataFrame(
        {"query": queries, "order": "original", "mask": "causal", "names": '["Yoko"]'}
    )
    details["contained"] = verdicts
    details["generation"] = ["Yoko" if right else "John" for right in verdicts]
    if kind == "attention_peaks":
        rows = [
            (query, "original", "causal", 0, 0, document, document, document, 0.2 + document)
            for query in queries
            for document in (0, 1)
        ]
        frame = pd.DataFrame(rows, columns=list(DocumentAttention.columns))
        return DocumentAttention(frame, details, run)
    rows = [
        (query, order, "causal", "text", text, right, right, right, 1.0, False)
        for order in ("forward", "original")
        for query, right, text in zip(queries, verdicts, details["generation"], strict=True)
    ]
    return Permutation(pd.DataFrame(rows, columns=list(Permutation.columns)), details, run)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures that scripts draw, to look into."""
    kept: list[Figure] = []
    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", kept.append)
        yield kept
    plt.close("all")


def of_papers(figure: Figure, paper: str) -> dict[str, list[list[float]]]:
    """The marks of a paper's numbers, by their labels."""
    lines = [line for ax in figure.axes for line in ax.lines if paper in str(line.get_label())]
    return {str(line.get_label()): line.get_xydata().tolist() for line in lines}


def test_descriptions_are_marked_at_the_bars_of_the_querys_own_entity(
    usual_and_theirs: list[hs.Description], tmp_path: Path, figures: list[Figure]
) -> None:
    usual_and_theirs[1].save(tmp_path / "description.correct")
    draw_figures(SCRIPTS, ["description"], tmp_path, tmp_path / "drawn")
    bars = sorted(each.get_x() + each.get_width() / 2 for each in figures[0].axes[0].patches)
    for found in of_papers(figures[0], "CaKE").values():
        for x, _ in found:
            assert any(x == pytest.approx(bar) for bar in bars[::2])


def test_back_patching_is_marked_for_wrong_compositions(
    tmp_path: Path, figures: list[Figure]
) -> None:
    given = {"cells": [(3, 1)], "progress": False, "preset": HOPPING}
    for subset in ("incorrect", "correct"):
        result = hs.back_patch(known_model(), known_queries()[:2], **given)
        result.save(tmp_path / f"back_patching.{subset}")
    draw_figures(SCRIPTS, ["back_patching"], tmp_path, tmp_path / "drawn")
    found = of_papers(figures[0], "Hopping Too Late")
    assert sorted(y for each in found.values() for _, y in each) == [0.32, 0.57, 0.66]
    assert {x for each in found.values() for x, _ in each} == {0.5}  # beside t1 and t2
    table = pd.read_csv(tmp_path / "drawn" / "back_patching.csv")
    assert set(table[table["panel"] == "reference"]["subset"]) == {"incorrect"}


def test_the_choice_of_an_order_is_marked_at_the_highest_peak(
    tmp_path: Path, figures: list[Figure]
) -> None:
    rows = [
        (query, shuffle, f"shuffle_{shuffle}", "Yoko", 1.0 + shuffle, True, True, True, 1.0)
        for query in "ab"
        for shuffle in (0, 1)
    ]
    details = pd.DataFrame({"query": ["a", "b"], "names": '["Yoko"]'})
    run = {
        "settings": {"template": "paper_whole", "read": "generated", "k": 2},
        "queries": {**OF_DOCUMENTS, "n": 2},
        "model": {"name": "small", "family": "llama", "n_layers": 1},
    }
    result = OrderChoice(pd.DataFrame(rows, columns=list(OrderChoice.columns)), details, run)
    assert len(drawn_of(result, "order_choice", tmp_path)) == 2
    ax, found = figures[0].axes[0], of_papers(figures[0], "Masking")
    place = [label.get_text() for label in ax.get_xticklabels()].index("highest\npeak")
    assert sorted(found.values()) == [[[place + 0.2, 0.286]], [[place + 0.2, 0.337]]]


def drawn_of(result: hs.Result, name: str, folder: Path) -> pd.DataFrame:
    """What the figure's table has of the papers."""
    result.save(folder / "runs" / f"{name}.documents")
    draw_figures(SCRIPTS, [name], folder / "runs", folder)
    table = pd.read_csv(folder / f"{name}.csv")
    return table[table["paper"].notna()] if "paper" in table else table.head(0)


@pytest.mark.parametrize(
    ("template", "family", "best"),
    [
        ("paper", "llama", {"Llama-3.1-8B": 0.3637, "Qwen2.5-0.5B": 0.0894}),
        ("paper", "t5", {"Flan-T5-xxl": 0.5643, "Flan-T5-small": 0.2011}),
        ("paper_cot", "llama", {"Llama-3.1-8B": 0.446, "Qwen2.5-0.5B": 0.1291}),
    ],
)
def test_the_order_of_documents_has_the_papers_accuracy_of_its_template(
    template: str, family: str, best: dict[str, float], tmp_path: Path
) -> None:
    result = over_documents("document_order", template, family)
    table = drawn_of(result, "document_order", tmp_path).set_index("model")
    assert len(table) == 5
    assert table.loc[list(best), "value"].to_dict() == best


@pytest.mark.parametrize("template", ["answer_only", {"metric": "paper", "answer": "line"}])
@pytest.mark.parametrize("name", ["document_order", "attention_peaks"])
def test_of_other_templates_nothing_is_told(name: str, template: object, tmp_path: Path) -> None:
    assert drawn_of(over_documents(name, template), name, tmp_path).empty


def test_peaks_have_the_papers_medians_beside_right_and_wrong_answers(
    tmp_path: Path, figures: list[Figure]
) -> None:
    result = over_documents("attention_peaks", "paper_whole")
    table = drawn_of(result, "attention_peaks", tmp_path).set_index("subset")
    assert table["value"].to_dict() == {"right": 2.22, "wrong": 1.72}
    found = of_papers(figures[0], "Masking in Multi-hop QA")
    assert found == {"Masking in Multi-hop QA": [[-0.36, 2.22], [0.36, 1.72]]}  # right is left


def test_marks_stand_at_the_original_order(tmp_path: Path, figures: list[Figure]) -> None:
    drawn_of(over_documents("document_order", "paper"), "document_order", tmp_path)
    found = of_papers(figures[0], "Masking")
    assert len(found) == 5
    for ((x, y),) in found.values():
        assert x == pytest.approx(1.42)  # forward is at 0
        assert y < figures[0].axes[0].get_ylim()[1]
