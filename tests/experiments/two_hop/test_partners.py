"""Tests of the partners of queries: who is drawn for whom, and what its prompt is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from hopscope.errors import QueryError
from hopscope.experiments.two_hop.partners import fingerprint, pair_up, with_substitution
from hopscope.models.language_model import LanguageModel
from hopscope.queries.answers import normalise
from hopscope.queries.prompts import Prompt
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery

CAPITALS = "Paris Rome Madrid Berlin Tokyo Ottawa Dublin Oxford".split()  # noqa: SIM905
SEEDS = range(6)


def query(id: str, answer: str, number: int = 0, **changes: Any) -> TwoHopQuery:
    """A question about the capital of a country; `number` chooses its relations."""
    made = TwoHopQuery(
        id=id,
        e1_label=f"the tower {id}",
        e2_label=f"Land {id}",
        e3_label=answer,
        r1_template=("The country of {}", "The land where {} stands")[number % 2],
        r2_template=("The capital of {}", "The pride of {}")[number // 2],
    )
    return replace(made, **changes)


def many() -> QuerySet:
    """Eight queries of each of four pairs of relations."""
    queries = [
        query(f"{number}-{answer}", answer, number) for answer in CAPITALS for number in range(4)
    ]
    return QuerySet(tuple(queries), "many")


def partners(model: LanguageModel, queries: QuerySet, seed: int = 0) -> dict[str, str]:
    return {id: pair.partner.id for id, pair in pair_up(model, queries, seed).items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_partners_ask_the_same_of_another_source(llama: LanguageModel, seed: int) -> None:
    pairs = pair_up(llama, many(), seed)
    assert list(pairs) == [each.id for each in many()]
    for id, pair in pairs.items():
        asked, partner = pair.query, pair.partner
        assert asked == many().by_id(id)
        assert partner == many().by_id(partner.id)
        assert asked.r1_template == partner.r1_template
        assert asked.r2_template == partner.r2_template
        assert asked.e1_label != partner.e1_label
        assert asked.e2_label != partner.e2_label
        assert asked.e3_label != partner.e3_label


def test_the_tokens_are_those_that_begin_the_answers(tiny_model: LanguageModel) -> None:
    after = len(tiny_model.encode("The capital is").ids)
    for pair in pair_up(tiny_model, many(), 0).values():
        answers = (pair.query.e3_label, pair.partner.e3_label)
        found = tuple(tiny_model.encode(f"The capital is {name}").ids[after] for name in answers)
        assert pair.tokens == found
        assert pair.tokens[0] != pair.tokens[1]


def only(model: LanguageModel, first: TwoHopQuery, others: Sequence[TwoHopQuery]) -> set[str]:
    """Who is ever drawn for the first query."""
    queries = QuerySet((first, *others))
    return {partners(model, queries, seed).get(first.id, "nobody") for seed in range(12)}


FIRST = query("a", "Paris", e3_aliases=("Lutetia",), e2_aliases=("Gaul",))
UNFIT: dict[str, dict[str, Any]] = {
    "the same answer": {"e3_label": "Paris"},
    "its alias": {"e3_label": "lutetia"},
    "an alias of its own": {"e3_aliases": ("Madrid", "PÁRIS")},
    "the same bridge": {"e2_label": "Land a"},
    "an alias of the bridge": {"e2_aliases": ("GAUL",)},
    "its bridge is the answer": {"e2_label": "Paris"},
    "its answer is the bridge": {"e3_label": "Gaul"},
    "the same first token": {"e3_label": "Paris Hill"},
    "another first relation": {"r1_template": "The land of {}"},
    "another second relation": {"r2_template": "The pride of {}"},
    "another ending": {"r2_ending": " lies in"},
    "the same source": {"e1_label": "the tower a"},
}
"""What makes a query no partner; that with the source would be the same prompt twice."""


@pytest.mark.parametrize("what", UNFIT)
def test_what_makes_no_partner(llama: LanguageModel, what: str) -> None:
    unfit, fit = query("b", "Rome", **UNFIT[what]), query("c", "Madrid")
    assert only(llama, FIRST, [unfit, fit]) == {"c"}
    assert only(
        llama, FIRST, [replace(unfit, **{k: getattr(fit, k) for k in UNFIT[what]}), fit]
    ) == {*"bc"}, "another reason keeps it out, too"


def test_names_are_compared_as_answers_are() -> None:
    assert normalise("PÁRIS") == normalise("Paris")


def test_partners_are_drawn_by_seed(llama: LanguageModel) -> None:
    drawn = [partners(llama, many(), seed) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({tuple(each.items()) for each in drawn}) == 3
    assert len(set(drawn[0].values())) > 12, "one partner for many"


def test_partners_depend_on_no_order_and_no_company(llama: LanguageModel) -> None:
    whole = partners(llama, many())
    turned = replace(many(), queries=many().queries[::-1], pool=many().queries[::-1])
    assert partners(llama, turned) == whole
    for part in (many()[:3], many().filter(lambda each: each.e3_label == "Rome")):
        assert partners(llama, part) == {each.id: whole[each.id] for each in part}


def test_partners_come_from_the_set_and_its_pool(llama: LanguageModel) -> None:
    alone = QuerySet((FIRST,), pool=(query("b", "Rome"), query("c", "Madrid")))
    assert {partners(llama, alone, seed)["a"] for seed in range(12)} == {"b", "c"}
    together = QuerySet((FIRST, query("d", "Berlin")), pool=(query("b", "Rome"),))
    found = [partners(llama, together, seed) for seed in range(12)]
    assert {each["a"] for each in found} == {"b", "d"}
    assert set(found[0]) == {"a", "d"}


def test_a_query_without_a_partner_is_left_out(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    odd = query("odd", "Tokyo", r1_template="The island of {}")
    with caplog.at_level(logging.WARNING):
        assert partners(llama, QuerySet((FIRST, odd, query("b", "Rome")))) == {"a": "b", "b": "a"}
    assert "1 of 3 queries have no partner with the same two relations" in caplog.text


def test_all_is_quiet_when_each_has_one(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    pair_up(llama, many(), 0)
    assert caplog.text == ""


def test_a_set_without_any_partner_is_refused(llama: LanguageModel) -> None:
    alike = QuerySet((FIRST, query("b", "Lutetia")), "alike")
    with pytest.raises(QueryError, match=r"no query of alike has a partner: .* give a larger set"):
        pair_up(llama, alike, 0)
    assert pair_up(llama, QuerySet(()), 0) == {}


def test_the_fingerprint_is_of_the_partners(llama: LanguageModel) -> None:
    first, again, other = (pair_up(llama, many(), seed) for seed in (0, 0, 1))
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) == fingerprint(dict(reversed(again.items())))
    assert fingerprint(first) != fingerprint(other)
    fewer = dict(list(first.items())[1:])
    assert fingerprint(first) != fingerprint(fewer)
    one, two = list(first)[:2]
    swapped = first | {one: replace(first[one], partner=first[two].partner)}
    assert first[one].partner != first[two].partner
    assert fingerprint(swapped) != fingerprint(first)
    assert len(fingerprint(first)) == 64


DEMONSTRATIONS = ("", "The capital of the country of the tower is Rome.\nA second line is 2.\n")
CHANGES: tuple[tuple[dict[str, str], str, dict[str, str]], ...] = (
    (
        {"e1_label": "Big Ben"},
        "The capital of the country of Big Ben is",
        {"e1": "Big Ben", "t1": "the country of Big Ben", "r1e1": "the country of Big Ben"},
    ),
    (
        {"r1_template": "A land where {} stands"},
        "The capital of a land where the tower a stands is",
        {"e1": "the tower a", "t1": "a land where the tower a stands"},
    ),
    ({"r2_template": "{}'s pride"}, "The country of the tower a's pride is", {"e1": "the tower a"}),
    ({}, "The capital of the country of the tower a is", {"t1": "the country of the tower a"}),
)


@pytest.mark.parametrize("demonstrations", DEMONSTRATIONS)
@pytest.mark.parametrize(("changes", "text", "spans"), CHANGES)
def test_demonstrations_stay_and_spans_are_right(
    demonstrations: str, changes: dict[str, str], text: str, spans: dict[str, str]
) -> None:
    prompt = Prompt.of(FIRST, "two_hop", demonstrations)
    changed = with_substitution(prompt, FIRST, **changes)
    assert changed.text == demonstrations + text
    assert changed.few_shot == len(demonstrations) == prompt.few_shot
    assert (changed.form, changed.query_id) == ("two_hop", "a")
    for name, expected in (spans | {"t2": text}).items():
        start, end = changed.spans[name]
        assert changed.text[start:end] == expected
    assert (changed == prompt) == (not changes)


def test_the_second_hop_of_another_bridge() -> None:
    prompt = Prompt.of(FIRST, "second_hop", DEMONSTRATIONS[1])
    changed = with_substitution(prompt, FIRST, e2_label="Japan")
    assert changed.text == f"{DEMONSTRATIONS[1]}The capital of Japan is"
    start, end = changed.spans["e2"]
    assert changed.text[start:end] == "Japan"
    assert changed.form == "second_hop"
