"""Tests of back_patch() on known hits and beside plain hooks, and of what its result computes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from known import (
    CONTEXT,
    CORRECT,
    FACTS,
    HITS,
    INCORRECT,
    N_LAYERS,
    known_model,
    known_queries,
    made_back_patching,
)
from matplotlib.axes import Axes
from plain import plain_output, states
from torch import Tensor

import hopscope as hs
from hopscope.engine.edits import Patch
from hopscope.errors import QueryError, UsageError
from hopscope.experiments.randomness import random_like
from hopscope.experiments.two_hop.back_patching import BackPatching, back_patch
from hopscope.models.language_model import LanguageModel
from hopscope.queries.answers import matches
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery
from hopscope.statistics import share_difference, wilson

Cell = tuple[int, int]
EVERYWHERE = ("t1", "t2", "t1->t2")
ALL_CELLS = {(a, b) for a in range(N_LAYERS) for b in range(a)}
COLUMNS = "query position source_layer target_layer control hit answer_rank answer_logprob"
COLUMNS += " bridge_rank bridge_logprob"


def chosen(ids: Sequence[str]) -> QuerySet:
    return known_queries().filter(lambda query: query.id in ids)


def patched(queries: QuerySet, **settings: Any) -> BackPatching:
    return back_patch(known_model(), queries, progress=False, **settings)


@pytest.fixture(scope="module")
def late() -> BackPatching:
    return patched(chosen(INCORRECT), positions=EVERYWHERE)


def cells_of(frame: pd.DataFrame) -> list[Cell]:
    return list(zip(frame["source_layer"], frame["target_layer"], strict=True))


def rows(result: BackPatching, query: str, position: str, control: str) -> pd.DataFrame:
    frame = result.frame
    here = (frame["query"] == query) & (frame["position"] == position)
    return frame[here & (frame["control"] == control)]


def hits(result: BackPatching, query: str, position: str, control: str = "none") -> set[Cell]:
    there = rows(result, query, position, control)
    return set(cells_of(there[there["hit"]]))


@pytest.mark.parametrize("position", EVERYWHERE)
@pytest.mark.parametrize("query", INCORRECT)
def test_late_queries_are_repaired_in_the_known_cells(
    late: BackPatching, query: str, position: str
) -> None:
    assert hits(late, query, position) == HITS[position]


@pytest.mark.parametrize("control", ["other", "random"])
def test_controls_repair_no_late_query(late: BackPatching, control: str) -> None:
    frame = late.frame[late.frame["control"] == control]
    assert len(frame) == 3 * 3 * len(ALL_CELLS)
    assert not frame["hit"].any()


def test_cells_say_what_is_known(late: BackPatching) -> None:
    said = rows(late, "late-1", "t1", "none").set_index(["source_layer", "target_layer"])
    assert said.loc[(3, 1), "generation"] == "Crag ."
    assert str(said.loc[(2, 1), "generation"]).startswith("Cland . \n")
    donor = late.details["donor"].iloc[0]
    answer = {fact.id: fact.answer for fact in FACTS}[donor]
    lent = rows(late, "late-1", "t1", "other").set_index(["source_layer", "target_layer"])
    assert str(lent.loc[(3, 1), "generation"]).startswith(f"{answer} .")


@pytest.mark.parametrize("query", CORRECT)
def test_right_queries_stay_right_with_their_own_states(query: str) -> None:
    result = patched(chosen(CORRECT), controls=("other",))
    for position in ("t1", "t2"):
        assert hits(result, query, position) == ALL_CELLS
    after_the_bridge_has_left = {(a, b) for a, b in ALL_CELLS if b >= 2}
    assert hits(result, query, "t1", "other") == after_the_bridge_has_left


def test_e1_is_the_end_of_the_source(late: BackPatching) -> None:
    at_e1 = patched(chosen(INCORRECT), positions=("e1",), controls=()).frame
    at_t1 = late.frame.query("position == 't1' and control == 'none'").reset_index(drop=True)
    pd.testing.assert_frame_equal(at_e1.drop(columns="position"), at_t1.drop(columns="position"))


def test_few_shot_prompts_are_repaired_in_the_same_cells() -> None:
    result = patched(chosen(INCORRECT).with_few_shot(2), positions=EVERYWHERE, controls=())
    assert result.run["settings"]["one_line"] is True
    for query, position in itertools.product(INCORRECT, EVERYWHERE):
        assert hits(result, query, position) == HITS[position]


@pytest.mark.parametrize("stop_early", [True, False])
def test_an_answer_is_one_line_where_asked(stop_early: bool) -> None:
    queries = chosen(["second-line"])
    for one_line in (True, False):
        result = patched(queries, one_line=one_line, stop_early=stop_early, controls=())
        assert hits(result, "second-line", "t2") == (set() if one_line else ALL_CELLS)


def test_substring_counts_what_word_does_not() -> None:
    for match in ("word", "substring"):
        result = patched(chosen(["longer"]), match=match, controls=())
        assert hits(result, "longer", "t2") == (ALL_CELLS if match == "substring" else set())


def test_the_frame_has_the_columns_of_the_design(late: BackPatching) -> None:
    frame = late.frame
    assert list(frame.columns) == [*COLUMNS.split(), "generation"]
    for name in ("query", "position", "control", "generation"):
        assert pd.api.types.is_string_dtype(frame[name]), name
    for name in ("source_layer", "target_layer", "answer_rank", "bridge_rank"):
        assert pd.api.types.is_integer_dtype(frame[name]), name
    assert frame["hit"].dtype == bool
    for name in ("answer_logprob", "bridge_logprob"):
        assert pd.api.types.is_float_dtype(frame[name]), name
    assert not frame.isna().to_numpy().any()
    assert list(frame.index) == list(range(len(frame)))


def test_every_query_position_control_and_cell_has_one_row(late: BackPatching) -> None:
    keys = list(late.frame[["query", "position", "control"]].itertuples(index=False, name=None))
    assert len(late.frame) == 3 * 3 * 3 * 15
    for key in itertools.product(INCORRECT, EVERYWHERE, ("none", "other", "random")):
        assert keys.count(key) == 15
    for _, group in late.frame.groupby(["query", "position", "control"]):
        assert sorted(cells_of(group)) == sorted(ALL_CELLS)


def test_details_have_one_row_a_query_and_position(late: BackPatching) -> None:
    details = late.details
    keys = list(details[["query", "position"]].itertuples(index=False, name=None))
    assert keys == list(itertools.product(INCORRECT, EVERYWHERE))
    first = details.iloc[0]
    assert first["prompt"] == "The capital of the country of Cedar is"
    assert (first["bridge"], first["answer"]) == ("Cland", "Crag")
    assert first["clean_generation"].startswith("Cland .")
    assert not first["clean_hit"]
    assert list(details["token"][:3]) == [6, 7, 6]
    assert list(details[details["query"] == "late-2"]["token"]) == [7, 8, 7]
    assert (details["donor"] != details["query"]).all()
    assert details["donor_same_relation"].all()


def test_rank_and_logprob_are_of_the_best_first_token(late: BackPatching) -> None:
    assert (late.frame["hit"] == (late.frame["answer_rank"] == 0)).all()
    assert (late.frame["answer_logprob"] < 0).all()
    two_names = replace(chosen(["late-1"])[0], e3_aliases=("Cland",))
    result = patched(QuerySet((two_names,)), controls=(), criterion="first_token")
    assert (result.frame["answer_rank"] == 0).all()  # "Cland" is what it says, or "Crag"


@pytest.mark.parametrize("cells", [[(5, 0)], [(0, 5), (2, 2), (5, 1)], [(4, 1), (4, 1), (3, 0)]])
def test_cells_can_be_chosen(cells: list[Cell], late: BackPatching) -> None:
    result = patched(chosen(INCORRECT), cells=cells, positions=("t1",), controls=())
    once = list(dict.fromkeys(cells))
    assert cells_of(result.frame) == once * 3
    for query in INCORRECT:
        assert hits(result, query, "t1") == HITS["t1"] & set(once)
    assert result.run["settings"]["cells"] == [list(cell) for cell in once]


def test_a_cell_onto_itself_changes_nothing(late: BackPatching) -> None:
    same = [(layer, layer) for layer in range(N_LAYERS)]
    frame = patched(chosen(["late-1"]), cells=same, controls=(), stop_early=False).frame
    assert set(frame["generation"]) == {late.details["clean_generation"].iloc[0]}


def places() -> QuerySet:
    sources = ["Kyoto", "the Eiffel Tower", "Rio de Janeiro", "Berlin", "the Colosseum"]
    queries = tuple(
        TwoHopQuery(
            id=source,
            e1_label=source,
            e2_label=f"Land{number}",
            e3_label=("Tokyo", "Paris", "Brasilia", "Bonn", "Rome")[number],
            e3_aliases=(("the", "city of", "is", "country", "was")[number],),
            r1_template="The country where {} lies",
            r2_template="The capital of {}",
        )
        for number, source in enumerate(sources)
    )
    return QuerySet(queries, "places")


@dataclass(frozen=True)
class Case:
    """What is back-patched in one comparison."""

    model: str
    few_shot: int
    positions: tuple[str, ...]

    def queries(self) -> QuerySet:
        queries = chosen(INCORRECT) if self.model == "known" else places()[:2]
        return replace(queries, few_shot=self.few_shot)

    def load(self) -> LanguageModel:
        return known_model() if self.model == "known" else hs.load_model(self.model, device="cpu")


CASES = (
    Case("known", 0, ("t1->t2",)),
    Case("tiny-random-gemma3", 0, ("t1", "t2")),
    Case("tiny-random-gemma3", 2, ("t1", "e1")),
    Case("tiny-random-gpt2", 0, ("t1", "t1->t2")),
    Case("tiny-random-gpt2", 2, ("t2", "t1->t2")),
)


@cache
def run_case(case: Case, stop_early: bool = False, match: str = "word") -> BackPatching:
    return back_patch(
        case.load(),
        case.queries(),
        positions=case.positions,
        match=match,  # type: ignore[arg-type]
        stop_early=stop_early,
        progress=False,
    )


class Plain:
    """Asks one model the plain way: one hooked forward and one hooked `generate` per cell."""

    def __init__(self, case: Case) -> None:
        model = case.load()
        self.hf, self.tokenizer, self.end_tokens = model.hf, model.tokenizer, model.end_tokens
        self.texts = {prompt.query_id: prompt.text for prompt in case.queries().prompts()}

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def position(self, query: TwoHopQuery, name: str) -> int:
        """The token that ends where the prompt is cut behind a span."""
        text = self.texts[query.id]
        source = text.rindex(query.e1_label) + len(query.e1_label)
        end = {"e1": source, "t1": text.index(" is", source), "t2": len(text)}[name]
        return len(self.ids(text[:end])) - 1

    def states(self, query: TwoHopQuery, name: str) -> Tensor:
        """The output of each block at one token, shape (layer, d_model)."""
        return states(self.hf, self.ids(self.texts[query.id]))[:, self.position(query, name)]

    def outputs(self, query: TwoHopQuery, patch: Patch) -> tuple[Any, ...]:
        """Ranks and log-probability of answer and bridge, and ten greedy tokens."""
        ids = self.ids(self.texts[query.id])
        found = plain_output(self.hf, ids, [patch], 10, self.end_tokens)
        text = str(self.tokenizer.decode(list(found.tokens), skip_special_tokens=True))
        answer, bridge = self.first_tokens(query, "e3"), self.first_tokens(query, "e2")
        read = [(found.ranks(first), found.logprob(first)) for first in (answer, bridge)]
        return *read[0], *read[1], text

    def first_tokens(self, query: TwoHopQuery, entity: Literal["e2", "e3"]) -> list[int]:
        names = [f" {name}" for name in query.names(entity)]
        ids = [self.tokenizer(n, add_special_tokens=False)["input_ids"][0] for n in names]
        return [each for each in ids if self.tokenizer.decode([each]).strip()]


def plain_rows(case: Case, result: BackPatching) -> Iterator[tuple[Any, ...]]:
    """The rows of a result, computed the plain way."""
    plain, queries = Plain(case), case.queries()
    donors = dict(zip(result.details["query"], result.details["donor"], strict=True))
    for query, position in itertools.product(queries, case.positions):
        read, _, write = position.partition("->")
        own = plain.states(query, read)
        vectors = {
            "none": own,
            "other": plain.states(queries.by_id(donors[query.id]), read),
            "random": random_like(own, 0, query.id, position),
        }
        at, layers = plain.position(query, write or read), range(len(own))
        for control, a, b in itertools.product(vectors, layers, layers):
            if a > b:
                found = plain.outputs(query, Patch(b, at, vectors[control][a]))
                said = found[-1].split("\n")[0] if case.few_shot else found[-1]
                hit = matches(said, query.names("e3"))
                yield (query.id, position, a, b, control, hit, *found)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_cell_equals_a_plain_hooked_generate(case: Case) -> None:
    result = run_case(case)
    columns = [*COLUMNS.split(), "generation"]
    plain = pd.DataFrame(list(plain_rows(case, result)), columns=columns)
    exact = [name for name in columns if not name.endswith(("_rank", "_logprob"))]
    pd.testing.assert_frame_equal(result.frame[exact], plain[exact])
    for entity in ("answer", "bridge"):
        found, expected = result.frame[f"{entity}_rank"], plain[f"{entity}_rank"]
        assert all(rank in ranks for rank, ranks in zip(found, expected, strict=True))
        name = f"{entity}_logprob"
        np.testing.assert_allclose(result.frame[name], plain[name], rtol=0, atol=1e-4)
    assert (result.frame["answer_logprob"] != result.frame["bridge_logprob"]).any()


def test_the_comparison_is_not_idle() -> None:
    """The patches matter, and some cells hit while others do not."""
    for case in CASES:
        frame = run_case(case).frame
        assert frame["generation"].nunique() > 10, case
        assert frame["answer_rank"].nunique() > 2, case
    assert {bool(hit) for case in CASES for hit in run_case(case).frame["hit"]} == {True, False}


@pytest.mark.parametrize("match", ["word", "substring"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_stopping_early_changes_no_verdict(case: Case, match: str) -> None:
    early, whole = (run_case(case, stop_early, match) for stop_early in (True, False))
    same = [*COLUMNS.split()]
    pd.testing.assert_frame_equal(early.frame[same], whole.frame[same])
    for short, long in zip(early.frame["generation"], whole.frame["generation"], strict=True):
        assert long.startswith(short.rstrip("\ufffd"))  # cut within a character


def test_stopping_early_stops() -> None:
    early, whole = (run_case(CASES[0], stop_early) for stop_early in (True, False))
    hit = early.frame["hit"]
    assert (
        early.frame["generation"][hit].str.len() < whole.frame["generation"][hit].str.len()
    ).all()
    few = patched(chosen(INCORRECT).with_few_shot(2), controls=())
    assert all(text.endswith(("\n", ".")) for text in few.frame["generation"])


@pytest.mark.parametrize("n", [1, 3, 10])
def test_generations_are_whole_without_it(n: int) -> None:
    model, queries = known_model(), chosen([*INCORRECT, *CORRECT])
    result = patched(queries, stop_early=False, max_new_tokens=n, controls=())
    for query, text in zip(result.frame["query"], result.frame["generation"], strict=True):
        length = len(model.tokenizer(text)["input_ids"])
        assert length == n or (query, text) == ("early-2", "Brig")


def test_few_shot_generations_are_whole_without_it() -> None:
    result = patched(chosen(["late-1"]).with_few_shot(2), stop_early=False, controls=())
    for text in result.frame["generation"]:
        assert len(known_model().tokenizer(text)["input_ids"]) == 10


def test_first_token_asks_for_the_likeliest_next_token() -> None:
    result = patched(chosen([*INCORRECT, "half"]), criterion="first_token")
    assert (result.frame["hit"] == (result.frame["answer_rank"] == 0)).all()
    for query, position in itertools.product(INCORRECT, ("t1", "t2")):
        assert hits(result, query, position) == HITS[position]
    assert hits(result, "half", "t2") == ALL_CELLS  # "Port", of "Port Bela"
    assert {len(text.split()) for text in result.frame["generation"]} == {1}
    assert result.run["settings"]["max_new_tokens"] == 1


def test_generation_asks_for_the_whole_answer() -> None:
    result = patched(chosen(["half"]), controls=())
    assert hits(result, "half", "t2") == set()
    assert (result.frame["answer_rank"] == 0).all()


def test_controls_can_be_left_out() -> None:
    for controls in ((), ("random",), ("other",)):
        result = patched(chosen(INCORRECT), controls=controls, cells=[(3, 0)])
        assert list(dict.fromkeys(result.frame["control"])) == ["none", *controls]
    assert result.details["donor"].notna().all()


def test_a_query_without_a_donor_has_no_other_rows(caplog: pytest.LogCaptureFixture) -> None:
    queries = chosen(["late-1", "late-2", "late-3"])
    alike = [replace(query, e3_label="Crag") for query in queries][:2]
    with caplog.at_level(logging.WARNING):
        result = patched(QuerySet((*alike,)), cells=[(3, 0)])
    assert "no row with control 'other'" in caplog.text
    assert set(result.frame["control"]) == {"none", "random"}
    assert result.details["donor"].isna().all()


def test_controls_follow_the_seed() -> None:
    first, again, second = (patched(chosen(INCORRECT), seed=seed) for seed in (0, 0, 5))
    pd.testing.assert_frame_equal(first.frame, again.frame)
    own = first.frame["control"] == "none"
    pd.testing.assert_frame_equal(first.frame[own], second.frame[own])
    drawn = first.frame["control"] == "random"
    assert (first.frame["answer_logprob"] != second.frame["answer_logprob"])[drawn].mean() > 0.5


def by_row(result: BackPatching) -> pd.DataFrame:
    keys = ["query", "position", "control", "source_layer", "target_layer"]
    return result.frame.sort_values(keys, ignore_index=True)


def test_controls_do_not_depend_on_the_order_of_the_queries() -> None:
    queries = chosen([*INCORRECT, *CORRECT])
    turned = replace(queries, queries=queries.queries[::-1])
    pd.testing.assert_frame_equal(by_row(patched(queries)), by_row(patched(turned)))


def test_controls_do_not_depend_on_the_shard(tmp_path: Path) -> None:
    queries = chosen([*INCORRECT, *CORRECT])
    whole = patched(queries)
    for shard in ((2, 2), (1, 2)):
        patched(queries, out=tmp_path / "run", shard=shard)
    together = hs.load_result(tmp_path / "run")
    pd.testing.assert_frame_equal(together.frame, whole.frame)
    pd.testing.assert_frame_equal(together.details, whole.details)


def test_rows_in_small_chunks_are_the_same() -> None:
    settings = {"cells": [(3, 0), (4, 2), (5, 1)], "controls": ("random",), "positions": ("t2",)}
    chunked, whole = (patched(chosen(["late-1"]), max_memory=m, **settings) for m in (1, None))
    pd.testing.assert_frame_equal(chunked.frame, whole.frame, check_exact=False, atol=1e-5)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"positions": ("t1", "t3")}, "unknown position 't3': .* t1, t2, t1->t2, e1"),
    ({"positions": ()}, r"give a list of positions with any of t1, t2, .*not \(\)"),
    ({"controls": ("others",)}, "unknown control 'others': .* other, random"),
    ({"criterion": "rank"}, "unknown criterion 'rank': .* generation, first_token"),
    ({"match": "exact"}, "unknown match 'exact'"),
    ({"cells": [(1, 0), (6, 0)]}, r"layers 0 to 5; got \(6, 0\)"),
    ({"cells": [(0, -1)]}, r"layers 0 to 5; got \(0, -1\)"),
    ({"cells": []}, "got none"),
    ({"cells": [(1,)]}, r"pairs of layers 0 to 5; got \(1,\)"),
    ({"cells": [(3, 2, 1)]}, r"pairs of layers 0 to 5; got \(3, 2, 1\)"),
    ({"cells": [3]}, "pairs of layers 0 to 5; got 3"),
    ({"cells": [("a", 0)]}, r"pairs of layers 0 to 5; got \('a', 0\)"),
    ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, not 0"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=str)
def test_a_mistake_is_told(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        patched(chosen(INCORRECT), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(QueryError, match=r"empty query set.*graded\.summary"):
        patched(chosen([]))


def test_a_prompt_that_is_too_long_is_told() -> None:
    long = replace(chosen(["late-1"])[0], e1_label="Upper " * CONTEXT + "Cedar")
    with pytest.raises(UsageError, match=rf"the prompt has \d+ tokens .* {CONTEXT} tokens"):
        patched(QuerySet((long,)), controls=())


CELLS = [(1, 0), (2, 0), (2, 1)]


def made(**hits_of: dict[str, set[Cell]]) -> BackPatching:
    """A result at t1: for each query the hits of each control."""
    return made_back_patching(
        {(q, "t1", control): cells for q, by in hits_of.items() for control, cells in by.items()},
        CELLS,
    )


def test_success_rate_counts_queries_with_any_hit() -> None:
    result = made(
        a={"none": {(1, 0), (2, 0)}, "other": set(), "random": set()},
        b={"none": {(2, 1)}, "other": {(2, 1)}, "random": set()},
        c={"none": {(2, 1)}, "other": set(), "random": set()},
        d={"none": set(), "random": {(1, 0)}},
    )
    rates = result.success_rate()
    assert list(rates.columns) == ["position", "control", "n", "rate", "low", "high"]
    table = rates.set_index("control")
    assert list(table.index) == ["none", "other", "random"]
    assert table["n"].to_dict() == {"none": 4, "other": 3, "random": 4}
    assert table["rate"].to_dict() == pytest.approx(
        {"none": 3 / 4, "other": 1 / 3, "random": 1 / 4}
    )
    assert ((table["low"] <= table["rate"]) & (table["rate"] <= table["high"])).all()
    assert (table["low"] < table["high"]).all()


def test_cell_rate_is_the_mean_share_of_the_cells_of_a_query() -> None:
    hits = {("a", "t1", "none"): {(1, 0), (2, 0)}, ("b", "t1", "none"): {(2, 1)}}
    result = made_back_patching(hits, [(1, 0), (2, 0), (2, 1)])
    row = result.cell_rate().iloc[0]
    assert (row["position"], row["control"], row["n"]) == ("t1", "none", 2)
    assert row["rate"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert np.isnan([row["low"], row["high"]]).all(), "two queries are too few"


def test_success_rate_keeps_positions_apart(late: BackPatching) -> None:
    only_t2 = {("a", "t1", "none"): set[Cell](), ("a", "t2", "none"): {(1, 0)}}
    rates = made_back_patching(only_t2, CELLS).success_rate()
    assert list(zip(rates["position"], rates["rate"], strict=True)) == [("t1", 0.0), ("t2", 1.0)]
    found = late.success_rate().set_index(["position", "control"])["rate"].to_dict()
    assert found == {
        (p, c): float(c == "none") for p in EVERYWHERE for c in ("none", "other", "random")
    }


def half_right(n: int) -> BackPatching:
    return made(**{f"q{i}": {"none": {(2, 1)} if i % 2 else set()} for i in range(n)})


def test_rates_have_wilsons_intervals() -> None:
    result = half_right(100)
    low, high = result.success_rate()[["low", "high"]].iloc[0]
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=5e-5)
    pd.testing.assert_frame_equal(result.success_rate(3), result.success_rate(4))


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_no_interval_of_a_rate_is_a_point(rate: float, n: int) -> None:
    there = {(1, 0)} if rate else set[Cell]()
    result = made(**{f"q{i}": {"none": there, "other": set()} for i in range(n)})
    row = result.success_rate().iloc[0]
    assert tuple(row[["rate", "low", "high"]]) == wilson(int(rate) * n, n)
    assert row["high"] - row["low"] > 0.4
    if n > 1:
        best = result.best_cell()
        assert (best.rate, best.low, best.high) == wilson(int(rate) * best.n, best.n)


def test_above_chance_pairs_each_query_with_its_control() -> None:
    result = made(
        a={"none": {(1, 0)}, "other": set(), "random": {(1, 0)}},
        b={"none": {(1, 0)}, "other": {(2, 0)}, "random": {(1, 0)}},
        c={"none": set(), "other": set(), "random": {(2, 1)}},
        d={"none": {(1, 0)}, "random": {(1, 0)}},
    )
    table = result.above_chance().set_index("control")
    assert list(table.columns) == ["position", "n", "difference", "low", "high"]
    assert table["n"].to_dict() == {"other": 3, "random": 4}  # d has no other row
    assert table["difference"].to_dict() == pytest.approx({"other": 1 / 3, "random": -1 / 4})
    assert ((table["low"] <= table["difference"]) & (table["difference"] <= table["high"])).all()


def test_above_chance_is_about_pairs() -> None:
    """Equal in every pair: less spread than two rates of their own have, but not none."""
    result = half_right(8).frame
    both = pd.concat([result, result.assign(control="other")])
    row = BackPatching(both, both[["query"]].drop_duplicates()).above_chance().iloc[0]
    assert tuple(row[["difference", "low", "high"]]) == share_difference(0, 0, 8)
    rate = wilson(4, 8)
    assert 0.3 < row["high"] < rate[2] - rate[1]


def test_above_chance_without_controls_is_empty() -> None:
    assert made(a={"none": {(1, 0)}}).above_chance().empty


def test_gains_compare_any_cell_and_the_best_one_with_each_control() -> None:
    """(1, 0) always has the answer; another query's vector has it in another cell, in half."""
    result = made(
        **{
            f"q{i:02}": {"none": {(1, 0)}, "other": {(2, 0)} if i % 2 else set(), "random": set()}
            for i in range(16)
        }
    )
    table = result.gains().set_index(["cells", "control"])
    assert list(table.index) == [
        (cells, control) for cells in ("any", "best") for control in ("other", "random")
    ]
    assert table["n"].tolist() == [16, 16, 8, 8]  # the best cell is scored on the other half
    assert table["difference"].tolist() == [0.5, 1.0, 1.0, 1.0]
    assert table["better"].tolist() == [8, 16, 8, 8]
    assert table["p"].tolist() == pytest.approx([2 / 2**8, 2 / 2**16, 2 / 2**8, 2 / 2**8])


