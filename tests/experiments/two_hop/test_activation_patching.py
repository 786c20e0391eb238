"""Tests of activation_patch() on known flips and beside plain hooks, and of its tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded
from known import N_LAYERS, known_model, known_queries
from plain import plain_output, site_states
from torch import Tensor

import hopscope as hs
from hopscope.engine.edits import Cell, Patch
from hopscope.errors import QueryError, ResultError, UsageError
from hopscope.experiments.randomness import random_like
from hopscope.experiments.two_hop import activation_patching
from hopscope.experiments.two_hop.activation_patching import ActivationPatching, activation_patch
from hopscope.prompting import query_prompts
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery
from hopscope.statistics import share_difference, wilson

SITES = ("resid_post", "attn_out", "mlp_out", "z")
KEYS = ["query", "position", "site", "control", "layer", "head"]
COLUMNS = [*KEYS, "logit_diff", "recovery", "flipped"]
EARLY = ["early-1", "early-2"]


def chosen(ids: Sequence[str]) -> QuerySet:
    return known_queries().filter(lambda query: query.id in ids)


def patched(queries: QuerySet, **settings: Any) -> ActivationPatching:
    return activation_patch(known_model(), queries, progress=False, **settings)


@pytest.fixture(scope="module")
def early() -> ActivationPatching:
    return patched(chosen(EARLY), positions=("t1", "t2", "e1"), sites=SITES)


def rows(
    result: ActivationPatching, query: str, position: str, site: str, control: str = "none"
) -> pd.DataFrame:
    frame = result.frame
    here = (frame["query"] == query) & (frame["position"] == position)
    return frame[here & (frame["site"] == site) & (frame["control"] == control)]


def places_of(table: pd.DataFrame) -> set[tuple[int, int]]:
    return set(zip(table["layer"], table["head"], strict=True))


ALL_LAYERS = {(layer, -1) for layer in range(N_LAYERS)}
CARRIES: dict[tuple[str, str], set[tuple[int, int]]] = {
    # t1 names the bridge after block 1; block 2 of the last token reads it there and then.
    ("t1", "resid_post"): {(0, -1), (1, -1)},
    ("t1", "attn_out"): set(),
    ("t1", "mlp_out"): {(1, -1)},
    ("t1", "z"): set(),
    # The last token has the bridge from block 2's attention; block 3's MLP writes the answer.
    ("t2", "resid_post"): {(2, -1), (3, -1), (4, -1), (5, -1)},
    ("t2", "attn_out"): {(2, -1)},
    ("t2", "mlp_out"): {(3, -1)},
    ("t2", "z"): {(2, 2)},
}
"""Where the state of another source brings its answer: (layer, head) by position and site."""


def assert_known(result: ActivationPatching, query: str, flips: bool) -> None:
    """Recovery is 1 in the known places and 0 elsewhere; there the partner's answer is said."""
    for (position, site), known in CARRIES.items():
        table = rows(result, query, position, site)
        there = [place in known for place in zip(table["layer"], table["head"], strict=True)]
        np.testing.assert_allclose(table["recovery"], np.array(there, float), atol=1e-3)
        assert list(table["flipped"]) == [flips and each for each in there], (position, site)


@pytest.mark.parametrize("query", EARLY)
def test_the_partners_answer_comes_from_the_known_places(
    early: ActivationPatching, query: str
) -> None:
    assert_known(early, query, flips=True)


@pytest.mark.parametrize(("query", "flips"), [("late-1", True), ("early-1", False)])
def test_a_partner_whose_own_answer_is_wrong_flips_nothing(query: str, flips: bool) -> None:
    """It takes the answer away, which is recovery too, but it has none to give."""
    result = patched(chosen(["early-1", "late-1"]), sites=SITES, controls=())
    assert_known(result, query, flips)


def test_few_shot_prompts_flip_in_the_same_places() -> None:
    result = patched(chosen(EARLY).with_few_shot(2), sites=SITES, controls=())
    for query in EARLY:
        assert_known(result, query, flips=True)
    assert list(result.details["prompt"]) == [query.two_hop() for query in chosen(EARLY)]


