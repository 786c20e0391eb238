"""Tests of cross_patch(): beside one hooked forward per cell, and on answers that are known."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from families import model_of
from known import N_LAYERS, known_model, known_queries
from plain import plain_output, states

import hopscope as hs
from hopscope.engine.edits import Patch
from hopscope.errors import QueryError, UsageError
from hopscope.experiments.randomness import random_like
from hopscope.experiments.two_hop.cross_patching import ROUTES, CrossPatching, Place, Route, _noun
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery

FACTS = {  # source: bridge, and by relation what it has
    "Kyoto": ("Japan", "Tokyo", "Pound"),
    "Lyon": ("France", "Paris", "water"),
    "Oxford": ("England", "London", "state"),
}
RELATIONS = {"capital": "The capital of {}", "coin": "{}'s coin"}


def asked(source: str, relation: str) -> TwoHopQuery:
    bridge, capital, coin = FACTS[source]
    return TwoHopQuery(
        id=f"{source} {relation}",
        e1_label=source,
        e2_label=bridge,
        e3_label=capital if relation == "capital" else coin,
        r1_template="The country where {} lies",
        r2_template=RELATIONS[relation],
    )


QUERIES = QuerySet(tuple(asked(s, r) for s in FACTS for r in RELATIONS), "places")
TEXTS = {
    "Kyoto capital": "The capital of the country where Kyoto lies is",
    "Lyon capital": "The capital of the country where Lyon lies is",
    "Kyoto coin": "The country where Kyoto lies's coin is",
}
# By route: the source prompt and the text of its token, and the same of the target.
WRITTEN = {
    "t1->r2(x)": (TEXTS["Kyoto capital"], " lies", "The capital of x is", " x"),
    "t1->r2(r1(x))": (
        TEXTS["Kyoto capital"],
        " lies",
        "The capital of the country where x lies is",
        " x",
    ),
    "r2->x(r1(e1))": (
        TEXTS["Kyoto capital"],
        " capital",
        "the x of the country where Kyoto lies is",
        " x",
    ),
    "r2<->r2": (TEXTS["Kyoto coin"], " coin", TEXTS["Kyoto capital"], " capital"),
    "other r2->t2": ("Japan's coin is", " coin", TEXTS["Kyoto capital"], " is"),
}


def ends_of(model: LanguageModel, text: str, part: str) -> int:
    """The last token of a part of a text, by cutting the text behind it."""
    return len(model.tokenizer(text[: text.rindex(part) + len(part)])["input_ids"]) - 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mixtral", "gpt_neox"])
@pytest.mark.parametrize("route", WRITTEN)
def test_cells_equal_one_hooked_forward_each(family: str, route: str) -> None:
    model = model_of(family)
    layers = [0, model.n_layers - 1]
    result = hs.cross_patch(
        model,
        QUERIES[:1],
        [route],
        controls=["random"],
        source_layers=layers,
        target_layers=layers,
        max_new_tokens=4,
        stop_early=False,
        progress=False,
    )
    source, read, target, written = WRITTEN[route]
    assert result.details["source_prompt"].item() == source
    assert result.details["prompt"].item() == target
    ids = model.tokenizer(target)["input_ids"]
    own = states(model.hf, model.tokenizer(source)["input_ids"])[:, ends_of(model, source, read)]
    vectors = {"none": own, "random": random_like(own, 0, "Kyoto capital", route)}
    answer = QUERIES.by_id(result.details["partner"].item())
    tokens = model.answer_tokens(answer.names("e3"), beside=answer.names("e2"), after=target)
    assert len(result.frame) == 8
    for row in result.frame.itertuples():
        patch = Patch(
            row.target_layer,
            ends_of(model, target, written),
            vectors[row.control][row.source_layer],
        )
        plain = plain_output(model.hf, ids, [patch], 4, model.end_tokens)
        assert row.generation == model.decode(plain.tokens)
        assert row.answer_rank in plain.ranks(tokens)
        assert row.answer_logprob == pytest.approx(plain.logprob(tokens), abs=1e-4)


def test_the_other_state_is_read_in_the_donors_own_prompt() -> None:
    model, capitals = model_of("llama"), QUERIES.filter(lambda query: query.r2_template[0] == "T")
    result = hs.cross_patch(
        model,
        capitals,
        ["t1->r2(x)"],
        controls=["other"],
        source_layers=[1],
        target_layers=[0],
        criterion="first_token",
        progress=False,
    )
    text, found = "The capital of x is", result.frame.query("control == 'other'")
    donors = result.details.set_index("query")["donor"]
    for row in found.itertuples():
        query, lent = QUERIES.by_id(row.query), QUERIES.by_id(donors[row.query]).two_hop()
        state = states(model.hf, model.tokenizer(lent)["input_ids"])[
            1, ends_of(model, lent, " lies")
        ]
        patch = Patch(0, ends_of(model, text, " x"), state)
        ids = model.tokenizer(text)["input_ids"]
        plain = plain_output(model.hf, ids, [patch], 1, model.end_tokens)
        tokens = model.answer_tokens(query.names("e3"), beside=query.names("e2"), after=text)
        assert row.answer_logprob == pytest.approx(plain.logprob(tokens), abs=1e-4)
    assert len(found) == len(capitals)


def patched(queries: QuerySet, *routes: str, **settings: Any) -> CrossPatching:
    return hs.cross_patch(known_model(), queries, routes, progress=False, **settings)


def known(*ids: str) -> QuerySet:
    return known_queries().filter(lambda query: query.id in ids)


def test_the_state_of_a_bridge_answers_in_the_place_of_x() -> None:
    """The known model names a late source's bridge after block 3, and reads it before block 2."""
    result = patched(known("late-1", "late-2"), "t1->r2(x)", controls=("other",))
    own = result.heatmap(control="none")
    right = {(a, b) for a in range(N_LAYERS) for b in range(N_LAYERS) if own.loc[b, a] == 1.0}
    assert right == {(a, b) for a in (3, 4, 5) for b in (0, 1, 2)} - {(5, 2), (4, 2), (3, 2)}
    assert not result.heatmap(control="other").to_numpy().any()