def test_gains_of_the_best_cell_are_of_the_half_that_did_not_choose_it() -> None:
    alone = {(f"q{i}", "t1", "none"): {(i + 1, 0)} for i in range(6)}
    alone |= {(f"q{i}", "t1", "other"): set() for i in range(6)}
    table = made_back_patching(alone, [(i + 1, 0) for i in range(6)]).gains().set_index("cells")
    assert table["difference"].to_dict() == {"any": 1.0, "best": 0.0}


@pytest.mark.parametrize("seed", range(8))
def test_the_best_cell_is_scored_on_the_other_half(seed: int) -> None:
    """Each query is repaired in a cell of its own, so what is best for some helps no other."""
    cells = [(i + 1, 0) for i in range(6)]
    alone = {(f"q{i}", "t1", "none"): {cells[i]} for i in range(6)}
    best = made_back_patching(alone, cells).best_cell(seed=seed)
    assert (best.rate, best.n) == (0.0, 3)


def test_the_best_cell_is_the_one_with_most_hits() -> None:
    spread = {f"q{i}": {"none": {(2, 1)} | ({(1, 0)} if i < 2 else set())} for i in range(8)}
    best = made(**spread).best_cell()
    assert best._fields[:6] == ("position", "source_layer", "target_layer", "rate", "low", "high")
    assert best[:6] == ("t1", 2, 1, *wilson(best.n, best.n))
    assert best.n == 4