def test_logit_differences_are_those_of_the_rules(early: ActivationPatching) -> None:
    details = early.details.set_index("query")
    for query, own, other in (("early-1", 10.0, -10.125), ("early-2", 10.125, -10.0)):
        found = details.loc[query, ["logit_diff", "partner_logit_diff"]].to_list()
        assert found == pytest.approx([own, other], abs=1e-3)
        flipped = rows(early, query, "t1", "resid_post").set_index("layer")["logit_diff"]
        assert flipped[1] == pytest.approx(other, abs=1e-3)
        assert flipped[2] == pytest.approx(own, abs=1e-3)


def test_e1_is_the_end_of_the_source(early: ActivationPatching) -> None:
    own = early.frame[early.frame["control"] == "none"].drop(columns="position")
    at = early.frame.loc[own.index, "position"]
    first, second = (own[at == name].reset_index(drop=True) for name in ("e1", "t1"))
    pd.testing.assert_frame_equal(first, second)


def test_questions_that_tell_nothing_apart_have_no_recovery() -> None:
    """Both late answers come too late: their logits are 0 in either run."""
    result = patched(chosen(["late-1", "late-2"]), sites=SITES, controls=())
    assert result.frame["recovery"].isna().all()
    assert not result.frame["flipped"].any()
    np.testing.assert_allclose(result.frame["logit_diff"], 0, atol=1e-3)
    assert result.summary()["recovery"].isna().all()
    assert (result.summary()["flip_rate"] == 0).all()