def test_a_partner_brings_its_own_answer() -> None:
    result = patched(known_queries(), "e1<->e1", controls=())
    partners = dict(zip(result.details["query"], result.details["partner"], strict=True))
    assert all(query != partner for query, partner in partners.items())
    told = result.run["settings"]["partners"]
    other = patched(known("late-1", "early-1"), "e1<->e1", "t1->r2(x)", controls=())
    assert set(told) == set(other.run["settings"]["partners"]) == {"source"}
    assert told != other.run["settings"]["partners"], "with other partners it is another run"
    answers = {query.id: query.e3_label for query in known_queries()}
    for query, answer in zip(result.details["query"], result.details["answer"], strict=True):
        assert answer == answers[partners[query]]
    # the first block's output of another source is all that there is of the source
    first = result.frame.query("source_layer == 0 and target_layer == 0").set_index("query")["hit"]
    assert first[[each for each in first.index if partners[each].startswith("early")]].all()


def test_the_control_of_a_relation_asks_another_relation() -> None:
    result = hs.cross_patch(
        model_of("llama"),
        QUERIES,
        ["r2<->r2", "t1->r2(x)"],
        source_layers=[0],
        target_layers=[0],
        progress=False,
    )
    relation = {query.id: query.r2_template for query in QUERIES}
    for row in result.details.itertuples():
        same = relation[row.partner] == relation[row.donor]
        assert same == (row.position == "t1->r2(x)") == row.donor_same_relation


def test_one_that_finds_no_other_relation_is_told(caplog: pytest.LogCaptureFixture) -> None:
    capitals = QUERIES.filter(lambda query: query.id.endswith("capital"))
    alone = hs.QuerySet(tuple(capitals), "capitals")
    with caplog.at_level(logging.WARNING):
        result = hs.cross_patch(
            model_of("llama"),
            alone,
            ["r2->x(r1(e1))"],
            source_layers=[0],
            target_layers=[0],
            progress=False,
        )
    assert "3 of 3 queries borrow" in caplog.text
    assert result.details["donor_same_relation"].all()


def test_a_route_of_ones_own_equals_the_one_there_is() -> None:
    own = {"mine": Route(Place("two_hop", "t1"), Place("second_hop", "e2", placeholder="e2"))}
    mine = hs.cross_patch(known_model(), known("late-1"), own, controls=(), progress=False)
    theirs = patched(known("late-1"), "t1->r2(x)", controls=())
    assert mine.frame["position"].unique().tolist() == ["mine"]
    assert mine.frame.drop(columns="position").equals(theirs.frame.drop(columns="position"))
    assert mine.run["settings"]["routes"]["mine"] == ROUTES["t1->r2(x)"].record


def test_a_result_is_saved_with_its_kind(tmp_path: Path) -> None:
    result = patched(known("late-1", "late-2"), "t1->r2(x)", out=tmp_path / "run")
    again = CrossPatching.load(tmp_path / "run")
    assert again.frame.equals(result.frame)
    assert again.findings() == result.findings()
    assert "by t1->r2(x) some cell brings the expected answer" in again.findings()[0]
    assert again.grid() is not None
    assert again.plot("t1->r2(x)") is not None


def test_few_shot_prompts_keep_the_querys_own_demonstrations() -> None:
    queries = known_queries().with_few_shot(2)
    late = queries.filter(lambda query: query.id == "late-1")
    result = hs.cross_patch(known_model(), late, ["t1->r2(x)"], controls=(), progress=False)
    plain = patched(known("late-1"), "t1->r2(x)", controls=(), one_line=True)
    assert result.frame["hit"].tolist() == plain.frame["hit"].tolist()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"routes": ["t1->x"]}, "route"),
        ({"routes": []}, "route"),
        ({"routes": {}}, "at least one route"),
        ({"routes": {"mine": "t1->r2(x)"}}, "hs.Route"),
        ({"source_layers": [9]}, "layers are numbers"),
        ({"controls": ["none"]}, "control"),
        ({"criterion": "sure"}, "criterion"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hs.cross_patch(known_model(), known("late-1"), **wrong)


@pytest.mark.parametrize("field", ["form", "position", "placeholder"])
def test_a_place_that_cannot_be_is_refused(field: str) -> None:
    given = {"form": "two_hop", "position": "t1", "placeholder": ""}
    with pytest.raises(UsageError, match="nowhere"):
        Place(**{**given, field: "nowhere"})  # type: ignore[arg-type]


def test_a_query_without_a_partner_is_refused() -> None:
    alone = hs.QuerySet((asked("Kyoto", "capital"),), "alone")
    with pytest.raises(QueryError, match="same bridge, another second relation"):
        hs.cross_patch(model_of("llama"), alone, ["r2<->r2"], progress=False)


@pytest.mark.parametrize(
    ("template", "argument", "noun"),
    [
        ("the capital of {}", "France", "capital"),
        ("{}'s mother", "Ann", "mother"),
        ("the country where {} lies", "Kyoto", "country"),
        ("The art of the artist of {}", "Imagine", "artist"),
    ],
)
def test_the_noun_of_a_relation_is_found(template: str, argument: str, noun: str) -> None:
    start, end = _noun(template, argument, 3)
    assert f"...{template.replace('{}', argument)}"[start:end] == noun