def test_the_best_cell_is_the_same_by_seed_and_order() -> None:
    rng = np.random.default_rng(0)
    cells = [(a, b) for a in range(6) for b in range(a)]
    hits_of = {
        (f"q{i:02}", "t1", "none"): {cell for cell in cells if rng.random() < 0.3}
        for i in range(20)
    }
    turned = dict(reversed(hits_of.items()))
    for seed in range(4):
        best = made_back_patching(hits_of, cells).best_cell(seed=seed)
        assert best == made_back_patching(turned, cells).best_cell(seed=seed)
        assert best.low <= best.rate <= best.high
    assert len({made_back_patching(hits_of, cells).best_cell(seed=s)[:3] for s in range(20)}) > 1


@pytest.mark.parametrize("likelier", CELLS)
def test_a_tie_goes_to_the_likelier_answer(likelier: Cell) -> None:
    everywhere = {(f"q{i}", "t1", "none"): set(CELLS) for i in range(4)}
    result = made_back_patching(everywhere, CELLS, logprob={likelier: -0.5})
    assert result.best_cell()[1:3] == likelier


def test_hits_come_before_likelihood() -> None:
    hits_of = {(f"q{i}", "t1", "none"): {(1, 0)} for i in range(4)}
    result = made_back_patching(hits_of, CELLS, logprob={(2, 1): -0.1})
    assert result.best_cell()[1:3] == (1, 0)


