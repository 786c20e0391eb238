"""Tests of stages: how three results become one axis, how often its order breaks, and a known run.

The names of the stages are long; `BRIDGE` to `PREDICTION` stand for them, in the paper's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from math import sqrt
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest
from known import known_queries
from test_projection import readable_model

import hopscope as hs
from hopscope.errors import QueryError, ResultError, UsageError
from hopscope.experiments.two_hop.attention_knockout import Knockouts, knockout
from hopscope.experiments.two_hop.description import PROMPTS, Description
from hopscope.experiments.two_hop.projection import Projection
from hopscope.experiments.two_hop.stages import MEAN_STAGE as MEAN_TEMPLATE
from hopscope.experiments.two_hop.stages import STAGES, Stages, combine, stages
from hopscope.queries.query_set import QuerySet

MODULES = {
    name: import_module(f"hopscope.experiments.two_hop.{module}")
    for name, module in (
        ("description", "description"),
        ("knockout", "attention_knockout"),
        ("projection", "projection"),
    )
}
MEAN_STAGE = MEAN_TEMPLATE.format("t1")
ENTITIES, CONTROLS = ("e1", "e2", "e3"), ("e2_other", "e3_other")
BRIDGE, KNOCKOUT, ATTENTION, ANSWER, PREDICTION = STAGES
Firsts = Mapping[str, tuple[int | None, ...]]
"""For each query the first layer of each stage; None where it never shows."""

BY_HAND: Firsts = {
    "a": (1, 2, 2, 3, 5),
    "b": (3, 2, 4, 5, 5),  # the bridge leaves t1 before it is described there
    "c": (None, 4, None, 2, 1),  # each stage before the one that should come first
    "d": (2, None, None, None, None),
    "e": (None, None, None, None, None),
    "f": (0, 6, 1, 3, 4),  # the two measures of the second stage have no order of their own
}


def run_of(kind: str, model: str = "m", queries: str = "q") -> dict[str, Any]:
    return {
        "kind": kind,
        "settings": {"of": kind},
        "model": {"name": "made-up", "sha256": model},
        "queries": {"name": "by-hand", "n": len(BY_HAND), "sha256": queries},
    }


def made(firsts: Firsts) -> tuple[Description, Knockouts, Projection]:
    """Three results in which each stage shows at its first layer, at the next, and not before.

    Rows that have nothing to do with the stages say layer 0.
    """
    described, knocked, projected = [], [], []
    layers = range(7)
    for query, (bridge, bites, attention, answer, prediction) in firsts.items():
        for layer in layers:
            named = [{"e2": shows(bridge, layer)}, {"e3": shows(answer, layer), "e2": True}]
            for position, entities in zip(("t1", "t2"), named, strict=True):
                row = dict.fromkeys([*ENTITIES, *CONTROLS], False) | {"e1": True, **entities}
                keys = {"query": query, "prompt": "description", "position": position}
                cell = {"sample": 0, "source_layer": layer, "target_layer": 6 - layer}
                described.append({**keys, **cell, **row, "generation": ""})
            for edge, control, there in (
                ("t2->t1", "none", shows(bites, layer)),
                ("t2->t1", "random", True),
                ("t2->e1", "none", True),
            ):
                row = {"query": query, "edge": edge, "control": control}
                knocked.append({**row, "layer": layer, "changed": there})
            for position, site, target, there in (
                ("t2", "attn_out", "e2", shows(attention, layer)),
                ("t2", "mlp_out", "prediction", shows(prediction, layer)),
                ("t1", "attn_out", "e2", True),
                ("t2", "attn_out", "prediction", True),
                ("t2", "mlp_out", "e2", True),
            ):
                row = {"query": query, "position": position, "site": site, "target": target}
                rank = 0 if there else 1
                projected.append({**row, "layer": layer, "rank": rank, "logprob": -1.0})
    details = pd.DataFrame({"query": list(firsts), "prompt": "p", "bridge": "b", "answer": "a"})
    return (
        Description(pd.DataFrame(described), details, run_of("description")),
        Knockouts(pd.DataFrame(knocked), details, run_of("knockout")),
        Projection(pd.DataFrame(projected), details, run_of("projection")),
    )


def shows(first: int | None, layer: int) -> bool:
    return first is not None and layer in (first, first + 1)


def first_layers(result: Stages) -> dict[str, tuple[int | None, ...]]:
    wide = result.frame.pivot(index="query", columns="stage", values="first_layer")
    return {
        str(query): tuple(None if np.isnan(row[stage]) else int(row[stage]) for stage in STAGES)
        for query, row in wide.iterrows()
    }


def test_the_first_layer_of_each_stage() -> None:
    result = combine(*made(BY_HAND))
    assert list(result.frame.columns) == ["query", "stage", "number", "first_layer"]
    assert first_layers(result) == BY_HAND
    assert len(result.frame) == len(BY_HAND) * len(STAGES)
    numbers = result.frame.groupby("stage", sort=False)["number"].unique()
    assert {stage: list(found) for stage, found in numbers.items()} == {
        BRIDGE: [1],
        KNOCKOUT: [2],
        ATTENTION: [2],
        ANSWER: [3],
        PREDICTION: [4],
    }


def test_a_combined_result_tells_where_it_is_from(tmp_path: Path) -> None:
    result = combine(*made(BY_HAND))
    assert result.run["kind"] == "stages"
    assert result.run["model"]["sha256"] == "m"
    kinds = ("description", "knockout", "projection")
    assert result.run["settings"] == {
        **{kind: {"of": kind} for kind in kinds},
        "tolerance": 0,
        "second_stage": "apart",
        "knockout_layer": "end",
    }
    assert list(result.details.columns) == ["query", "prompt", "bridge", "answer"]
    assert repr(result) == "Stages(made-up, by-hand, 6 queries, 30 rows)"
    read = hs.load_result(result.save(tmp_path / "run"))
    assert isinstance(read, Stages)
    pd.testing.assert_frame_equal(read.frame, result.frame)
    pd.testing.assert_frame_equal(read.broken(), result.broken())


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("key", ["model", "queries"])
def test_results_of_different_runs_are_refused(which: int, key: str) -> None:
    results: list[Any] = list(made(BY_HAND))
    other = run_of(results[which].kind, **{key: "another"})
    results[which] = replace(results[which], run=other)
    with pytest.raises(ResultError, match=f"the three results are not of the same {key}: run desc"):
        combine(*results)


def test_summary_by_hand() -> None:
    table = combine(*made(BY_HAND)).summary()
    share = ["share", "share_low", "share_high"]
    names = ["stage", "number", "queries", "n", *share, "mean", "low", "high"]
    assert list(table.columns) == names
    assert list(table["stage"]) == list(STAGES)
    assert list(table["number"]) == [1, 2, 2, 3, 4]
    assert list(table["queries"]) == [6] * 5
    assert list(table["n"]) == [4, 4, 3, 4, 4]
    assert list(table["share"]) == pytest.approx([4 / 6, 4 / 6, 3 / 6, 4 / 6, 4 / 6])
    shares = table[share].itertuples(index=False, name=None)
    for row, n in zip(shares, (4, 4, 3, 4, 4), strict=True):
        assert row == pytest.approx((n / 6, *wilson(6, n)))
    means = [6 / 4, 14 / 4, 7 / 3, 13 / 4, 15 / 4]
    assert list(table["mean"]) == pytest.approx(means)
    assert table[["low", "high"]].isna().all(axis=None)  # a stage shows in four of them at most


def test_the_mean_first_layer_has_an_interval() -> None:
    table = combine(*made({f"q{n}": (n, n + 1, n, 3, 4) for n in range(6)})).summary()
    first = table.iloc[0]
    assert first["low"] < first["mean"] < first["high"]


def test_a_stage_that_never_shows_has_no_mean() -> None:
    table = combine(*made({"a": (None, 1, 2, 3, 4), "b": (None, 2, 2, 3, 4)})).summary()
    never = table.set_index("stage").loc[BRIDGE]
    assert (never["queries"], never["n"], never["share"]) == (2, 0, 0.0)
    assert never[["mean", "low", "high"]].isna().all()
    assert list(table["n"]) == [0, 2, 2, 2, 2]


BROKEN = {
    (BRIDGE, KNOCKOUT): (3, 1),  # b, of a, b, f
    (BRIDGE, ATTENTION): (3, 0),
    (BRIDGE, ANSWER): (3, 0),
    (BRIDGE, PREDICTION): (3, 0),
    (KNOCKOUT, ANSWER): (4, 2),  # c and f, of a, b, c, f
    (KNOCKOUT, PREDICTION): (4, 2),
    (ATTENTION, ANSWER): (3, 0),
    (ATTENTION, PREDICTION): (3, 0),
    (ANSWER, PREDICTION): (4, 1),  # c; in b both are at one layer
    ("any", "any"): (4, 3),  # in d one stage shows, in e none: they have no order
}


def wilson(n: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, by the textbook."""
    z, share = 1.959963984540054, count / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def test_broken_orders_by_hand() -> None:
    table = combine(*made(BY_HAND)).broken()
    assert list(table.columns) == ["earlier", "later", "n", "broken", "share", "low", "high"]
    found = table.set_index(["earlier", "later"])
    assert {key: (row["n"], row["broken"]) for key, row in found.iterrows()} == BROKEN
    assert list(found.index) == list(BROKEN)
    for key, (n, count) in BROKEN.items():
        row = found.loc[key]
        assert row["share"] == pytest.approx(count / n)
        assert (row["low"], row["high"]) == pytest.approx(wilson(n, count), abs=1e-9)


