"""Tests of demonstrations.py: few-shot examples that give no answer away."""

from __future__ import annotations

import dataclasses
import re
import time
import unicodedata
from collections import Counter
from typing import Literal

import pytest

from hopscope.errors import QueryError
from hopscope.queries.demonstrations import Demonstrations, demonstration_order
from hopscope.queries.load import load_queries
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import FORMS, Form, TwoHopQuery

RELATIONS = ["capital", "currency", "largest city", "national anthem"]


def invented(number: int, relation: str = "capital") -> TwoHopQuery:
    """A query about a city, land and answer that no other number has."""
    return TwoHopQuery(
        id=f"{relation} {number}",
        e1_label=f"Town{number}",
        e2_label=f"Land{number}",
        e3_label=f"Answer{number}{relation[0]}",
        r1_template="The country of {}",
        r2_template=f"The {relation} of {{}}",
    )


POOL = QuerySet(
    tuple(invented(i * 4 + j, name) for i in range(10) for j, name in enumerate(RELATIONS))
)


@pytest.fixture(scope="module")
def world() -> QuerySet:
    return load_queries("world")


def folded_words(text: str) -> str:
    """An independent folding: no marks, no case, every run of other characters one space."""
    letters = unicodedata.normalize("NFD", text.casefold())
    plain = "".join(c for c in letters if not unicodedata.combining(c))
    return " " + re.sub(r"[\W_]+", " ", plain) + " "


def test_no_demonstration_names_an_entity_of_the_query(world: QuerySet) -> None:
    """Every name of e1, e2, e3, on every form; but for words of the query's own templates."""
    for form in FORMS:
        for prompt in world.prompts(form):
            query = world.by_id(prompt.query_id)
            shown = folded_words(prompt.text[: prompt.few_shot])
            own = folded_words(f"{query.r1_template} is {query.r2_template}")
            for entity in ("e1", "e2", "e3"):
                for name in query.names(entity):
                    word = f" {folded_words(name).strip()} "
                    if len(word) > 3 and word not in own:
                        assert word not in shown, (query.id, name)


def test_aliases_keep_a_demonstration_out_too() -> None:
    queries = list(POOL)
    first = POOL.with_few_shot(3)
    shown = Demonstrations(POOL.queries, 3, 0).of(queries[0])
    queries[0] = dataclasses.replace(queries[0], e2_aliases=(shown[0].e3_label.upper(),))
    again = dataclasses.replace(first, queries=tuple(queries))
    assert shown[0].e3_label not in again.prompts()[0].text
    assert shown[0].e3_label in first.prompts()[0].text


def test_a_demonstration_by_another_name_is_kept_out_by_its_id_or_alias() -> None:
    shown = Demonstrations(POOL.queries, 1, 0).of(POOL[0])[0]
    for change in ({"e2": "Q1"}, {"e2_aliases": ("Same Land",)}):
        pool = [dataclasses.replace(q, **change) if q == shown else q for q in POOL]
        asked = dataclasses.replace(POOL[0], **change)
        assert Demonstrations(pool, 1, 0).of(asked)[0].id != shown.id


def test_a_name_that_is_a_template_word_does_not_rule_every_demonstration_out() -> None:
    iceland = dataclasses.replace(POOL[0], e2_aliases=("IS", "the"))
    assert len(Demonstrations(POOL.queries, 4, 0).of(iceland)) == 4


def test_a_query_is_never_its_own_demonstration() -> None:
    demonstrations = Demonstrations(POOL.queries, 30, 0)
    assert all(query not in demonstrations.of(query) for query in POOL)
    short = [
        dataclasses.replace(invented(i), e1_label=a, e2_label=a, e3_label=a)
        for i, a in enumerate("xyz")
    ]
    for query in short:  # names of one letter touch nothing
        assert query not in Demonstrations(short, 2, 0).of(query)


def test_nearly_all_queries_share_their_demonstrations(world: QuerySet) -> None:
    prompts = world.prompts()
    starts = Counter(prompt.text[: prompt.few_shot] for prompt in prompts)
    assert starts.most_common(1)[0][1] > 0.8 * len(prompts)


def test_demonstrations_differ_in_relations_and_answers(world: QuerySet) -> None:
    shown = Demonstrations(world.queries, 5, 0).of(world[0])
    assert len({(query.r1_template, query.r2_template) for query in shown}) == 5
    assert len({query.e3_label for query in shown}) == 5
    assert len({query.r2_template for query in shown}) == 5


def test_the_lines_ask_in_a_form_that_fits() -> None:
    queries = POOL.with_few_shot(2)
    shown = Demonstrations(POOL.queries, 2, 0).of(POOL[0])
    two = [f"{each.two_hop()} {each.e3_label}\n" for each in shown]
    first = [f"{each.first_hop()} {each.e2_label}\n" for each in shown]
    second = [f"{each.second_hop()} {each.e3_label}\n" for each in shown]
    expected = {
        "two_hop": two,
        "relation_shortcut": two,
        "first_hop": first,
        "second_hop": second,
        "entity_shortcut": second,
    }
    for form in FORMS:
        prompt = queries.prompts(form)[0]
        assert prompt.text == "".join(expected[form]) + getattr(POOL[0], form)()
        assert prompt.few_shot == len("".join(expected[form]))


