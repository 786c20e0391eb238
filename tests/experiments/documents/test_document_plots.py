"""Tests of document_plots.py: what is drawn is what the tables say."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from drawn import labels_of, lines, over_layers, values
from matplotlib import pyplot as plt
from multidoc import QUESTION, SHORT, by_characters

from hopscope.documents.lay_out import lay_out
from hopscope.documents.question_set import Document
from hopscope.experiments.documents import plots
from hopscope.masks.named import causal
from hopscope.plots import mask_grid


@pytest.fixture(autouse=True)
def _closed_figures() -> object:
    yield
    plt.close("all")


def accuracy(*groups: tuple[str, str]) -> pd.DataFrame:
    rows = [
        (order, mask, way, 9, value, value - 0.1, value + 0.2)
        for number, (mask, way) in enumerate(groups)
        for order, value in (("forward", 0.5 + number / 10), ("forward_2", 0.25))
    ]
    names = ["order", "mask", "permuting", "n", "accuracy", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def test_order_points_are_the_accuracies() -> None:
    ax = plots.order_points(accuracy(("causal", "text"), ("mine", "text")), title="here")
    drawn = {str(each.get_label()): each for each in ax.containers}
    assert list(drawn) == ["causal", "mine"]
    for name, first in (("causal", 0.5), ("mine", 0.6)):
        dots, _, (whiskers,) = drawn[name].lines
        assert np.asarray(dots.get_ydata()).tolist() == [first, 0.25]
        places = np.asarray(dots.get_xdata())
        assert np.round(places).tolist() == [0, 1]
        ends = [(line[0, 1], line[1, 1]) for line in whiskers.get_segments()]
        assert ends == [pytest.approx((y - 0.1, y + 0.2)) for y in (first, 0.25)]
    one, other = (np.asarray(each.lines[0].get_xdata()) for each in drawn.values())
    assert (one < other).all()  # side by side
    assert labels_of(ax) == ["forward", "forward 2"]
    assert (ax.get_title(), ax.get_ylabel()) == ("here", "questions answered")


def test_numbers_without_an_interval_are_drawn_whole() -> None:
    """Few F1 values have none."""
    table = accuracy(("causal", "text")).assign(low=np.nan, high=np.nan)
    ax = plots.order_points(table)
    assert ax.get_ylim()[1] > 0.5
    ((_, _, (whiskers,)),) = (each.lines for each in ax.containers)
    assert not any(map(len, whiskers.get_segments()))
    rows = table.assign(retriever=["gold alone", "bm25"])
    ax = plots.retriever_points(rows, measure="f1")
    assert np.isfinite(ax.get_ylim()).all()
    ax.figure.draw_without_rendering()


def test_order_points_tell_ways_apart_if_there_are_several() -> None:
    ax = plots.order_points(accuracy(("causal", "text"), ("causal", "mask")))
    assert [each.get_label() for each in ax.containers] == ["causal, by text", "causal, by mask"]


PEAKS = pd.DataFrame(
    [
        ("a", "forward", "causal", 3.0, 1, 2, True),
        ("b", "forward", "causal", 2.0, 1, 2, True),
        ("c", "forward", "causal", 1.0, 1, 2, False),
        ("a", "backward", "causal", 0.5, 1, 2, False),
    ],
    columns=["query", "order", "mask", "peak", "document", "hop", "correct"],
)
COMPARE = pd.DataFrame(
    [
        ("forward", "causal", 2, 1, 2.5, 1.0, 1.0, 0.5),
        ("backward", "causal", 0, 1, np.nan, 0.5, np.nan, np.nan),
    ],
    columns=["order", "mask", "right", "wrong", "median_right", "median_wrong", "auc", "p"],
)


def test_peak_strips_have_a_dot_a_question_and_a_bar_at_the_median() -> None:
    ax = plots.peak_strips(PEAKS, COMPARE)
    assert labels_of(ax) == ["forward\n2 right, 1 wrong\nAUC 1.00", "backward\n0 right, 1 wrong"]
    drawn = [
        (line.get_color(), line.get_linestyle(), np.asarray(line.get_ydata()).tolist())
        for line in ax.get_lines()
        if len(np.asarray(line.get_ydata()))
    ]
    right, wrong = (plots.ANSWER_COLORS[each] for each in (True, False))
    assert drawn == [
        (right, "None", [3.0, 2.0]),
        (right, "-", [2.5, 2.5]),
        (wrong, "None", [1.0]),
        (wrong, "-", [1.0, 1.0]),
        (wrong, "None", [0.5]),
        (wrong, "-", [0.5, 0.5]),
    ]
    several = COMPARE.assign(mask=["causal", "document_block"])
    assert labels_of(plots.peak_strips(PEAKS, several))[0].startswith("forward\ncausal\n2 right")


def test_hop_lines() -> None:
    table = over_layers("mass", correct=[True, False], hop=[0, 1, 2])
    ax = plots.hop_lines(table, title="forward")
    assert lines(ax) == {
        f"{name}, {said} answer": values(table, "mass", correct=correct, hop=hop)
        for correct, said in ((True, "right"), (False, "wrong"))
        for hop, name in ((1, "first hop"), (2, "second hop"), (0, "others"))
    }
    assert ax.get_title() == "forward"


def test_strategy_points_are_the_summary() -> None:
    summary = pd.DataFrame(
        [("mean", 0.25, 0.1, 0.4), ("peak", 0.5, np.nan, np.nan), ("oracle", 0.75, 0.6, 0.9)],
        columns=["strategy", "accuracy", "low", "high"],
    )
    ax = plots.strategy_points(summary)
    assert labels_of(ax) == ["a random\nshuffle", "highest\npeak", "any is right\n(oracle)"]
    drawn = [np.asarray(line.get_ydata()).tolist() for line in ax.get_lines()]
    assert drawn == [[0.1, 0.4], [0.25], [0.5, 0.5], [0.5], [0.6, 0.9], [0.75]]


def test_path_lines() -> None:
    table = over_layers(
        "effect", edge=["question->gold 1", "last->gold 2"], control=["none", "distractor"]
    )
    ax = plots.path_lines(table)
    drawn = lines(ax)
    assert drawn.pop("to a distractor instead") == []
    assert drawn == {
        edge.replace("->", " → "): values(table, "effect", edge=edge, control="none")
        for edge in ("question->gold 1", "last->gold 2")
    }
    dotted = [line for line in ax.get_lines() if line.get_linestyle() == ":"][:2]
    assert [np.asarray(line.get_ydata()).tolist() for line in dotted] == [
        values(table, "effect", edge=edge, control="distractor")
        for edge in ("question->gold 1", "last->gold 2")
    ]
    assert ax.get_ylabel() == "answers that change"
    alone = table[table["control"] == "none"]
    ax = plots.path_lines(alone, measure="answer_change")
    assert "to a distractor instead" not in lines(ax)
    assert ax.get_ylabel() == "change of log P(answer), nats"


def test_a_mask_is_drawn_with_its_parts_named() -> None:
    layout = lay_out(by_characters, QUESTION, "forward", template=SHORT)
    seen = causal().keep(layout)[0].numpy()
    ax = mask_grid.mask_grid(seen, layout, title="causal")
    (image,) = ax.get_images()
    assert np.asarray(image.get_array()).tolist() == seen.tolist()
    names = ["instruction", "document 0", "hop 1", "document 2", "hop 2", "question"]
    assert labels_of(ax) == [label.get_text() for label in ax.get_yticklabels()] == names
    middles = [(start + end - 1) / 2 for start, end in layout.segments]
    assert ax.get_xticks().tolist() == middles
    assert ax.get_title() == "causal"


@pytest.mark.parametrize("size", [(4, 4), (9, 3), (3, 9)])
def test_names_of_many_short_parts_do_not_touch(size: tuple[float, float]) -> None:
    documents = tuple(Document("", "ab" * (1 + n % 3)) for n in range(60))
    question = replace(QUESTION, documents=documents, hops=QUESTION.hops)
    layout = lay_out(by_characters, question, template=SHORT)
    figure, ax = plt.subplots(figsize=size)
    causal().show(layout, ax)
    figure.draw_without_rendering()
    beside = [each.get_window_extent() for each in ax.get_yticklabels()]
    beside.sort(key=lambda box: box.y0)
    assert 5 < len(beside) < 60
    assert all(a.y1 <= b.y0 for a, b in pairwise(beside))
    below = sorted(label.get_position()[0] for label in ax.get_xticklabels())
    scale = ax.bbox.width / len(layout)
    height = beside[0].height
    assert len(below) >= 4
    assert all((b - a) * scale * math.sin(math.radians(40)) >= height for a, b in pairwise(below))
    names = {label.get_text() for label in ax.get_yticklabels()}
    assert "question" in names
    assert names & {"hop 1", "hop 2"}, "two documents in between: one of them has no room"


def test_a_prompt_without_an_instruction_has_no_name_for_it() -> None:
    layout = lay_out(by_characters, QUESTION, template=replace(SHORT, instruction=""), answer="a")
    ax = causal().show(layout)
    assert labels_of(ax)[0] == "document 0"
    assert labels_of(ax)[-2:] == ["question", "answer"]