def test_the_best_cell_is_no_control() -> None:
    result = made(**{f"q{i}": {"none": {(1, 0)}, "other": {(2, 0)}} for i in range(4)})
    only_other = made(**{f"q{i}": {"none": set(), "other": {(2, 0)}} for i in range(4)})
    assert result.best_cell()[1:4] == (1, 0, 1.0)
    assert only_other.best_cell().rate == 0.0


def test_the_best_cell_of_one_position() -> None:
    hits_of = {(f"q{i}", "t1", "none"): set[Cell]() for i in range(4)}
    hits_of |= {(f"q{i}", "t2", "none"): {(2, 0)} for i in range(4)}
    result = made_back_patching(hits_of, CELLS)
    assert result.best_cell()[:4] == ("t2", 2, 0, 1.0)
    assert result.best_cell("t1")[0] == "t1"
    assert result.best_cell("t1").rate == 0.0


def test_the_best_cell_needs_two_queries() -> None:
    with pytest.raises(UsageError, match="needs two queries"):
        made(a={"none": {(1, 0)}}).best_cell()
    assert made(a={"none": {(1, 0)}}, b={"none": {(1, 0)}}).best_cell().n == 1


def test_the_known_best_cell_is_a_known_hit(late: BackPatching) -> None:
    for position in EVERYWHERE:
        best = late.best_cell(position)
        assert best[0] == position
        assert (best[1], best[2]) in HITS[position]
        assert best.rate == 1.0


