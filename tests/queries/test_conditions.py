"""Tests of what is written around questions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from known import known_model, known_queries

import hopscope as hs
from hopscope.errors import QueryError
from hopscope.queries.conditions import CONDITIONS, Condition
from hopscope.queries.multi_hop_query import MultiHopQuery
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery


def query(name: str) -> TwoHopQuery:
    labels = (name, f"{name}-land", f"{name}-ville")
    templates = ("The country of {}", "The capital of {}")
    return TwoHopQuery(name, *labels, *templates)


def queries(few_shot: int = 1) -> QuerySet:
    return QuerySet((query("Ann"),), "names", few_shot, pool=(query("Ann"), query("Bob")))


BOB = "The capital of the country of Bob is"
ANN = "The capital of the country of Ann is"
PROMPTS = {
    "repeated": f"{BOB}? {BOB} Bob-ville\n{ANN}? {ANN}",
    "filler": f"{BOB}{' .' * 10} Bob-ville\n{ANN}{' .' * 10}",
    "bridge_first": f"{BOB} [the country of Bob is Bob-land] Bob-ville\n"
    f"{ANN} [the country of Ann is",
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_the_demonstrations_show_how_it_is_done(name: str) -> None:
    (prompt,) = queries().with_condition(name).prompts()
    assert prompt.text == PROMPTS[name]
    assert prompt.before == prompt.text.split("\n")[0] + "\n"
    assert prompt.text[slice(*prompt.spans["e1"])] == "Ann"
    assert prompt.text[slice(*prompt.spans["t1"])] == "the country of Ann"
    assert prompt.spans["e1"][0] > prompt.text.index("capital of the country of Ann")
    assert prompt.spans["t2"][1] == len(prompt.text)


def test_the_positions_are_those_of_the_second_question() -> None:
    (prompt,) = queries(0).with_condition("repeated").prompts()
    assert prompt.spans["t1"] == (2 * len(ANN) + 2 - len("the country of Ann is"), 2 * len(ANN) - 1)


def test_a_single_hop_and_a_shortcut_have_no_bridge_to_name() -> None:
    asked = queries(0).with_condition("bridge_first")
    texts = {form: asked.prompts(form)[0].text for form in asked.forms}
    assert texts["first_hop"] == "The country of Ann is"
    assert texts["entity_shortcut"] == "The capital of Ann is"
    assert texts["relation_shortcut"] == "The capital of the country is"


def test_chains_name_every_bridge() -> None:
    rows = [(f"{x}1", f"{x}2", f"{x}3", f"{x}4") for x in "ab"]
    templates = ("The son of {}", "The town of {}", "The mayor of {}")
    both = tuple(MultiHopQuery(row[0], row, templates) for row in rows)
    asked = QuerySet(both[:1], few_shot=1, pool=both).with_condition("bridge_first")
    assert asked.prompts()[0].text == (
        "The mayor of the town of the son of b1 is [the son of b1 is b2; the town of the son of b1 "
        "is b3] b4\nThe mayor of the town of the son of a1 is [the son of a1 is"
    )
    assert asked.prompts("hops_2_3")[0].text.endswith("the town of a2 is [the town of a2 is")


def test_another_question_is_put_into_the_same_frame() -> None:
    for name in CONDITIONS:
        asked = queries().with_condition(name)
        other = asked.prompts()[0].with_question(query("Cyd"))
        assert other.text == PROMPTS[name].replace("Ann", "Cyd")


def test_the_answer_is_what_comes_behind_the_bridges() -> None:
    bridges, plain = CONDITIONS["bridge_first"], CONDITIONS["filler"]
    assert bridges.answer(" Ann-land] Ann-ville") == " Ann-ville"
    assert bridges.answer(" Ann-ville") == ""
    assert plain.answer(" Ann-ville") == " Ann-ville"


def test_a_condition_is_part_of_what_is_asked() -> None:
    sets: Sequence[QuerySet] = [queries(), *(queries().with_condition(name) for name in CONDITIONS)]
    assert len({each.fingerprint for each in sets}) == 4
    assert sets[1].with_condition(None).fingerprint == sets[0].fingerprint
    assert repr(sets[2]).endswith("few_shot=1, filler)")
    own = Condition("hint", before="Think. ", after=" probably")
    assert queries(0).with_condition(own).prompts()[0].text == f"Think. {ANN} probably"


def test_mistakes_are_told() -> None:
    with pytest.raises(QueryError, match="unknown condition 'twice': choose one of repeated"):
        queries().with_condition("twice")
    with pytest.raises(QueryError, match="after of a condition must be a text, not 7"):
        Condition("hint", after=7)  # type: ignore[arg-type]


def test_every_analysis_takes_a_condition() -> None:
    asked = known_queries().filter(lambda each: each.id in ("late-1", "late-2"))
    plain, filled = (
        hs.back_patch(known_model(), each, cells=[(3, 1)], progress=False)
        for each in (asked, asked.with_condition(Condition("is", after=" is")))
    )
    assert set(filled.details["prompt"]) == set(plain.details["prompt"])
    assert (filled.details["token"] != plain.details["token"]).any()
