"""Tests of auto_patch(): on outcomes made by hand, on a world, and beside plain hooks."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import loaded
from known import known_model, known_queries, made_back_patching
from matplotlib.axes import Axes
from plain import plain_output
from plain import states as plain_states

import hopscope as hs
from hopscope.engine.edits import Patch
from hopscope.errors import QueryError, ResultError, UsageError
from hopscope.experiments.two_hop import auto_patching
from hopscope.experiments.two_hop.auto_patching import (
    PENALTIES,
    POLICIES,
    AutoPatching,
    auto_patch,
    decide,
    ridge,
)
from hopscope.experiments.two_hop.back_patching import BackPatching
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery
from hopscope.statistics import share_difference, wilson
from hopscope.worlds.load import load_world

ONE, OTHER = (3, 1), (5, 2)
N = 160


def kind_of(number: int) -> int:
    """0: right, and any patch breaks it; 1, 2: wrong, and one cell repairs it."""
    return number // 2 % 4 if number // 2 % 4 < 3 else 0


def made(n: int = N) -> BackPatching:
    """Outcomes of which each cell repairs a quarter of the queries and breaks the half."""
    cells = {0: set(), 1: {ONE}, 2: {OTHER}}
    ids = [f"q{number:03}" for number in range(n)]
    hits = {
        (id, "t1", control): cells[kind_of(number)] if control == "none" else set()
        for number, id in enumerate(ids)
        for control in ("none", "other")
    }
    result = made_back_patching(hits, [(a, b) for a in range(6) for b in range(a)])
    right = result.details["query"].map(lambda id: kind_of(int(id[1:])) == 0)
    return replace(result, details=result.details.assign(clean_hit=right))


def made_states(n: int = N, told: float = 1.0) -> np.ndarray:
    """States that tell the kind of a query in three of 40 coordinates."""
    draw = np.random.default_rng(0)
    kinds = np.eye(3)[[kind_of(number) for number in range(n)]]
    return np.hstack([told * kinds * 3, draw.normal(size=(n, 37))])


def entities(n: int = N) -> list[str]:
    return [f"entity {number // 2}" for number in range(n)]


@cache
def decided(told: float = 1.0, seed: int = 0) -> AutoPatching:
    return AutoPatching(*decide(made(), made_states(told=told), entities(), seed))


def rate(result: AutoPatching, policy: str, what: str) -> float:
    rates = result.rates()
    return float(rates.query("policy == @policy and what == @what")["rate"].iloc[0])


def gains(result: AutoPatching) -> dict[tuple[str, str], dict[str, float]]:
    """The rows of `net()`, by policy and base."""
    rows = result.net().to_dict("records")
    return {(row["policy"], row["base"]): row for row in rows}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_probe_finds_the_cell_that_the_state_tells(seed: int) -> None:
    result = decided(seed=seed)
    assert rate(result, "probe", "repaired") >= 0.95
    assert rate(result, "probe", "broken") <= 0.05
    net = gains(result)
    for base in ("never", "always", "shuffled"):
        assert net["probe", base]["low"] > 0.35
    assert rate(result, "always", "broken") == 1.0
    assert net["always", "never"]["high"] < 0
    assert net["shuffled", "never"]["difference"] <= 0
    cells = result.cells().set_index(["position", "source_layer", "target_layer"])["n"]
    assert cells.loc[("t1", *ONE)] >= 38
    assert cells.loc[("t1", *OTHER)] >= 38


def test_a_probe_of_states_that_tell_nothing_gains_nothing() -> None:
    result = decided(told=0.0)
    assert gains(result)["probe", "never"]["difference"] <= 0
    assert rate(result, "any", "repaired") == 1.0
    assert rate(result, "any", "broken") == 0.0
    assert rate(result, "any", "patched") == 0.5


def test_another_querys_state_is_put_into_the_probes_cells() -> None:
    frame = decided().frame
    places = ["query", "position", "source_layer", "target_layer"]
    probe, other = (frame[frame["policy"] == name] for name in ("probe", "other"))
    pd.testing.assert_frame_equal(
        probe[places].reset_index(drop=True), other[places].reset_index(drop=True)
    )
    assert not other.loc[other["source_layer"] >= 0, "hit"].any()
    assert other.loc[other["source_layer"] < 0, "hit"].equals(
        other.loc[other["source_layer"] < 0, "before"]
    )


def test_each_half_is_decided_by_the_other_one() -> None:
    """What comes of a query has no part in what is decided for its half."""
    result, states = made(), made_states()
    frame, details = decide(result, states, entities(), 0)
    first = set(details.loc[details["half"] == 0, "query"])
    assert 0.4 * N <= len(first) <= 0.6 * N
    turned = result.frame["hit"] ^ result.frame["query"].isin(first)
    again, _ = decide(replace(result, frame=result.frame.assign(hit=turned)), states, entities(), 0)
    keys = ["query", "policy", "position", "source_layer", "target_layer"]
    blind = frame["policy"].isin(["probe", "shuffled", "always"]) & frame["query"].isin(first)
    pd.testing.assert_frame_equal(frame.loc[blind, keys], again.loc[blind, keys])
    others = frame["policy"].isin(["probe", "always"]) & ~frame["query"].isin(first)
    assert not frame.loc[others, keys].equals(again.loc[others, keys])


def test_the_queries_of_an_entity_are_in_one_half() -> None:
    _, details = decide(made(), made_states(), entities(), 0)
    halves = details["half"].groupby(entities()).nunique()
    assert set(halves) == {1}
    assert details.groupby("half")["clean_hit"].mean().round(1).tolist() == [0.5, 0.5]


def test_every_query_has_one_row_a_policy() -> None:
    result = decided()
    assert (result.frame.groupby(["query", "policy"]).size() == 1).all()
    assert set(result.frame["policy"]) == set(POLICIES)
    assert all(result.frame[name].dtype == "bool" for name in ("before", "hit"))
    never = result.frame[result.frame["policy"] == "never"]
    assert (never["hit"] == never["before"]).all()
    assert set(never["source_layer"]) == {-1}


def test_numbers_are_counted() -> None:
    result = decided()
    probe = result.frame[result.frame["policy"] == "probe"]
    wrong, right = probe[~probe["before"]], probe[probe["before"]]
    rates = result.rates().set_index(["policy", "what"])
    columns = ["rate", "low", "high"]
    repaired = rates.loc[("probe", "repaired")]
    assert repaired["n"] == len(wrong) == N // 2
    expected = wilson(int(wrong["hit"].sum()), len(wrong))
    np.testing.assert_allclose(repaired[columns].astype(float), expected)
    broken = wilson(int((~right["hit"]).sum()), len(right))
    np.testing.assert_allclose(rates.loc[("probe", "broken"), columns].astype(float), broken)
    better, worse = int(wrong["hit"].sum()), int((~right["hit"]).sum())
    found = gains(result)["probe", "never"]
    interval = [found[name] for name in ("difference", "low", "high")]
    np.testing.assert_allclose(interval, share_difference(better, worse, N))


@pytest.mark.parametrize("shape", [(30, 5), (12, 40)])
def test_ridge_is_that_of_the_normal_equations(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(1)
    states, values, asked = draw.normal(size=shape), draw.normal(size=(shape[0], 3)), None
    asked = draw.normal(size=(4, shape[1]))
    states[:, 0] = 7.0  # a coordinate that tells nothing
    found = ridge(states, values, asked)
    scale = np.where(states.std(axis=0) > 1e-9, states.std(axis=0), 1)
    own, new = (each - states.mean(axis=0) for each in (states, asked))
    own, new = own / scale / np.sqrt(shape[1]), new / scale / np.sqrt(shape[1])
    for penalty, predicted in zip(PENALTIES[:-1], found[:-1], strict=True):
        weights = np.linalg.solve(
            own.T @ own + penalty * np.eye(shape[1]), own.T @ (values - values.mean(axis=0))
        )
        np.testing.assert_allclose(predicted, values.mean(axis=0) + new @ weights, atol=1e-8)
    np.testing.assert_allclose(found[-1], np.tile(values.mean(axis=0), (4, 1)))


def test_too_few_entities_are_told() -> None:
    with pytest.raises(QueryError, match="8 queries of 1 source entities are too few"):
        decide(made(8), made_states(8), ["one"] * 8, 0)
    decide(made(16), made_states(16), entities(16), 0)


@pytest.mark.parametrize("right", [True, False])
def test_all_queries_may_be_right_or_wrong_before(right: bool) -> None:
    patched = made()
    patched = replace(patched, details=patched.details.assign(clean_hit=right))
    result = AutoPatching(*decide(patched, made_states(), entities(), 0))
    assert set(result.rates()["what"]) == {"patched", "broken" if right else "repaired"}
    assert result.findings()


def test_findings_give_both_sides_and_each_control() -> None:
    said = " ".join(decided().findings())
    assert "of 160 queries, 80 wrong and 80 right before, the probe patches" in said
    assert not re.search(r"%(?! \(\d+–\d+\))", said), "each share has its interval"
    for control in ("Always the best single cell", "A probe of shuffled labels", "another query's"):
        assert control in said
    assert "higher than never patching" in said
    headline = decided().headline()
    assert headline is not None
    assert (headline.base, headline.n) == ("never patching", N)
    assert isinstance(decided().plot(), Axes)


WORLD = "two-hop-looped"


@cache
def of_world(seed: int) -> AutoPatching:
    world = load_world(WORLD, seed)
    splits = [world.queries(split).sample(48) for split in ("first_hop_ood", "in_distribution")]
    queries = QuerySet(tuple(query for split in splits for query in split), "world")
    return auto_patch(world.model, queries, criterion="first_token", progress=False)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_world_that_hops_too_late_is_repaired_and_little_is_broken(seed: int) -> None:
    result = of_world(seed)
    assert rate(result, "probe", "repaired") >= 0.8
    assert rate(result, "probe", "broken") <= 0.03
    net = gains(result)
    assert net["probe", "never"]["low"] > 0
    assert rate(result, "other", "broken") > 0.9
    assert rate(result, "other", "repaired") < 0.1
    # One cell is right for all there, which takes no state: neither does better than it.
    for policy in ("probe", "shuffled"):
        most = net["always", "never"]["difference"] + 0.03
        assert net[policy, "never"]["difference"] <= most


def places(n: int = 10) -> QuerySet:
    sources = ["Kyoto", "Rio de Janeiro", "Berlin", "Cairo", "Lyon", "Porto", "Oslo", "Lima"]
    names = ("Tokyo", "the", "Bonn", "is", "Paris", "of", "city", "was")
    queries = tuple(
        TwoHopQuery(
            id=f"{source}.{relation}",
            e1_label=source,
            e2_label=f"Land{number}",
            e3_label=names[number],
            r1_template="The country where {} lies",
            r2_template=f"The {relation} of {{}}",
        )
        for number, source in enumerate(sources)
        for relation in ("capital", "largest town")
    )
    return QuerySet(queries[:n], "places")


@pytest.mark.parametrize("name", ["tiny-random-gpt2", "tiny-random-gemma3"])
def test_chosen_cells_equal_a_plain_hooked_generate(name: str) -> None:
    model, queries = loaded(name), places()
    result = auto_patch(model, queries, stop_early=False, progress=False)
    texts = {prompt.query_id: prompt.text for prompt in queries.prompts()}
    compared = 0
    for row in result.frame.query("policy in ('probe', 'always', 'any', 'never')").to_dict(
        "records"
    ):
        text = texts[row["query"]]
        ids = list(model.tokenizer(text)["input_ids"])
        end = {"t1": text.index(" is"), "t2": len(text), "": 0}[row["position"]]
        at = len(model.tokenizer(text[:end])["input_ids"]) - 1
        a, b = row["source_layer"], row["target_layer"]
        cell = [Patch(b, at, plain_states(model.hf, ids)[a, at])] if a >= 0 else []
        tokens = plain_output(model.hf, ids, cell, 10, model.end_tokens).tokens
        assert row["generation"] == model.tokenizer.decode(list(tokens), skip_special_tokens=True)
        compared += a >= 0
    assert compared >= len(queries)


def test_results_that_are_there_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, queries = loaded("tiny-random-llama"), places(16)
    anew = auto_patch(model, queries, progress=False, out=tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "auto_patching",
        "back_patching",
    ]
    again = hs.load_result(tmp_path / "run" / "auto_patching")
    pd.testing.assert_frame_equal(anew.frame, again.frame)
    assert again.run["settings"]["read_layers"] == list(range(model.n_layers))
    first, second = queries[:7], queries[7:]
    parts = [hs.back_patch(model, part, controls=(), progress=False) for part in (first, second)]
    parts[1].save(tmp_path / "second")
    monkeypatch.setattr(auto_patching, "back_patch", None)
    joined = auto_patch(model, queries, patched=[parts[0], tmp_path / "second"], progress=False)
    columns = ["query", "policy", "position", "source_layer", "target_layer", "hit", "generation"]
    expected = anew.frame[anew.frame["policy"] != "other"]
    pd.testing.assert_frame_equal(joined.frame[columns], expected[columns].reset_index(drop=True))
    with pytest.raises(ResultError, match="is of another model than tiny-random-gpt2"):
        auto_patch(loaded("tiny-random-gpt2"), queries, patched=parts, progress=False)
    with pytest.raises(ResultError, match="is of other queries"):
        auto_patch(model, queries.with_few_shot(1), patched=parts, progress=False)
    with pytest.raises(QueryError, match="has no query 'Kyoto"):
        auto_patch(model, second, patched=parts, progress=False)
    with pytest.raises(UsageError, match=r"patched must be results of hs\.back_patch"):
        auto_patch(model, queries, patched=[3], progress=False)


def test_a_stop_while_states_are_read_leaves_the_sweep_in_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(auto_patching, "capture", stopped)
    with pytest.raises(KeyboardInterrupt):
        auto_patch(loaded("tiny-random-llama"), places(16), progress=False)
    assert isinstance(hs.partial(), BackPatching)
    assert hs.partial().n_queries == 16


def test_results_of_other_settings_do_not_go_together() -> None:
    model, queries = loaded("tiny-random-llama"), places(16)
    parts = [
        hs.back_patch(model, part, ("t1",), (), cells=[(1, 0)], max_new_tokens=n, progress=False)
        for part, n in ((queries[:8], 2), (queries[8:], 3))
    ]
    with pytest.raises(ResultError, match="differ in their settings"):
        auto_patch(model, queries, patched=parts, progress=False)


def test_what_it_costs_is_told_by_its_cells() -> None:
    model = known_model()
    queries = known_queries().filter(lambda query: not query.id.startswith("strange"))
    told = hs.estimate(hs.auto_patch, model, queries, cells=[(3, 0)], controls=())
    assert told.n == len(queries)