def test_an_order_that_no_query_shows_is_unknown() -> None:
    table = combine(*made({"d": BY_HAND["d"], "e": BY_HAND["e"]})).broken()
    assert len(table) == len(BROKEN)
    assert set(table["n"]) == set(table["broken"]) == {0}
    assert table[["share", "low", "high"]].isna().all(axis=None)


def test_an_order_that_all_keep() -> None:
    table = combine(*made({"a": BY_HAND["a"], "b": (0, 1, 2, 3, 4)})).broken()
    assert set(table["n"]) == {2}
    assert set(table["broken"]) == {0}
    assert set(table["low"]) == {0.0}
    assert table["high"].iloc[0] == pytest.approx(wilson(2, 0)[1])


def lagging(n: int, by: int, odd: int) -> Stages:
    """Stages of n queries of which the bridge lags by layers; every second by `odd` more."""
    firsts = {f"q{k}": (k % 3 + by + odd * (k % 2), None, k % 2, 4, 5) for k in range(n)}
    return combine(*made(firsts))


def test_what_shows_later_in_other_queries() -> None:
    early, late = lagging(12, 0, 0), lagging(8, 2, 0)
    table = late.later_than(early).set_index("stage")
    row = table.loc[BRIDGE]
    assert (row["n"], row["n_other"]) == (8, 12)
    assert (row["mean"], row["mean_other"]) == pytest.approx((2 + 7 / 8, 1))
    assert row["difference"] == pytest.approx(1 + 7 / 8)
    assert 0 < row["low"] < row["difference"] < row["high"] < 4
    assert row["p"] < row["p_holm"] < 0.05
    assert table.loc[ATTENTION, "p"] > 0.5
    assert table.loc[KNOCKOUT, "n"] == 0
    unknown = ["difference", "low", "high", "p", "p_holm"]
    assert table.loc[KNOCKOUT, unknown].isna().all()
    assert table.loc[ANSWER, "difference"] == pytest.approx(0)
    assert table.loc[ANSWER, unknown[1:]].isna().all()