def test_the_heatmap_is_the_share_of_each_cell() -> None:
    result = made(
        a={"none": {(2, 1), (1, 0)}, "other": {(2, 0)}}, b={"none": {(2, 1)}, "other": set()}
    )
    share = result.heatmap()
    assert (share.index.name, share.columns.name) == ("target_layer", "source_layer")
    assert (share.loc[0, 1], share.loc[0, 2], share.loc[1, 2]) == (0.5, 0.0, 1.0)
    assert share.isna().loc[1, 1]
    assert result.heatmap("t1", "other").loc[0, 2] == 0.5


def test_the_known_heatmap(late: BackPatching) -> None:
    for position, known in HITS.items():
        share = late.heatmap(position)
        for a, b in ALL_CELLS:
            assert share.loc[b, a] == float((a, b) in known)
        assert int(share.notna().sum().sum()) == len(ALL_CELLS)


def test_an_unknown_position_or_control_is_told(late: BackPatching) -> None:
    with pytest.raises(UsageError, match="no position 't3': the run has t1, t2, t1->t2"):
        late.heatmap("t3")
    with pytest.raises(UsageError, match=r"no control 'others': the run has none, other, random"):
        late.heatmap("t1", "others")
    with pytest.raises(UsageError, match="no position 'e1'"):
        late.best_cell("e1")
    with pytest.raises(UsageError, match="no position 'e1'"):
        late.examples(position="e1")