def test_seeds_choose_and_repeat() -> None:
    texts = [POOL.with_few_shot(3, seed).prompts()[0].text for seed in (0, 0, 1, 2)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_subsets_take_demonstrations_from_the_whole_set() -> None:
    whole = POOL.with_few_shot(4)
    assert whole[:1].prompts() == whole.prompts()[:1]
    assert whole.sample(2).filter(lambda query: True).prompts()[0] in whole.prompts()


def test_arrange_keeps_every_query_once() -> None:
    assert sorted(demonstration_order(POOL.queries, 3), key=POOL.queries.index) == list(POOL)


def test_common_entities_come_late() -> None:
    everywhere = [
        dataclasses.replace(invented(i, "anthem"), e3_label="Everywhere") for i in range(100, 110)
    ]
    order = demonstration_order((*everywhere, *(invented(i) for i in range(100))), 0)
    assert {query.e3_label for query in order[-10:]} == {"Everywhere"}


def test_a_pool_that_cannot_serve_is_an_error() -> None:
    two = QuerySet((invented(1), dataclasses.replace(invented(2), e2_label="Land1")))
    with pytest.raises(QueryError, match=r"query 'capital 1': only 0 of 2 .* 1 were asked"):
        two.with_few_shot(1).prompts()
    with pytest.raises(QueryError, match=r"40 demonstrations .* only 40 queries"):
        POOL.with_few_shot(40)
    with pytest.raises(QueryError, match="0 or more, not -1"):
        POOL.with_few_shot(-1)
    with pytest.raises(QueryError, match="'riddle'"):
        Demonstrations(POOL.queries, 1, 0).text(POOL[0], "riddle")  # type: ignore[arg-type]


def test_it_takes_a_moment_and_then_none(world: QuerySet) -> None:
    fresh = dataclasses.replace(world)
    start = time.process_time()
    fresh.prompts()
    first = time.process_time() - start
    fresh.prompts()
    assert first < 10
    assert time.process_time() - start - first < 0.1


def words_of(query: TwoHopQuery, form: Form) -> str:
    answer = query.e2_label if form == "first_hop" else query.e3_label
    return folded_words(f"{query.compose(form)[0]} {answer}")


def first_that_fit(pool: QuerySet, query: TwoHopQuery, k: int, seed: int) -> list[str]:
    """The rule, written out: the ids of the first k of the order that mention no entity."""
    own = folded_words(f"{query.r1_template} is {query.r2_template} is".replace("{}", " "))
    entities: tuple[Literal["e1", "e2", "e3"], ...] = ("e1", "e2", "e3")
    spelled = {folded_words(name) for entity in entities for name in query.names(entity)}
    spelled = {name for name in spelled if len(name.replace(" ", "")) > 1}
    chosen = []
    for other in demonstration_order(pool, seed):
        text = "".join(words_of(other, form) for form in ("two_hop", "first_hop", "second_hop"))
        labels = "".join(folded_words(getattr(other, f"{e}_label")) for e in entities)
        theirs = {folded_words(name) for entity in entities for name in other.names(entity)}
        ids = {query.e1, query.e2, query.e3} & {other.e1, other.e2, other.e3} - {""}
        mentions = [name in (labels if name in own else text) for name in spelled]
        shared = theirs & {name for name in spelled if name not in own}
        if other.id != query.id and not ids and not shared and not any(mentions):
            chosen.append(other.id)
    return chosen[:k]


@pytest.mark.parametrize(("k", "seed"), [(3, 0), (20, 1), (100, 2)])
def test_they_are_the_first_that_fit_however_far_one_looks(
    world: QuerySet, k: int, seed: int
) -> None:
    pool = world.sample(250, seed)
    chooser = Demonstrations(pool, k, seed)
    for query in pool.sample(15, seed):
        assert [each.id for each in chooser.of(query)] == first_that_fit(pool, query, k, seed)


def test_the_names_of_scripts_without_spaces_count_anywhere() -> None:
    about = dataclasses.replace(invented(1), e3_label="日本", e3_aliases=("東京都",))
    near = [dataclasses.replace(invented(n), e2_label="新東京都庁") for n in range(2, 80)]
    pool = QuerySet((about, *near, invented(100), invented(101)))
    chosen = Demonstrations(pool, 2, 0).of(about)
    assert {each.id for each in chosen} == {"capital 100", "capital 101"}


@pytest.mark.parametrize("kind", ["one answer", "templates of their own"])
def test_demonstrations_from_a_large_pool_take_a_moment(kind: str) -> None:
    """All but a few have the answer of the query, or each second one a template of its own."""

    def changed(number: int) -> TwoHopQuery:
        query = invented(number)
        if kind == "one answer":
            return query if number % 900 == 0 else dataclasses.replace(query, e3_label="Europe")
        own = f"The country number {number} of {{}}"
        return query if number % 2 else dataclasses.replace(query, r1_template=own)

    pool = [changed(number) for number in range(6000)]
    chooser = Demonstrations(pool, 6, 0)
    assert len(chooser.of(pool[1])) == 6
    start = time.process_time()
    for query in pool[2:1502]:
        chooser.of(query)
    assert time.process_time() - start < 5
