"""Tests of recall(): EntRec and CnstScore on known states, beside plain hooks, and by hand."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded
from known import N_LAYERS, WORDS, known_model, known_queries
from plain import states
from torch import Tensor

import hopscope as hs
from hopscope.errors import QueryError
from hopscope.experiments.two_hop.entity_recall import Recall, consistency, recall
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery
from hopscope.statistics import mean_interval

COLUMNS = ["query", "substitute", "layer", "entrec", "entrec_substituted", "beats"]
LATE = ["late-1", "late-2"]
EARLY = ["early-1", "early-2"]


def chosen(ids: Sequence[str]) -> QuerySet:
    """Queries of the known model; its strange ones lend another first relation."""
    return known_queries().filter(lambda query: query.id in ids)


def recalled(queries: QuerySet, **settings: Any) -> Recall:
    return recall(known_model(), queries, progress=False, **settings)


def rows(result: Recall, query: str, substitute: str) -> pd.DataFrame:
    frame = result.frame
    return frame[(frame["query"] == query) & (frame["substitute"] == substitute)]


def logprob(bridge: float, *others: float) -> float:
    """Of a word that is said so strongly beside others; "Metro" has 0.5 and the rest 0."""
    rest = len(WORDS) - 2 - len(others)
    said = [math.exp(each) for each in (bridge, *others, 0.5)]
    return bridge - math.log(sum(said) + rest)


LATE_BRIDGE = {"late-1": 1 + 2 / 64, "late-2": 1 + 3 / 64}
"""What block 5 writes at the token that took the bridge over in block 4."""


@pytest.mark.parametrize("query", LATE)
@pytest.mark.parametrize("substitute", ["e1", "r1"])
def test_a_late_bridge_is_recalled_after_the_last_block(query: str, substitute: str) -> None:
    table = rows(recalled(chosen(LATE)), query, substitute)
    silent = logprob(0)
    expected = [silent] * 5 + [logprob(LATE_BRIDGE[query])]
    np.testing.assert_allclose(table["entrec"], expected, atol=1e-3)
    (other,) = set(LATE) - {query}
    instead = logprob(0, LATE_BRIDGE[other]) if substitute == "e1" else silent
    np.testing.assert_allclose(table["entrec_substituted"], [silent] * 5 + [instead], atol=1e-3)
    assert list(table["beats"]) == [False] * 5 + [True]
    assert list(table["layer"]) == list(range(N_LAYERS))


def test_an_early_bridge_is_drowned_by_the_answer() -> None:
    """Block 3 writes the answer at t1, which says it louder than block 5 says the bridge."""
    result = recalled(chosen(EARLY))
    silent, answered, named = logprob(0), logprob(0, 10), logprob(1, 10)
    own = [silent] * 3 + [answered] * 2 + [named]
    for substitute in ("e1", "r1"):
        table = rows(result, "early-1", substitute)
        np.testing.assert_allclose(table["entrec"], own, atol=1e-3)
    by_r1 = rows(result, "early-1", "r1")
    # The other relation names no country, so nothing is recalled, and nothing drowns it.
    np.testing.assert_allclose(by_r1["entrec_substituted"], silent, atol=1e-3)
    assert not by_r1["beats"].any()


def test_the_second_hop_of_the_own_bridge_says_the_same() -> None:
    result = recalled(chosen(EARLY))
    table = result.details.set_index("query")
    assert (table["consistency"] > -0.1).all()
    assert (table["consistency_other"] < -5).all()
    assert result.consistency().set_index("what")["mean"]["gain"] > 5


def test_details_say_what_was_compared() -> None:
    details = recalled(chosen(LATE)).details
    assert list(details["query"]) == LATE
    assert list(details["partner"]) == LATE[::-1]
    first = details.iloc[0]
    assert first["prompt"] == "The capital of the country of Cedar is"
    assert (first["bridge"], first["partner_bridge"]) == ("Cland", "Dland")
    assert set(details["other_relation"]) == {"The gear of {}"}


def test_without_another_relation_there_is_no_row_for_one() -> None:
    alone = chosen(LATE)
    result = recalled(replace(alone, pool=alone.queries))
    assert set(result.frame["substitute"]) == {"e1"}
    assert result.details["other_relation"].isna().all()


def places() -> QuerySet:
    """Two first relations, so that either can be substituted, and demonstrations for each."""
    sources = (
        "Kyoto",
        "the Eiffel Tower",
        "Imagine",
        "the Magic Flute",
        "Hamlet",
        "Jolene",
        "Aida",
    )
    bridges = ("Japan", "the Republic", "John Lennon", "Germany", "Denmark", "Spain", "Egypt")
    answers = ("Tokyo", "Paris", "London", "Berlin", "Roskilde", "Madrid", "Cairo")
    templates = ("The country where {} lies", "The singer of {}")
    return QuerySet(
        tuple(
            TwoHopQuery(
                id=source,
                e1_label=source,
                e2_label=bridges[number],
                e3_label=answers[number],
                r1_template=templates[number in (2, 3, 5, 6)],
                r2_template="The capital of {}",
            )
            for number, source in enumerate(sources)
        ),
        "places",
    )


@dataclass(frozen=True)
class Case:
    """What is measured in one comparison."""

    family: str
    few_shot: int

    def queries(self) -> QuerySet:
        return replace(places(), few_shot=self.few_shot)[:3]


FAMILIES = ("llama", "mistral", "gemma2", "gpt2")
CASES = [Case(f"tiny-random-{family}", shots) for family in FAMILIES for shots in (0, 1)]


@cache
def run_case(case: Case) -> Recall:
    return recall(loaded(case.family), case.queries(), seed=2, progress=False)


@torch.no_grad()
def logits(model: LanguageModel, text: str) -> Tensor:
    """Of the token after a text, by the model itself."""
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    return model.hf(input_ids=ids).logits[0, -1]  # type: ignore[no-any-return]


@torch.no_grad()
def entrec(model: LanguageModel, text: str, until: str, bridge: str) -> list[float]:
    """The bridge's first token at the last token of a part of a text, by layer."""
    hf: Any = model.hf
    ids = model.tokenizer(text)["input_ids"]
    at = len(model.tokenizer(text[: text.rindex(until) + len(until)])["input_ids"]) - 1
    norm = hf.transformer.ln_f if hf.config.model_type == "gpt2" else hf.model.norm
    read = hf.lm_head(norm(states(hf, ids)[:, at]))
    cap = getattr(hf.config, "final_logit_softcapping", None)
    read = read if cap is None else cap * torch.tanh(read / cap)
    named = bridge.removeprefix("the ")  # an article names nothing
    token = model.tokenizer(f" {named}", add_special_tokens=False)["input_ids"][0]
    return torch.log_softmax(read, dim=-1)[:, token].tolist()