def test_examples_tell_before_and_after(late: BackPatching) -> None:
    table = late.examples()
    names = "query position prompt bridge answer before after source_layer target_layer cells"
    assert list(table.columns) == names.split()
    assert len(table) == 9
    first = table[(table["query"] == "late-1") & (table["position"] == "t2")].iloc[0]
    assert (first["bridge"], first["answer"]) == ("Cland", "Crag")
    assert first["before"].startswith("Cland .")
    assert first["after"] == "Crag ."
    assert (first["source_layer"], first["target_layer"]) in HITS["t2"]
    assert first["cells"] == len(HITS["t2"])


def test_repaired_examples_come_first() -> None:
    result = made(
        a={"none": set()}, b={"none": {(1, 0)}}, c={"none": set()}, d={"none": {(1, 0), (2, 1)}}
    )
    assert list(result.examples()["query"]) == ["d", "b", "a", "c"]
    assert list(result.examples(n=1)["cells"]) == [2]


def test_examples_of_one_position(late: BackPatching) -> None:
    assert set(late.examples(position="t1")["position"]) == {"t1"}
    assert len(late.examples(position="t1")) == 3


def test_plot_draws_one_position(late: BackPatching) -> None:
    ax = late.plot("t2", "other")
    assert isinstance(ax, Axes)
    assert ax.get_title() == "t2, other"
    assert ax.get_xlabel().startswith("source layer")
    assert ax.get_ylabel().startswith("target layer")
    assert late.plot(ax=ax) is ax


def test_it_shows_itself(late: BackPatching) -> None:
    assert repr(late) == "BackPatching(known, known, 3 queries, 405 rows)"
    assert late._repr_mimebundle_()["text/plain"] == repr(late)


def test_it_is_saved_and_read(late: BackPatching, tmp_path: Path) -> None:
    loaded = hs.load_result(late.save(tmp_path / "deep" / "run"))
    assert isinstance(loaded, BackPatching)
    pd.testing.assert_frame_equal(loaded.frame, late.frame)
    pd.testing.assert_frame_equal(loaded.details, late.details)
    assert loaded.run == late.run
    assert loaded.best_cell()[:4] == late.best_cell()[:4]
