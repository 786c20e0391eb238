"""Tests of the papers' numbers in figures: of which results, and where they go."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from known import known_model, known_queries
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import hopscope as hs
from hopscope.experiments.documents.attention import DocumentAttention
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


def test_peaks_have_the_papers_medians_beside_right_and_wrong_answers(tmp_path: Path) -> None:
    result = over_documents("attention_peaks", "paper_whole")
    table = drawn_of(result, "attention_peaks", tmp_path).set_index("subset")
    assert table["value"].to_dict() == {"right": 2.22, "wrong": 1.72}
    ax = plt.figure().subplots()
    places = {("right",): -0.36, ("wrong",): 0.36}
    marks(ax, result, "attention_peaks", places, by=("subset",))
    (line,) = ax.lines
    assert line.get_label() == "Masking in Multi-hop QA"
    assert line.get_xydata().tolist() == [[-0.36, 2.22], [0.36, 1.72]]
    plt.close("all")


def test_marks_stand_at_the_original_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(plt, "close", kept.append)
    drawn_of(over_documents("document_order", "paper"), "document_order", tmp_path)
    (ax,) = kept[0].axes
    reported = [line for line in ax.lines if "Masking" in str(line.get_label())]
    assert len(reported) == 5
    for line in reported:
        assert line.get_xdata() == pytest.approx([1.42])  # forward is at 0
        assert line.get_ydata()[0] < ax.get_ylim()[1]
