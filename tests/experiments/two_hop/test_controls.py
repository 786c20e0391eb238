"""Tests of the controls: whose vectors are borrowed, and random ones."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hopscope.experiments.randomness import random_like
from hopscope.experiments.two_hop.controls import choose_donors, choose_others, fingerprint
from hopscope.queries.answers import normalise
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery


def query(id: str, answer: str, r2: str = "capital", aliases: Sequence[str] = ()) -> TwoHopQuery:
    return TwoHopQuery(
        id=id,
        e1_label=f"Town {id}",
        e2_label=f"Land {id}",
        e3_label=answer,
        e3_aliases=tuple(aliases),
        r1_template="The country of {}",
        r2_template=f"The {r2} of {{}}",
        r2=r2,
    )


def many(n: int = 12) -> QuerySet:
    """Queries of two second relations, in which two neighbours share an answer."""
    relations = ("capital", "currency")
    return QuerySet(tuple(query(str(i), f"{i // 2}", relations[i % 2]) for i in range(n)))


def donors(queries: QuerySet, seed: int = 0) -> dict[str, str]:
    return {id: donor.query.id for id, donor in choose_donors(queries, seed).items()}


@pytest.mark.parametrize("seed", range(5))
def test_a_donor_has_another_answer_and_the_same_relation(seed: int) -> None:
    queries = many()
    chosen = choose_donors(queries, seed)
    assert set(chosen) == {each.id for each in queries}
    for each in queries:
        donor = chosen[each.id]
        assert donor.query.e3_label != each.e3_label
        assert donor.query.r2 == each.r2
        assert donor.same_relation


def test_a_shared_alias_is_the_same_answer() -> None:
    queries = QuerySet(
        (
            query("a", "São Paulo"),
            query("b", "Sampa", aliases=["SAO PAULO"]),
            query("c", "Rio"),
        )
    )
    for seed in range(10):
        chosen = donors(queries, seed)
        assert (chosen["a"], chosen["b"]) == ("c", "c")
        assert chosen["c"] in ("a", "b")


def test_the_template_tells_relations_apart_where_there_are_no_ids() -> None:
    first, second = (query(id, f"answer {id}", "capital") for id in "ab")
    third = query("c", "answer c", "currency")
    plain = [
        TwoHopQuery(each.id, each.e1_label, each.e2_label, each.e3_label, *templates)
        for each in (first, second, third)
        for templates in [(each.r1_template, each.r2_template)]
    ]
    chosen = donors(QuerySet(tuple(plain)))
    assert (chosen["a"], chosen["b"]) == ("b", "a")


def test_another_relation_lends_where_none_asks_the_same(caplog: pytest.LogCaptureFixture) -> None:
    queries = QuerySet((query("a", "1"), query("b", "2"), query("c", "3", "currency")))
    with caplog.at_level(logging.WARNING):
        chosen = choose_donors(queries, 0)
    assert not chosen["c"].same_relation
    assert chosen["a"].same_relation
    assert "1 of 3 queries borrow" in caplog.text


def test_a_query_without_a_donor_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    queries = QuerySet((query("a", "Paris"), query("b", "Paris"), query("c", "PARIS")))
    with caplog.at_level(logging.WARNING):
        assert choose_donors(queries, 0) == {}
    assert "3 of 3 queries have no row with control 'other'" in caplog.text


def test_all_is_quiet_when_each_query_has_its_donor(caplog: pytest.LogCaptureFixture) -> None:
    choose_donors(many(), 0)
    assert caplog.text == ""


def test_donors_are_drawn_by_seed() -> None:
    assert donors(many(), 3) == donors(many(), 3)
    assert len({tuple(donors(many(), seed).items()) for seed in range(5)}) == 5


def test_donors_do_not_depend_on_the_order_of_the_queries() -> None:
    queries = many()
    for seed in range(5):
        assert donors(QuerySet(queries.queries[::-1]), seed) == donors(queries, seed)


def test_donors_are_spread() -> None:
    """Not one donor for all: each query draws its own."""
    queries = QuerySet(tuple(query(str(i), str(i)) for i in range(40)))
    assert len(set(donors(queries).values())) > 15


def towns(n: int = 24) -> QuerySet:
    """Queries of two second relations, in which every sixth has the same bridge."""
    relations = ("capital", "currency")
    made = (query(f"t{i:02}", f"City {i:02}", relations[i % 2]) for i in range(n))
    return QuerySet(
        tuple(replace(q, e2_label=f"Land {i % 6}") for i, q in enumerate(made)), "towns"
    )


def others(queries: QuerySet, seed: int = 0) -> dict[str, str]:
    return {id: other.id for id, other in choose_others(queries, seed).items()}


@pytest.mark.parametrize("few_shot", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_another_query_shares_no_name_and_is_not_told(seed: int, few_shot: int) -> None:
    queries = towns().with_few_shot(few_shot, seed)
    chosen = choose_others(queries, seed)
    assert set(chosen) == {each.id for each in queries}
    told = 0
    for prompt in queries.prompts():
        own, other = queries.by_id(prompt.query_id), chosen[prompt.query_id]
        assert other.e2_label != own.e2_label
        assert other.e3_label != own.e3_label
        assert other.r2_template == own.r2_template
        shown = prompt.text[: prompt.few_shot]
        assert bool(shown) == bool(few_shot)
        assert other.e2_label not in shown
        assert other.e3_label not in shown
        told += any(each.e3_label in shown for each in queries)
    assert told == (len(queries) if few_shot else 0)


def test_a_bridge_that_is_the_others_answer_is_shared_too() -> None:
    first = query("a", "Land b")
    second = query("b", "City b")
    third = query("c", "City c", "currency", aliases=["CITY B"])
    assert others(QuerySet((first, second))) == {}
    assert others(QuerySet((first, second, third))) == {"a": "c", "c": "a"}


def test_a_told_query_is_no_chance_level_even_if_nothing_else_is_there() -> None:
    queries = QuerySet((query("a", "Oslo"), query("b", "Bonn"))).with_few_shot(1)
    assert others(queries) == {}
    third = query("c", "Lima", "currency")
    assert set(others(replace(queries, pool=(*queries, third)))) == {"a", "b"}
    assert others(queries.with_few_shot(0)) == {"a": "b", "b": "a"}


def test_another_query_comes_from_the_pool_whoever_else_is_asked() -> None:
    queries = towns()
    for seed in range(3):
        whole = others(queries, seed)
        assert others(replace(queries, queries=queries.queries[::-1]), seed) == whole
        assert others(replace(queries, pool=queries.queries[::-1]), seed) == whole
        for each in queries:
            alone = queries.filter(lambda q, id=each.id: q.id == id)
            assert others(alone, seed) == {each.id: whole[each.id]}
    assert others(QuerySet(queries.queries[:1])) == {}


def test_another_second_relation_is_the_last_resort() -> None:
    first, second = query("a", "Oslo"), query("b", "Krone", "currency")
    assert others(QuerySet((first, second))) == {"a": "b", "b": "a"}
    third = query("c", "Bonn")
    for seed in range(5):
        assert others(QuerySet((first, second, third)), seed)["a"] == "c"


def test_other_queries_are_drawn_by_seed_and_spread() -> None:
    assert others(towns(), 3) == others(towns(), 3)
    assert len({tuple(others(towns(), seed).items()) for seed in range(5)}) == 5
    assert len(set(others(towns()).values())) > 8


def test_the_fingerprint_tells_who_stands_beside_whom() -> None:
    first = choose_others(towns(), 0)
    turned = dict(reversed(first.items()))
    assert fingerprint(first) == fingerprint(turned) == fingerprint(choose_others(towns(), 0))
    assert fingerprint(first) != fingerprint(choose_others(towns(), 1))
    id, other = next(iter(first.items()))
    for changes in ({"e1_label": "X"}, {"e2_label": "X"}, {"e3_label": "X"}):
        assert fingerprint({**first, id: replace(other, **changes)}) != fingerprint(first)
    assert fingerprint({}) != fingerprint(first)


STATES = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.5], [1e3, 1e3, 1e3]]).repeat(1, 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_vectors_have_the_norms_of_the_states(dtype: torch.dtype) -> None:
    drawn = random_like(STATES.to(dtype), 0, "q", "t1")
    assert drawn.dtype == dtype
    assert drawn.shape == STATES.shape
    torch.testing.assert_close(drawn.float().norm(dim=-1), STATES.norm(dim=-1), rtol=5e-3, atol=0.0)


def test_random_vectors_are_drawn_by_seed_and_name_alone() -> None:
    torch.manual_seed(1)
    first = random_like(STATES, 0, "q", "t1")
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert torch.equal(random_like(STATES, 0, "q", "t1"), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    for seed, names in ((1, ("q", "t1")), (0, ("q", "t2")), (0, ("r", "t1")), (0, ("qt", "1"))):
        assert not torch.allclose(random_like(STATES, seed, *names), first)


def test_random_directions_do_not_depend_on_the_states() -> None:
    """So they are the same on every device and in every precision."""
    first, second = random_like(STATES, 0, "q"), random_like(2 * STATES.roll(1, 0), 0, "q")
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one / one.norm(), other / other.norm())


def test_random_vectors_are_gaussian_and_differ_by_layer() -> None:
    drawn = random_like(torch.ones(50, 400), 0, "q")
    assert abs(float(drawn.mean())) < 0.03
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.02)
    assert float((drawn**4).mean()) == pytest.approx(3.0, abs=0.2)
    cosines = torch.corrcoef(drawn).fill_diagonal_(0.0)
    assert float(cosines.abs().max()) < 0.25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_random_vectors_are_the_same_on_a_gpu() -> None:
    on_gpu = random_like(STATES.cuda(), 0, "q")
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), random_like(STATES, 0, "q"))


def drawn_one_by_one(queries: QuerySet, seed: int) -> dict[str, str]:
    """The rule, written out: one of the queries with another answer, drawn by seed and id."""
    found = {}
    for each in queries:
        names = {normalise(name) for name in each.names("e3")}
        others = [
            other
            for other in sorted(queries, key=lambda other: other.id)
            if not names & {normalise(name) for name in other.names("e3")}
        ]
        same = [other for other in others if other.r2 == each.r2]
        if others:
            found[each.id] = random.Random(f"{seed} {each.id}").choice(same or others).id
    return found


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ABCD"), st.sampled_from("xyz"), st.lists(st.sampled_from("ABCDE"))
        ),
        max_size=12,
    ),
    st.integers(0, 5),
)
def test_donors_are_those_that_one_by_one_would_be_drawn(
    rows: list[tuple[str, str, list[str]]], seed: int
) -> None:
    queries = [
        query(f"{number * 7 % 13}", f"answer {answer}", relation, [f"answer {a}" for a in aliases])
        for number, (answer, relation, aliases) in enumerate(rows)
    ]
    asked = QuerySet(tuple(queries))
    assert donors(asked, seed) == drawn_one_by_one(asked, seed)


def test_donors_of_many_queries_take_a_moment() -> None:
    asked = QuerySet(tuple(query(f"{n}", f"{n % 50}", f"{n % 3}") for n in range(8000)))
    start = time.process_time()
    assert len(donors(asked)) == 8000
    assert time.process_time() - start < 5
