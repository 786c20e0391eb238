"""Probing: which queries can be probed, and that the scores are those of known states."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import loaded
from hopscope.probes import LinearProbe
from torch import Tensor

from hopscope.errors import QueryError, ResultError, UsageError
from hopscope.experiments.analysis import Scale
from hopscope.experiments.registry import REGISTERED
from hopscope.experiments.two_hop import probing
from hopscope.experiments.two_hop.probing import (
    Probing,
    fit_probe,
    labelled,
    probe,
    sample_entities,
)
from hopscope.models.language_model import LanguageModel
from hopscope.queries.load import load_queries
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery

BRIDGES = ("France", "Italy", "Spain")
SOURCES, QUESTIONS = 4, 2


def query(id: str, source: str, bridge: str, relation: str, kind: str = "country") -> TwoHopQuery:
    return TwoHopQuery(
        id=id,
        e1_label=source,
        e2_label=bridge,
        e3_label=f"{relation} of {bridge}",
        r1_template="The country of {}",
        r2_template=f"The {relation} of {{}}",
        e2_type=kind,
    )


def queries(*more: TwoHopQuery) -> QuerySet:
    """Three bridges of four sources each, about each of which two questions are asked."""
    asked = [
        query(f"{bridge}-{source}-{relation}", f"{bridge} city {source}", bridge, relation)
        for bridge in BRIDGES
        for source in range(SOURCES)
        for relation in ("capital", "currency")
    ]
    return QuerySet((*asked, *more), "made")


def test_classes_need_entities_and_entities_need_two_questions() -> None:
    lonely = query("lonely", "Lonely", "France", "capital")
    rare = [query(f"rare-{r}", "Rare", "Malta", r) for r in ("capital", "currency")]
    kept, labels, classes = labelled(queries(lonely, *rare), "e2", folds=4)
    assert classes == list(BRIDGES)
    assert {each.id for each in kept} == {each.id for each in queries()}
    assert [classes[label] for label in labels.tolist()] == [each.e2_label for each in kept]


def test_what_leaves_may_leave_others_alone() -> None:
    """One of an entity's two questions has a class that is too rare: the other goes, too."""
    one = query("one", "Janus", "France", "capital")
    other = query("other", "Janus", "Malta", "currency")
    kept, _, _ = labelled(queries(one, other), "e2", folds=4)
    assert not {"one", "other"} & {each.id for each in kept}


def test_too_few_are_told() -> None:
    with pytest.raises(QueryError, match=r"0 classes of e2 have 5 source entities.*larger limit"):
        labelled(queries(), "e2", folds=SOURCES + 1)


def test_types_are_classes_of_their_own() -> None:
    others = [
        query(f"{s}-{r}", f"person {s}", f"city {s}", r, "city")
        for s in range(SOURCES)
        for r in ("mayor", "river")
    ]
    kept, _, classes = labelled(queries(*others), "e2_type", folds=4)
    assert classes == ["city", "country"]
    assert len(kept) == len(queries()) + len(others)


def test_a_sample_keeps_entities_whole() -> None:
    sample = sample_entities(queries(), 9, seed=1)
    assert len(sample) == 8
    counts = pd.Series([each.e1_label for each in sample]).value_counts()
    assert set(counts) == {QUESTIONS}
    assert sample_entities(queries(), 9, seed=1).queries == sample.queries
    assert sample_entities(queries(), 24) == queries()


LAYERS = 4
READABLE = 2
"""The first layer whose states hold the bridge; before, they hold the source entity alone."""


def states(_: LanguageModel, asked: QuerySet, position: str, layers: list[int], __: bool) -> Tensor:
    assert position == "t1"
    sources = {each.e1_label: i for i, each in enumerate(asked)}
    draw = torch.Generator().manual_seed(0)
    codes = torch.randn(len(asked), 32, generator=draw)
    rows = []
    for each in asked:
        entity = codes[sources[each.e1_label]]
        bridge = torch.eye(3)[BRIDGES.index(each.e2_label)].repeat(20)
        late, early = torch.cat([entity, bridge]), torch.cat([entity, torch.zeros(60)])
        row = torch.stack([late if layer >= READABLE else early for layer in range(LAYERS)])
        rows.append(row + 0.01 * torch.randn(row.shape, generator=draw))
    return torch.stack(rows)[:, layers]