def test_what_shows_later_in_queries_of_other_relations_is_compared_within_the_same() -> None:
    """Of twelve queries those of the later relations are half of one set, and most of the other."""
    queries = QuerySet(
        tuple(
            hs.TwoHopQuery(f"q{k}", "a", "b", "c", f"the r{k % 2} of {{}}", "the s of {}")
            for k in range(12)
        )
    )
    whole = lagging(12, 0, 3)
    mostly_odd = whole.frame["query"].isin([f"q{k}" for k in (0, 1, 3, 4, 5, 7, 9, 11)])
    odd = replace(whole, frame=whole.frame[mostly_odd])
    assert odd.later_than(whole)["difference"].iloc[0] > 0.5
    within = odd.later_than(whole, queries).iloc[0]
    assert abs(within["difference"]) < 0.5
    firsts = odd.frame[odd.frame["stage"] == BRIDGE].set_index("query")["first_layer"]
    every = whole.frame[whole.frame["stage"] == BRIDGE].set_index("query")["first_layer"]
    found, weights = [], []
    for one in (0, 1):
        a, b = ([x for q, x in each.items() if int(q[1:]) % 2 == one] for each in (every, firsts))
        found.append(np.mean(b) - np.mean(a))
        weights.append(len(a) * len(b) / (len(a) + len(b)))
    assert within["difference"] == pytest.approx(np.average(found, weights=weights))
    with pytest.raises(QueryError, match="not in the query set"):
        odd.later_than(whole, queries.filter(lambda query: query.id != "q4"))


def test_stages_of_another_model_are_not_compared() -> None:
    one = lagging(6, 0, 0)
    other = replace(one, run={**one.run, "model": {"name": "other", "sha256": "n"}})
    with pytest.raises(ResultError, match="different models"):
        one.later_than(other)