@pytest.mark.parametrize(("least", "missing"), [(20.2, True), (20.1, False)])
def test_how_near_is_too_near(least: float, missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two logit differences lie 20.125 apart, and in the other query just as far."""
    monkeypatch.setattr(activation_patching, "LEAST_DIFFERENCE", least)
    frame = patched(chosen(EARLY), sites=["mlp_out"], controls=()).frame
    assert list(frame["recovery"].isna()) == [missing] * len(frame)


def test_the_least_difference_is_half_a_nat() -> None:
    assert activation_patching.LEAST_DIFFERENCE == 0.5


def test_the_frame_has_a_row_for_each_place(early: ActivationPatching) -> None:
    frame = early.frame
    assert list(frame.columns) == COLUMNS
    heads = known_model().n_heads
    assert len(frame) == 2 * 3 * 2 * N_LAYERS * (3 + heads)
    assert not frame.duplicated(KEYS).any()
    for _, group in frame.groupby(["query", "position", "site", "control"]):
        wanted = ALL_LAYERS
        if group["site"].iloc[0] == "z":
            wanted = set(itertools.product(range(N_LAYERS), range(heads)))
        assert places_of(group) == wanted
    assert frame["flipped"].dtype == bool
    for name in ("logit_diff", "recovery"):
        assert frame[name].notna().all()


def test_details_have_one_row_a_query(early: ActivationPatching) -> None:
    first = early.details.iloc[0]
    assert list(early.details["query"]) == EARLY
    assert list(early.details["partner"]) == EARLY[::-1]
    assert first["prompt"] == "The capital of the country of Arbor is"
    assert first["partner_prompt"] == "The capital of the country of Upper Birch is"
    assert (first["answer"], first["partner_answer"]) == ("Alba", "Brig")


def test_controls_can_be_left_out() -> None:
    assert set(patched(chosen(EARLY), controls=()).frame["control"]) == {"none"}


def recorded_cells(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Cell]:
    """The cells that are swept for the first of two queries, without the unpatched one."""
    given: list[Sequence[Cell]] = []
    sweep = query_prompts.sweep

    def recording(model: Any, ids: Any, cells: Sequence[Cell], *rest: Any, **more: Any) -> Any:
        given.append(cells)
        return sweep(model, ids, cells, *rest, **more)

    monkeypatch.setattr(query_prompts, "sweep", recording)
    patched(chosen(EARLY), sites=SITES, **settings)
    partner, own = given[:2]
    assert list(partner) == [[]]
    assert own[0] == []
    return list(own[1:])


def test_random_vectors_have_the_norms_of_the_partners_states(
    monkeypatch: pytest.MonkeyPatch, early: ActivationPatching
) -> None:
    cells = recorded_cells(monkeypatch, positions=("t1", "t2", "e1"))
    table = early.frame[early.frame["query"] == "early-1"].assign(cell=cells)
    vectors = {
        tuple(row[name] for name in KEYS[1:]): row["cell"][0].vector for _, row in table.iterrows()
    }
    drawn: list[Tensor] = []
    for (position, site, control, layer, head), vector in vectors.items():
        if control == "random":
            own = vectors[position, site, "none", layer, head]
            torch.testing.assert_close(vector.norm(), own.norm(), rtol=1e-4, atol=1e-6)
            if own.norm() > 0:
                drawn.append(vector / vector.norm())
                assert not torch.allclose(vector, own)
    for one, other in itertools.combinations([each for each in drawn if len(each) > 20], 2):
        assert abs(float(one @ other)) < 0.9, "drawn once for two places"


def test_random_vectors_follow_the_seed_and_depend_on_nothing_else() -> None:
    queries = chosen(EARLY)
    first, again, other = (patched(queries, sites=SITES, seed=seed).frame for seed in (0, 0, 4))
    pd.testing.assert_frame_equal(first, again)
    own = first["control"] == "none"
    pd.testing.assert_frame_equal(first[own], other[own])
    assert (first["logit_diff"] != other["logit_diff"])[~own].any()
    turned = patched(replace(queries, queries=queries.queries[::-1]), sites=SITES[::-1]).frame
    turned = turned.set_index(KEYS).loc[list(first[KEYS].itertuples(index=False, name=None))]
    pd.testing.assert_frame_equal(turned.reset_index(), first, check_exact=False, atol=1e-5)


def test_rows_in_small_chunks_are_the_same(early: ActivationPatching) -> None:
    alone = replace(chosen(["early-1"]), pool=chosen(EARLY).queries)
    frame = patched(alone, positions=("t2",), sites=("z",), max_memory=1).frame
    asked = early.frame.query("query == 'early-1' and position == 't2' and site == 'z'")
    whole = asked.reset_index(drop=True)
    pd.testing.assert_frame_equal(frame, whole, check_exact=False, atol=1e-5)


def made(values: dict[tuple[str, str, str, int, int], list[tuple[float, bool]]]) -> Any:
    """A result with (recovery, flipped) of each query in each place."""
    frame = pd.DataFrame(
        [
            (f"q{number}", position, site, control, layer, head, 0.0, recovery, flipped)
            for (position, site, control, layer, head), each in values.items()
            for number, (recovery, flipped) in enumerate(each)
        ],
        columns=COLUMNS,
    )
    return ActivationPatching(frame, frame[["query"]].drop_duplicates())


def test_the_summary_is_a_mean_over_queries() -> None:
    result = made(
        {
            ("t1", "resid_post", "none", 0, -1): 3 * [(1.0, True), (0.5, False), (0.0, False)],
            ("t1", "resid_post", "random", 0, -1): 9 * [(0.1, False)],
            ("t1", "resid_post", "none", 1, -1): 3 * [(np.nan, True), (0.2, True), (0.4, False)],
            ("t2", "z", "none", 1, 3): 3 * [(2.0, True), (2.0, True), (-1.0, True)],
        }
    )
    table = result.summary()
    assert list(table.columns) == [
        *("position", "site", "control", "layer", "head"),
        *("n", "recovery", "low", "high", "n_flips", "flip_rate", "flip_low", "flip_high"),
    ]
    keys = ["position", "site", "control", "layer", "head"]
    found = table.set_index(keys)[["n", "recovery", "flip_rate"]]
    assert found.loc[("t1", "resid_post", "none", 0, -1)].to_list() == pytest.approx(
        [9, 0.5, 1 / 3]
    )
    assert found.loc[("t1", "resid_post", "random", 0, -1)].to_list() == pytest.approx([9, 0.1, 0])
    assert found.loc[("t1", "resid_post", "none", 1, -1)].to_list() == pytest.approx(
        [6, 0.3, 2 / 3]
    )
    assert found.loc[("t2", "z", "none", 1, 3)].to_list() == pytest.approx([9, 1.0, 1.0])
    assert list(table["n_flips"]) == [9] * 4
    flips = table[["flip_rate", "flip_low", "flip_high"]].itertuples(index=False, name=None)
    assert list(flips) == [wilson(flipped, 9) for flipped in (3, 0, 6, 9)]
    vary = table[table["control"] == "none"]
    assert ((vary["low"] <= vary["recovery"]) & (vary["recovery"] <= vary["high"])).all()
    assert table[table["control"] == "random"]["low"].isna().all()  # all are 0.1
    pd.testing.assert_frame_equal(result.summary(3), result.summary(3))


def test_flips_tell_apart_what_recovery_does_not() -> None:
    result = made(
        {
            ("t1", "resid_post", "none", 0, -1): [(0.8 + n / 100, n > 0) for n in range(9)],
            ("t1", "resid_post", "random", 0, -1): [(0.4 + n / 100, False) for n in range(9)],
        }
    )
    result = replace(result, details=result.details.assign(partner_answers=True))
    table = result.above_chance()
    keys = ["position", "site", "layer", "head"]
    assert list(table.columns) == [*keys, "n", "difference", "low", "high"]
    (row,) = table.itertuples(index=False, name=None)
    assert row == ("t1", "resid_post", 0, -1, 9, *share_difference(8, 0, 9))
    said, at_most = result.findings()
    assert at_most.startswith("The other question by itself has its answer as the likeliest token")
    assert " in 100 % (70–100): about so many flips" in at_most
    assert "recovery 0.84 (0.82 to 0.86), answer flipped in 89 % (57–98)" in said
    assert "a random vector there: recovery 0.44, flipped in 0 % (0–30), +89 points (" in said
    assert said.endswith(": more than chance.")
    alone = replace(result, frame=result.frame.query("control == 'none'"))
    assert alone.above_chance().empty
    assert alone.findings()[0].endswith("from 0 to 0.")


def test_heads_are_means_of_one_position_without_controls() -> None:
    values = {
        ("t2", "z", "none", 0, 0): [(1.0, True), (0.5, True)],
        ("t2", "z", "none", 0, 1): [(0.0, False), (0.2, False)],
        ("t2", "z", "none", 1, 0): [(np.nan, False), (0.3, False)],
        ("t2", "z", "none", 1, 1): [(-1.0, False), (1.0, False)],
        ("t2", "z", "random", 0, 0): [(9.0, False), (9.0, False)],
        ("t1", "z", "none", 0, 0): [(7.0, False), (5.0, False)],
        ("t2", "resid_post", "none", 0, -1): [(8.0, False), (8.0, False)],
    }
    table = made(values).heads()
    assert (table.index.name, table.columns.name) == ("layer", "head")
    np.testing.assert_allclose(table.to_numpy(), [[0.75, 0.1], [0.3, 0.0]])
    np.testing.assert_allclose(made(values).heads("t1").to_numpy(), [[6.0]])


def test_the_known_head(early: ActivationPatching) -> None:
    table = early.heads("t2")
    assert table.shape == (N_LAYERS, known_model().n_heads)
    expected = np.zeros(table.shape)
    expected[2, 2] = 1
    np.testing.assert_allclose(table.to_numpy(), expected, atol=1e-3)


def test_heads_that_were_not_run_are_told(early: ActivationPatching) -> None:
    with pytest.raises(UsageError, match=r"no heads at 't3': give sites=\['z', ...\]"):
        early.heads("t3")
    with pytest.raises(UsageError, match="no heads at 't2'"):
        patched(chosen(EARLY), controls=()).heads()


def cities() -> QuerySet:
    """Questions whose first hop ends after the source entity."""
    sources = ("Kyoto", "the Eiffel Tower", "Rio de Janeiro", "the Colosseum")
    answers = ("Tokyo", "Paris", "Madrid", "Rome")
    queries = tuple(
        TwoHopQuery(
            source, source, f"Land{i}", answer, "The country where {} lies", "The king of {}"
        )
        for i, (source, answer) in enumerate(zip(sources, answers, strict=True))
    )
    return QuerySet(queries, "cities")


@dataclass(frozen=True)
class Case:
    """What is patched in one comparison."""

    family: str
    few_shot: int

    def queries(self) -> QuerySet:
        """One query that is not alone: its partner comes from the pool."""
        return replace(cities(), few_shot=self.few_shot)[1:2]

    @property
    def positions(self) -> tuple[str, ...]:
        return ("t1", "t2") if self.few_shot else ("t2", "e1")


FAMILIES = ("llama", "mistral", "gemma2", "gpt2")
CASES = [Case(f"tiny-random-{family}", shots) for family in FAMILIES for shots in (0, 2)]


@cache
def run_case(case: Case) -> ActivationPatching:
    return activation_patch(
        loaded(case.family), case.queries(), case.positions, SITES, seed=3, progress=False
    )


class Plain:
    """Patches one query the plain way: one hooked forward per cell."""

    def __init__(self, case: Case, partner: str) -> None:
        model, query = loaded(case.family), case.queries()[0]
        self.hf, self.tokenizer, self.n_heads = model.hf, model.tokenizer, model.n_heads
        self.query, self.partner = query, cities().by_id(partner)
        self.text = case.queries().prompts()[0].text
        head, _, tail = self.text.rpartition(query.e1_label)
        self.other = f"{head}{self.partner.e1_label}{tail}"
        names = (query.e3_label, self.partner.e3_label)
        self.tokens = [self.ids(f" {name}", special=False)[0] for name in names]

    def ids(self, text: str, special: bool = True) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def position(self, text: str, source: str, name: str) -> int:
        """The token that ends where a prompt is cut behind a span."""
        end = text.rindex(source) + len(source)
        cut = {"e1": end, "t1": text.index(" is", end), "t2": len(text)}[name]
        return len(self.ids(text[:cut])) - 1

    def difference(self, text: str, cell: Cell) -> tuple[float, range]:
        """The answers' difference of logits, and the ranks of the partner's."""
        found = plain_output(self.hf, self.ids(text), cell)
        own, other = (float(found.logits[token]) for token in self.tokens)
        return own - other, found.ranks(self.tokens[1:])

    def cells(self, case: Case) -> Iterator[tuple[tuple[Any, ...], Patch]]:
        """The key of each row and its patch."""
        for site, position in itertools.product(SITES, case.positions):
            read = self.position(self.other, self.partner.e1_label, position)
            at = self.position(self.text, self.query.e1_label, position)
            own = site_states(self.hf, self.ids(self.other), site)[:, read]
            if site == "z":
                own = own.reshape(len(own), self.n_heads, -1)
            vectors = {"none": own, "random": random_like(own, 3, self.query.id, site, position)}
            for control, states in vectors.items():
                for layer, state in enumerate(states):
                    for head, vector in enumerate(state) if site == "z" else [(None, state)]:
                        key = (position, site, control, layer, -1 if head is None else head)
                        yield key, Patch(layer, at, vector, site, head)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_cell_equals_a_plain_hooked_forward(case: Case) -> None:
    result = run_case(case)
    plain = Plain(case, result.details["partner"].iloc[0])
    own, other = (plain.difference(text, [])[0] for text in (plain.text, plain.other))
    found = result.details[["logit_diff", "partner_logit_diff"]].iloc[0].to_list()
    assert found == pytest.approx([own, other], abs=1e-3)
    table = result.frame.set_index(KEYS[1:])
    keys = []
    for key, patch in plain.cells(case):
        difference, ranks = plain.difference(plain.text, [patch])
        row = table.loc[key]
        assert row["logit_diff"] == pytest.approx(difference, abs=1e-3), key
        recovery = (own - difference) / (own - other) if own - other >= 0.5 else np.nan
        assert row["recovery"] == pytest.approx(recovery, abs=3e-3, nan_ok=True), key
        assert 0 in ranks if row["flipped"] else ranks != range(1), key
        keys.append(key)
    assert keys == list(table.index)


def test_the_comparison_is_not_idle() -> None:
    """The patches matter, and differently."""
    for case in CASES:
        frame = run_case(case).frame
        assert frame["logit_diff"].round(4).nunique() > 0.7 * len(frame), case
    assert sum(run_case(case).frame["recovery"].notna().all() for case in CASES) >= 2


def test_the_last_state_of_the_last_token_is_all_there_is() -> None:
    """With the partner's last residual stream the model says what it says of the partner."""
    for case in CASES:
        row = run_case(case).frame.query(
            "position == 't2' and site == 'resid_post' and control == 'none' and layer == 3"
        )
        theirs = run_case(case).details["partner_logit_diff"].to_list()
        assert row["logit_diff"].to_list() == pytest.approx(theirs, abs=1e-3)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"positions": ("t1", "t3")}, "unknown position 't3': choose one of t1, t2, e1"),
    ({"positions": ()}, "give a list of positions"),
    ({"sites": ("resid_pre",)}, "unknown site 'resid_pre': choose one of resid_post, attn_out"),
    ({"sites": []}, "give a list of sites"),
    ({"controls": ("other",)}, "unknown control 'other': choose one of random"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=str)