def replaced(text: str, old: str, new: str) -> str:
    """A text with the last place of something changed: that of the question."""
    head, found, tail = text.rpartition(old)
    assert found
    return f"{head}{new}{tail}"


FIRST_HOPS = {
    "The country where {} lies": "the country where {} lies",
    "The singer of {}": "the singer of {}",
}
"""As they stand inside a question."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_entrec_is_the_lens_read_by_hand(case: Case) -> None:
    result, model, queries = run_case(case), loaded(case.family), case.queries()
    texts = {prompt.query_id: prompt.text for prompt in queries.prompts()}
    shown = {each.query_id: each.text[: each.few_shot].lower() for each in queries.prompts()}
    details = result.details.set_index("query")
    assert len(result.frame) == 3 * 2 * model.n_layers
    for query in queries:
        phrase = FIRST_HOPS[query.r1_template]
        own = phrase.format(query.e1_label)
        partner = queries.pool[
            [q.id for q in queries.pool].index(str(details.loc[query.id, "partner"]))
        ]
        relation = FIRST_HOPS[str(details.loc[query.id, "other_relation"])]
        assert partner.r1_template == query.r1_template
        assert relation != phrase
        assert bool(shown[query.id]) == bool(case.few_shot)
        for label in (partner.e1_label, partner.e2_label, partner.e3_label):
            assert label.lower() not in shown[query.id]
        instead = {"e1": phrase.format(partner.e1_label), "r1": relation.format(query.e1_label)}
        expected = entrec(model, texts[query.id], own, query.e2_label)
        for substitute, hop in instead.items():
            text = replaced(texts[query.id], own, hop)
            other = entrec(model, text, hop, query.e2_label)
            table = rows(result, query.id, substitute)
            np.testing.assert_allclose(table["entrec"], expected, atol=1e-3)
            np.testing.assert_allclose(table["entrec_substituted"], other, atol=1e-3)
            assert list(table["beats"]) == list(table["entrec"] > table["entrec_substituted"])


def by_hand(p: Sequence[float], q: Sequence[float]) -> float:
    """-1/2 [H(p, q) + H(q, p)], H the cross entropy."""
    forward = -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    backward = -sum(b * math.log(a) for a, b in zip(p, q, strict=True))
    return -(forward + backward) / 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cnstscore_is_of_the_models_own_predictions(case: Case) -> None:
    details = run_case(case).details.set_index("query")
    model, queries = loaded(case.family), case.queries()
    second = {prompt.query_id: prompt.text for prompt in queries.prompts("second_hop")}
    for prompt in queries.prompts():
        query, row = queries.by_id(prompt.query_id), details.loc[prompt.query_id]
        own = second[query.id]
        assert own.endswith(f"The capital of {query.e2_label} is")
        other = replaced(own, query.e2_label, str(row["partner_bridge"]))
        p, q, r = (
            torch.softmax(logits(model, text).double(), -1).tolist()
            for text in (prompt.text, own, other)
        )
        assert row["consistency"] == pytest.approx(by_hand(p, q), abs=2e-3)
        assert row["consistency_other"] == pytest.approx(by_hand(p, r), abs=2e-3)


def test_the_comparison_is_not_idle() -> None:
    for case in CASES:
        frame = run_case(case).frame
        assert set(frame["beats"]) == {True, False}, case
        assert frame["entrec_substituted"].round(3).nunique() > 0.9 * len(frame), case
        details = run_case(case).details
        assert (details["consistency"] - details["consistency_other"]).abs().max() > 0.1, case


DISTRIBUTIONS = (
    ([0.5, 0.5], [0.5, 0.5]),
    ([0.9, 0.1], [0.2, 0.8]),
    ([0.25, 0.25, 0.5], [0.1, 0.6, 0.3]),
    ([0.97, 0.01, 0.01, 0.01], [0.01, 0.97, 0.01, 0.01]),
)


@pytest.mark.parametrize(("p", "q"), DISTRIBUTIONS)
def test_consistency_is_a_cross_entropy(p: list[float], q: list[float]) -> None:
    a, b = torch.tensor([p]).log(), torch.tensor([q]).log()
    assert consistency(a, b).shape == (1,)
    assert consistency(a, b)[0] == pytest.approx(by_hand(p, q), rel=1e-5)
    assert consistency(b, a)[0] == pytest.approx(consistency(a, b)[0])


def test_consistency_of_equal_coins() -> None:
    coin = torch.tensor([[0.5, 0.5]]).log()
    assert consistency(coin, coin)[0] == pytest.approx(-math.log(2))


def certain(token: int, size: int = 4) -> Tensor:
    """A model that is as sure of one token as numbers allow."""
    return torch.log_softmax(torch.eye(size)[token] * 500, dim=-1)[None]


def test_nothing_is_more_consistent_than_the_same_certainty() -> None:
    assert consistency(certain(1), certain(1)) == [0.0]
    assert consistency(certain(1), certain(2))[0] == pytest.approx(-500)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.log_softmax(torch.randn(64, 4, generator=generator) * 3, dim=-1)
    assert (consistency(drawn, drawn.roll(1, 0)) < 0).all()
    assert (consistency(drawn, drawn) < 0).all()


def test_consistency_goes_row_by_row() -> None:
    rows_of = [torch.tensor([each[side] for each in DISTRIBUTIONS[:2]]).log() for side in (0, 1)]
    expected = [by_hand(p, q) for p, q in DISTRIBUTIONS[:2]]
    np.testing.assert_allclose(consistency(rows_of[0], rows_of[1]), expected, rtol=1e-5)


def made() -> Recall:
    frame = pd.DataFrame(
        [
            ("a", "e1", 0, -1.0, -2.0, True),
            ("b", "e1", 0, -3.0, -2.0, False),
            ("c", "e1", 0, -5.0, -6.0, True),
            ("d", "e1", 0, -7.0, -8.0, True),
            ("a", "e1", 1, -0.5, -2.0, True),
            ("b", "e1", 1, -1.5, -2.0, True),
            ("a", "r1", 0, -1.0, -0.5, False),
        ],
        columns=COLUMNS,
    )
    details = pd.DataFrame(
        {
            "query": ["a", "b", "c"],
            "consistency": [-1.0, -2.0, -6.0],
            "consistency_other": [-2.0, -5.0, -5.0],
        }
    )
    return Recall(frame, details)


def test_the_summary_is_a_share_of_queries() -> None:
    table = made().summary()
    assert list(table.columns) == ["substitute", "layer", "n", "share", "low", "high", "entrec"]
    found = table.set_index(["substitute", "layer"])
    assert found.loc[("e1", 0), ["n", "share", "entrec"]].to_list() == pytest.approx([4, 0.75, -4])
    assert found.loc[("e1", 1), ["n", "share", "entrec"]].to_list() == pytest.approx([2, 1, -1])
    assert found.loc[("r1", 0), ["n", "share", "entrec"]].to_list() == pytest.approx([1, 0, -1])
    low, high = found.loc[("e1", 0), ["low", "high"]]
    assert 0 <= low < 0.75 < high <= 1


def test_the_mean_over_layers_is_one_over_queries() -> None:
    rows = [(f"q{n}", "e1", layer, -1.0, -2.0, layer < n) for n in range(8) for layer in range(4)]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    details = made().details.head(0)
    (said, *_) = Recall(frame, details).findings()
    mean, low, high = mean_interval(np.clip(np.arange(8) / 4, 0, 1))
    assert mean == frame["beats"].mean()
    assert f"mean over layers is {100 * mean:.0f} % ({100 * low:.0f}–{100 * high:.0f})." in said


def test_the_consistency_and_its_gain() -> None:
    table = made().consistency()
    assert list(table.columns) == ["what", "n", "mean", "low", "high"]
    assert list(table["what"]) == ["own", "other", "gain"]
    assert list(table["n"]) == [3, 3, 3]
    assert table["mean"].to_list() == pytest.approx([-3, -4, 1])
    assert table[["low", "high"]].isna().all(axis=None), "three queries are too few"
    pd.testing.assert_frame_equal(made().consistency(5), made().consistency(5))


def test_the_frame_has_a_row_for_each_layer() -> None:
    frame = recalled(chosen([*LATE, *EARLY])).frame
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 4 * 2 * N_LAYERS
    assert not frame.duplicated(COLUMNS[:3]).any()
    assert frame["beats"].dtype == bool


@pytest.mark.parametrize(("bridge", "same"), [("the John Adams", True), ("Adams", False)])
def test_bridges_of_one_first_token_are_not_compared(bridge: str, same: bool) -> None:
    """EntRec could not tell them apart; the rest of the query is measured all the same."""
    model, (_, _, first, second, *_) = loaded("tiny-random-gpt2"), places()
    third = replace(places()[5], e2_label="Spain")
    asked = QuerySet((first, replace(second, e2_label=bridge)), "two")
    pool = (*asked, replace(places()[0], e2_label="Japan"))
    result = recall(model, replace(asked, pool=pool), progress=False)
    assert list(result.details["query"]) == [first.id, second.id]
    assert list(result.details["partner"]) == [second.id, first.id]
    assert result.details[["consistency", "consistency_other"]].notna().all(axis=None)
    for query in asked:
        assert len(rows(result, query.id, "e1")) == (0 if same else model.n_layers)
        assert len(rows(result, query.id, "r1")) == model.n_layers
    # A query whose partner's bridge begins otherwise is compared, whatever its set's others do.
    asked = QuerySet((first, third), "others", pool=pool)
    found = recall(model, asked, progress=False).frame
    assert set(found[found["query"] == third.id]["substitute"]) == {"e1", "r1"}


def test_a_partner_told_in_the_demonstrations_is_no_partner() -> None:
    for seed in range(5):
        queries = places().with_few_shot(2, seed)
        details = recall(loaded("tiny-random-llama"), queries, progress=False).details
        assert len(details) > 3
        shown = {each.query_id: each.text[: each.few_shot].lower() for each in queries.prompts()}
        for row in details.itertuples():
            partner = queries.by_id(row.partner)
            for label in (partner.e1_label, partner.e2_label, partner.e3_label):
                assert label.lower() not in shown[row.query]


def test_queries_without_a_partner_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    queries = chosen([*LATE, "early-1"])
    strange = replace(queries.by_id("early-1"), r1_template="The land of {}")
    odd = QuerySet((strange, *chosen(LATE)), "odd")
    with caplog.at_level(logging.WARNING):
        result = recalled(odd)
    assert "1 of 3 queries have no partner" in caplog.text
    assert set(result.frame["query"]) == set(result.details["query"]) == set(LATE)
    assert result.run["queries"]["n"] == 2
    assert set(result.details["other_relation"]) == {"The land of {}"}


def test_a_set_without_partners_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="no query of known has a partner"):
        recalled(chosen(["late-1"]), out=tmp_path / "run")
    with pytest.raises(QueryError, match="empty query set"):
        recalled(chosen([]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_query_alone_takes_its_partner_from_the_pool() -> None:
    alone = replace(chosen(["late-1"]), pool=chosen(LATE).queries)
    result = recalled(alone)
    assert list(result.details["partner"]) == ["late-2"]
    whole = rows(recalled(chosen(LATE)), "late-1", "e1").reset_index(drop=True)
    pd.testing.assert_frame_equal(rows(result, "late-1", "e1").reset_index(drop=True), whole)


def test_the_seed_chooses_the_partners() -> None:
    ids = ["early-1", "early-2", "usual", "second-line", "longer", "half"]
    partners = [list(recalled(chosen(ids), seed=seed).details["partner"]) for seed in (0, 0, 1)]
    assert partners[0] == partners[1] != partners[2]


def test_it_is_saved_and_gone_on_with(tmp_path: Path) -> None:
    result = recalled(chosen(LATE), out=tmp_path / "run")
    again = recalled(chosen(LATE), out=tmp_path / "run")
    read = hs.load_result(tmp_path / "run")
    assert isinstance(read, Recall)
    for other in (again, read):
        pd.testing.assert_frame_equal(other.frame, result.frame)
        pd.testing.assert_frame_equal(other.details, result.details)


def test_questions_that_no_substitute_tells_apart_have_no_row() -> None:
    """Both bridges begin with the same token, and there is no other first relation."""
    asked = [
        TwoHopQuery(
            id=song,
            e1_label=song,
            e2_label=bridge,
            e3_label=answer,
            r1_template="The performer of {}",
            r2_template="The spouse of {}",
        )
        for song, bridge, answer in (
            ("Imagine", "John Lennon", "Rome"),
            ("Nixon", "the John Adams", "Paris"),
        )
    ]
    result = recall(loaded("tiny-random-llama"), QuerySet(tuple(asked)), progress=False)
    assert result.frame.empty
    assert len(result.details) == 2
    assert result.summary().empty