@pytest.fixture
def known_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_states", states)


@pytest.mark.usefixtures("known_states")
def test_the_bridge_is_read_from_its_layer_on() -> None:
    result = probe(loaded("tiny-random-llama"), queries(), folds=4, l2=1.0, progress=False)
    table = result.selectivity().set_index("layer")
    assert (table.loc[READABLE:, "new_entities"] == 1.0).all()
    assert (table.loc[: READABLE - 1, "new_entities"] < 0.7).all()
    assert (table.loc[READABLE:, "accuracy"] == 1.0).all()
    assert table["control"].mean() > 0.5  # the source entity, by heart
    difference = table["accuracy"] - table["control"]
    assert table["selectivity"].to_numpy() == pytest.approx(difference.to_numpy())
    assert table["majority"].to_numpy() == pytest.approx(1 / 3)
    assert result.best_layer() == READABLE


@pytest.mark.usefixtures("known_states")
def test_intervals_are_wilsons() -> None:
    result = probe(loaded("tiny-random-llama"), queries(), folds=4, l2=1.0, progress=False)
    row = result.summary().query("what == 'new_entities' and layer == 3").iloc[0]
    assert (row["n"], row["score"]) == (12, 1.0)  # source entities
    assert row["low"] == pytest.approx(12 / (12 + 1.959964**2))
    assert row["high"] == pytest.approx(1.0)
    pd.testing.assert_frame_equal(result.tables()["scores"], result.summary())
    (said,) = result.findings()
    assert "best at layer 2, of 4: 100 % (76–100), the largest class being 33 %" in said
    assert len(re.findall(r"\d % \(\d+–\d+\)", said)) == 3


@pytest.mark.usefixtures("known_states")
def test_chosen_layers_keep_their_numbers() -> None:
    model = loaded("tiny-random-llama")
    result = probe(model, queries(), folds=4, layers=[3, 1], progress=False)
    assert set(result.frame["layer"]) == {1, 3}
    assert result.best_layer() == 3
    fitted = fit_probe(model, queries(), folds=4, layers=[3, 1], progress=False)
    assert isinstance(fitted, LinearProbe)
    assert fitted.classes == BRIDGES


def test_states_are_those_of_the_model(llama: LanguageModel) -> None:
    found = probing._states(llama, queries()[:3], "t1", [0, 2], False)
    assert found.shape == (3, 2, llama.d_model)


def test_a_result_that_is_there_is_not_computed_again(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = probe(llama, queries(), folds=4, out=tmp_path / "run", progress=False)
    monkeypatch.setattr(probing, "_states", None)
    again = probe(llama, queries(), folds=4, out=tmp_path / "run", progress=False)
    pd.testing.assert_frame_equal(first.frame, again.frame)
    pd.testing.assert_frame_equal(Probing.load(tmp_path / "run").details, first.details)
    with pytest.raises(ResultError, match="holds another run: its settings"):
        probe(llama, queries(), folds=3, out=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target": "e3"}, "unknown target 'e3'"),
        ({"position": "t3"}, "unknown position 't3'"),
        ({"layers": [9]}, "layers are numbers from 0 to 3; got 9"),
        ({"folds": 1}, "folds must be 2 or more"),
    ],
)
def test_bad_input(llama: LanguageModel, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        probe(llama, queries(), progress=False, **wrong)  # type: ignore[arg-type]


def test_what_is_no_argument_is_told_with_the_name_of_the_function(llama: LanguageModel) -> None:
    with pytest.raises(TypeError, match=r"probe\(\) got an unexpected keyword argument 'depth'"):
        probe(llama, queries(), depth=2)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="unknown target 'e3'"):
        fit_probe(llama, queries(), target="e3")  # type: ignore[arg-type]


def test_a_study_probes_no_more_than_its_limit() -> None:
    """The command's `--limit` is also the number of queries that are probed."""
    chosen = REGISTERED["probing"].chosen
    assert chosen is not None
    world = load_queries("world")
    of_limit = chosen(world, Scale(None, 1, 60, 0))
    assert 30 < len(of_limit) <= 60
    assert len(chosen(world, Scale(None, 1, 1000, 0))) > 60