def test_a_mistake_is_told(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        patched(chosen(EARLY), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_sets_that_cannot_be_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="empty query set"):
        patched(chosen([]), out=tmp_path / "run")
    with pytest.raises(QueryError, match="no query of known has a partner"):
        patched(chosen(["early-1"]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


FIVE = ["early-1", "early-2", "usual", "second-line", "longer"]


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"sites": ("z", "mlp_out"), "out": tmp_path / "run"}
    whole = patched(chosen(FIVE), sites=settings["sites"])
    asked: list[str] = []
    ask = activation_patching.Patcher.query

    def stopping(self: Any, query: TwoHopQuery) -> Any:
        if query.id == "longer" and "longer" not in asked:
            asked.append(query.id)
            raise KeyboardInterrupt
        asked.append(query.id)
        return ask(self, query)

    monkeypatch.setattr(activation_patching.Patcher, "query", stopping)
    with pytest.raises(KeyboardInterrupt):
        patched(chosen(FIVE), **settings)
    assert asked == FIVE
    result = patched(chosen(FIVE), **settings)
    assert asked == [*FIVE, "longer"], "what was there was computed again"
    pd.testing.assert_frame_equal(result.frame, whole.frame)
    pd.testing.assert_frame_equal(result.details, whole.details)
    loaded_again = hs.load_result(tmp_path / "run")
    assert isinstance(loaded_again, ActivationPatching)
    pd.testing.assert_frame_equal(loaded_again.frame, whole.frame)


def test_other_partners_are_another_run(tmp_path: Path) -> None:
    """The pool is no part of a zero-shot set's fingerprint, but it lends the partners."""
    alone = chosen(["early-1"])
    first, second = (replace(alone, pool=chosen([id]).queries) for id in ("early-2", "usual"))
    assert first.fingerprint == second.fingerprint
    patched(first, out=tmp_path / "run", controls=())
    with pytest.raises(ResultError, match="its settings partners is"):
        patched(second, out=tmp_path / "run", controls=())


def test_it_is_saved_and_read(early: ActivationPatching, tmp_path: Path) -> None:
    read = hs.load_result(early.save(tmp_path / "run"))
    assert isinstance(read, ActivationPatching)
    pd.testing.assert_frame_equal(read.frame, early.frame)
    pd.testing.assert_frame_equal(read.summary(), early.summary())