def chosen(*ids: str) -> QuerySet:
    return known_queries().filter(lambda query: query.id in ids)


def staged(queries: QuerySet, **settings: Any) -> Stages:
    return stages(readable_model(), queries, progress=False, **settings)


@pytest.fixture
def short_target_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target prompt is in words that the known model knows; see test_description.py."""
    monkeypatch.setitem(PROMPTS, "description", "The country of")


KNOWN: Firsts = {
    # Described as the bridge at t1 from block 1 on and read off attention in 2; as the answer at
    # t2 from block 2 on, whose bridge can still be answered; written by the MLP of block 3. A
    # knockout with three blocks on each side reaches block 2 from block 0 on: it ends in 3.
    "early-1": (1, 3, 2, 2, 3),
    # Named in block 3, taken over in 4, where the first window that bites ends; the bridge is said
    # by the MLP of block 5. Before it is named, the token of a source can still be: layer 0.
    "late-1": (0, 4, 4, 4, 5),
}


@pytest.mark.usefixtures("short_target_prompt")
def test_known_stages() -> None:
    result = staged(chosen("early-1", "late-1"))
    assert first_layers(result) == KNOWN
    broken = result.broken().set_index(["earlier", "later"])
    assert broken["broken"].sum() == 1 + 1  # early-1 alone: the window is wide
    assert broken.loc[(KNOCKOUT, ANSWER), ["n", "broken"]].tolist() == [2, 1]
    assert broken.loc[("any", "any"), ["n", "broken"]].tolist() == [2, 1]
    assert list(result.details["answer"]) == ["Alba", "Crag"]
    kinds = {"description", "knockout", "projection"}
    assert set(result.run["settings"]) == {*kinds, "tolerance", "second_stage", "knockout_layer"}
    assert result.run["settings"]["tolerance"] == 0
    assert result.run["settings"]["knockout"]["edges"] == ["t2->t1"]


@pytest.mark.usefixtures("short_target_prompt")
def test_layers_of_the_description_can_be_skipped() -> None:
    result = staged(chosen("early-1", "late-1"), layer_step=3, seed=4)
    settings = dict(result.run["settings"])
    assert settings.pop("tolerance") == 2
    assert settings["description"]["source_layers"] == [0, 3]
    assert settings["description"]["target_layers"] == [0, 3]
    assert settings["knockout"]["layers"] == list(range(6))
    assert {settings[kind]["seed"] for kind in MODULES} == {4}
    # Of the known cells (see test_description.py) those of layers 0 and 3 are left.
    assert {query: found[0] for query, found in first_layers(result).items()} == {
        "early-1": None,
        "late-1": 0,
    }
    assert {query: found[3] for query, found in first_layers(result).items()} == {
        "early-1": 3,
        "late-1": None,
    }


def windowed(results: tuple[Description, Knockouts, Projection]) -> tuple[Any, ...]:
    """The same with a knockout of windows of two layers on each side."""
    described, knocked, projected = results
    run = {**knocked.run, "settings": {"window": 2}}
    return described, replace(knocked, run=run), projected


def test_the_second_stage_of_the_papers_code_by_hand() -> None:
    """The mean, of those that show, of the middle, attention and e2 at t2 (here always at 0)."""
    parts = windowed(made(BY_HAND))
    described = parts[0].frame
    late = (described["position"] == "t2") & (described["source_layer"] < 4)
    described.loc[late | (described["query"] == "d"), "e2"] = False  # e2 at t2 from layer 4 on
    result = combine(*parts, second_stage="mean", knockout_layer="middle")
    assert list(result.summary()["stage"]) == [BRIDGE, MEAN_STAGE, ANSWER, PREDICTION]
    assert list(result.summary()["number"]) == [1, 2, 3, 4]
    found = result.frame[result.frame["stage"] == MEAN_STAGE].set_index("query")["first_layer"]
    expected = {"a": (2 + 2 + 4) / 3, "b": (2 + 4 + 4) / 3, "c": (4 + 4) / 2, "e": 4.0}
    for query, mean in {**expected, "f": (6 + 1 + 4) / 3}.items():
        assert found[query] == pytest.approx(mean), query
    assert np.isnan(found["d"])
    broken = result.broken().set_index(["earlier", "later"])["broken"]
    assert broken[BRIDGE, MEAN_STAGE] == 0
    assert broken[MEAN_STAGE, ANSWER] == 2  # c and f
    assert {result.run["settings"][name] for name in ("second_stage", "knockout_layer")} == {
        "mean",
        "middle",
    }
    assert "information leaves t1, mean of three layer" in result.findings()[0]
    assert len(result.plot().get_yticks()) == 4


def test_a_knockout_bites_at_the_end_or_the_middle_of_its_window() -> None:
    end, middle = (
        combine(*windowed(made(BY_HAND)), knockout_layer=each)  # type: ignore[arg-type]
        for each in ("end", "middle")
    )
    assert [first_layers(each)["a"][1] for each in (end, middle)] == [4, 2]


@pytest.mark.usefixtures("short_target_prompt")
def test_parts_take_their_own_settings() -> None:
    result = staged(
        chosen("early-1"),
        layer_step=3,
        description={"max_new_tokens": 3, "target_layers": [1]},
        knockout={"window": 0, "compare": "answer"},
        projection={"articles": True},
        knockout_layer="middle",
    )
    settings = result.run["settings"]
    assert settings["description"]["max_new_tokens"] == 3
    assert settings["description"]["source_layers"] == [0, 3]
    assert settings["description"]["target_layers"] == [1]
    assert (settings["knockout"]["window"], settings["knockout"]["compare"]) == (0, "answer")
    assert settings["projection"]["articles"] is True
    assert first_layers(result)["early-1"][1] == 2  # see BITES of test_attention_knockout.py


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"knockout": {"windows": 1}}, "unknown setting of knockout 'windows': .*mean window"),
        ({"knockout": {"window": -1}}, "window must be 0 or more, not -1"),
        ({"description": {"match": "words"}}, "unknown match 'words'"),
        ({"projection": ["articles"]}, "projection must be a dictionary of settings with any of"),
        ({"second_stage": "means"}, "unknown second_stage 'means': .*mean"),
    ],
    ids=str,
)
def test_a_mistaken_setting_of_a_part_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        staged(chosen("early-1"), **settings)


def test_the_papers_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROMPTS, "sentences", "The country of")
    given: dict[str, Any] = {"description": {"samples": 1}, "layer_step": 3}
    result = staged(chosen("early-1").with_few_shot(2), preset="hopping-too-late", **given)
    settings = result.run["settings"]
    assert (settings["second_stage"], settings["knockout_layer"]) == ("mean", "middle")
    assert settings["description"]["samples"] == 1  # which was given, beside the paper's
    assert settings["description"]["naming"] == "delimited"
    assert settings["knockout"]["edges"] == ["t2->t1"]
    assert settings["knockout"]["compare"] == "answer"
    assert settings["projection"]["articles"] is True
    assert result.run["queries"]["few_shot"] == 0


def refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("it was run again")


@pytest.mark.usefixtures("short_target_prompt")
def test_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, out = chosen("early-1", "late-1"), tmp_path / "deep" / "run"
    whole = staged(queries, layer_step=2)
    with monkeypatch.context() as stopped:
        stopped.setattr(MODULES["projection"], "capture", refuse)
        with pytest.raises(AssertionError, match="it was run again"):
            staged(queries, layer_step=2, out=out)
    assert sorted(path.name for path in out.iterdir()) == ["description", "knockout"]
    with monkeypatch.context() as done:
        done.setattr("hopscope.prompting.query_prompts.sweep", refuse)
        result = staged(queries, layer_step=2, out=out)
        done.setattr(MODULES["projection"], "capture", refuse)
        again = staged(queries, layer_step=2, out=out)
    for each in (result, again, hs.load_result(out / "stages")):
        assert isinstance(each, Stages)
        pd.testing.assert_frame_equal(each.frame, whole.frame)
    kinds = [type(hs.load_result(out / name)) for name in MODULES]
    assert kinds == [Description, Knockouts, Projection]


@pytest.mark.usefixtures("short_target_prompt")
def test_mistakes_are_told(tmp_path: Path) -> None:
    for step in (0, -1):
        with pytest.raises(UsageError, match=f"layer_step must be 1 or more, not {step}"):
            staged(chosen("early-1"), layer_step=step, out=tmp_path / "run")
    with pytest.raises(QueryError, match="empty query set"):
        staged(chosen(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"edges": ["t2->t1"], "progress": False}
    knockout(readable_model(), chosen("late-1"), out=tmp_path / "run" / "knockout", **settings)
    with pytest.raises(ResultError, match="holds another run: its"):
        staged(chosen("early-1"), layer_step=5, out=tmp_path / "run")
