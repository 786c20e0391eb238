"""Tests of queries of three and four hops: prompts, spans, tables, MuSiQue, the bundled sets."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import hopscope as hs
from hopscope.errors import HopscopeError, QueryError
from hopscope.queries.build_bundled import load_facts, mentions
from hopscope.queries.multi_hop_query import MultiHopQuery
from hopscope.queries.query import forms_of
from hopscope.queries.two_hop_query import FORMS, TwoHopQuery

IMAGINE = MultiHopQuery(
    "1",
    ("Imagine", "John Lennon", "Yoko Ono", "Japan"),
    ("The performer of {}", "The spouse of {}", "The home country of {}"),
    aliases=((), ("Lennon",), (), ("Nippon",)),
    entity_types=("song", "musician", "artist", "country"),
    relation_ids=("performer", "spouse", "home-country"),
)
PROMPTS = {
    "three_hop": "The home country of the spouse of the performer of Imagine is",
    "first_hop": "The performer of Imagine is",
    "second_hop": "The spouse of John Lennon is",
    "third_hop": "The home country of Yoko Ono is",
    "hops_1_2": "The spouse of the performer of Imagine is",
    "hops_2_3": "The home country of the spouse of John Lennon is",
    "without_r1": "The home country of the spouse of Imagine is",
    "without_r2": "The home country of the performer of Imagine is",
    "without_e1": "The home country of the spouse of the performer is",
    "without_e2": "The home country of the spouse is",
}


def spoken(query: MultiHopQuery, form: str) -> dict[str, str]:
    """What stands at each span of a prompt."""
    text, spans = query.compose(form)
    return {name: text[start:end] for name, (start, end) in spans.items()}


def test_every_part_of_a_chain_is_asked() -> None:
    assert {form: IMAGINE.compose(form)[0] for form in IMAGINE.forms} == PROMPTS
    assert IMAGINE.compose()[0] == PROMPTS[IMAGINE.whole]


def test_the_answers_and_demonstrations_of_the_forms() -> None:
    forms = forms_of(3)
    assert {name: form.answer for name, form in forms.items()} == {
        **dict.fromkeys(PROMPTS, "e4"),
        "first_hop": "e2",
        "second_hop": "e3",
        "hops_1_2": "e3",
    }
    shortcuts = {name: form.like for name, form in forms.items() if form.like != name}
    assert shortcuts == {
        "without_r1": "hops_2_3",
        "without_r2": "hops_2_3",
        "without_e1": "three_hop",
        "without_e2": "hops_2_3",
    }


def test_four_hops_have_every_chain_and_every_shortcut_once() -> None:
    forms = forms_of(4)
    chains = Counter(len(form.relations) for name, form in forms.items() if form.like == name)
    assert chains == {1: 4, 2: 3, 3: 2, 4: 1}
    left_out = {name for name, form in forms.items() if form.like != name}
    assert left_out == {f"without_{kind}{k}" for kind in "er" for k in (1, 2, 3)}
    assert next(iter(forms)) == "four_hop"


def test_the_positions_end_the_phrases() -> None:
    found = spoken(IMAGINE, "three_hop")
    assert found["e1"] == "Imagine"
    assert found["t1"] == found["r1e1"] == "the performer of Imagine"
    assert found["t2"] == "the spouse of the performer of Imagine"
    assert found["t3"] == PROMPTS["three_hop"]
    assert found["r2_word"] == "spouse"
    of_parts = {form: spoken(IMAGINE, form) for form in ("hops_2_3", "without_r2")}
    assert of_parts["hops_2_3"]["e2"] == "John Lennon"
    assert of_parts["hops_2_3"]["t2"] == "the spouse of John Lennon"
    assert of_parts["without_r2"]["t1"] == "the performer of Imagine"


def test_a_template_that_begins_with_its_argument_keeps_its_capital() -> None:
    query = MultiHopQuery(
        "1", ("Hamlet", "b", "c", "d"), ("{}'s author", "{}'s town", "The a of {}")
    )
    assert query.compose()[0] == "The a of Hamlet's author's town is"
    assert query.compose("hops_1_2")[0] == "Hamlet's author's town is"
    assert query.compose("without_e1")[0] == "The a of the author's town is"
    assert spoken(query, "three_hop")["t1"] == "Hamlet's author"


def two_hops() -> tuple[TwoHopQuery, MultiHopQuery]:
    """The same query in both classes."""
    first = hs.load_queries("world")[0]
    assert isinstance(first, TwoHopQuery)
    second = MultiHopQuery(first.id, first.labels, first.templates, first.aliases, first.entity_ids)
    return first, second


def test_two_hops_are_the_same_query_in_both_classes() -> None:
    first, second = two_hops()
    assert first.forms == second.forms == FORMS
    for form in FORMS:
        assert first.compose(form) == second.compose(form)
    assert (first.entities, first.bridges, first.answer) == (("e1", "e2", "e3"), ("e2",), "e3")
    assert second.names("e3") == first.names("e3")


def test_parts_have_the_names_of_their_columns() -> None:
    wanted: dict[str, object] = {
        "e1_label": "Imagine",
        "e4_aliases": ("Nippon",),
        "e2_type": "musician",
    }
    wanted |= {"r3_template": "The home country of {}", "r2": "spouse", "e1": "", "id": "1"}
    assert {name: IMAGINE.value(name) for name in wanted} == wanted
    assert IMAGINE.value("e5_label") is None


def test_a_chain_is_divided_at_a_bridge() -> None:
    at = {bridge: IMAGINE.as_two_hop(bridge) for bridge in IMAGINE.bridges}
    for bridge, query in at.items():
        assert query.two_hop() == PROMPTS["three_hop"]
        assert query.e2_label == IMAGINE.label(bridge)
    assert at["e2"].second_hop() == PROMPTS["hops_2_3"]
    assert at["e3"].first_hop() == PROMPTS["hops_1_2"]
    assert at["e3"].entity_shortcut() == "The home country of Imagine is"
    assert (at["e2"].r1, at["e2"].r2) == ("performer", "spouse.home-country")
    queries = hs.QuerySet((IMAGINE,), "songs")
    assert queries.as_two_hop("e3").queries == (at["e3"],)
    with pytest.raises(QueryError, match="unknown bridge 'e4': choose one of e2, e3"):
        queries.as_two_hop("e4")
    assert queries.as_two_hop("e2").as_two_hop("e2").queries == (at["e2"],)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"templates": ("The a of {}",)}, "1 templates were given; a query has 2 to 4 hops"),
    ({"templates": ("The a of {}",) * 5}, "5 templates were given"),
    ({"templates": "The a of {}"}, "templates must be a list, not 'The a of {}'"),
    ({"labels": ("a", "b", "c")}, "3 hops have 4 labels, not 3"),
    ({"labels": ("a", " ", "c", "d")}, "e2_label is empty"),
    ({"labels": ("a", 7, "c", "d")}, r"labels\[1\] must be a text, not 7"),
    ({"templates": ("The a of {}", "The b", "The c of {}")}, "r2_template is 'The b'"),
    ({"aliases": ("abc", (), (), ())}, "aliases must be a list, not 'abc'"),
    ({"endings": ("",)}, "3 hops have 3 endings, not 1"),
    ({"id": 7}, "id must be a text"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=str)
def test_a_mistake_is_told(changes: dict[str, Any], message: str) -> None:
    given = {"id": "1", "labels": ("a", "b", "c", "d"), "templates": IMAGINE.templates}
    with pytest.raises(QueryError, match=message):
        MultiHopQuery(**{**given, **changes})


def test_queries_of_different_hops_make_no_set() -> None:
    with pytest.raises(QueryError, match=r"not asked in the same forms \(two_hop, three_hop\)"):
        hs.QuerySet((two_hops()[0], IMAGINE))
    with pytest.raises(QueryError, match="unknown prompt form 'two_hop': choose one of three_hop"):
        hs.QuerySet((IMAGINE,)).prompts("two_hop")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_table_is_read_as_it_was_written(suffix: str, tmp_path: Path) -> None:
    queries = hs.QuerySet((IMAGINE, *hs.load_queries("world-three-hops", few_shot=0)[:3]), "songs")
    path, frame = tmp_path / f"songs{suffix}", queries.to_pandas()
    if suffix == ".csv":
        queries.to_csv(path)
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    assert hs.load_queries(path).queries == queries.queries


def test_a_table_of_several_lengths_is_read_by_hops(caplog: pytest.LogCaptureFixture) -> None:
    both = [hs.load_queries(name)[:2].to_pandas() for name in ("world", "world-three-hops")]
    frame = pd.concat(both, ignore_index=True)
    with pytest.raises(QueryError, match=r"several numbers of hops \(2 of 2, 2 of 3\).*hops="):
        hs.load_queries(frame)
    for hops in (2, 3):
        found = hs.load_queries(frame, hops=hops)
        assert (found.n_hops, len(found)) == (hops, 2)
        assert [query.compose()[0] for query in found] == list(
            frame["source_prompt"][2 * hops - 4 : 2 * hops - 2]
        )
    with pytest.raises(QueryError, match="no query of 4 hops: it has 2 of 2, 2 of 3"):
        hs.load_queries(frame, hops=4)
    with pytest.raises(QueryError, match="world has queries of 2 hops; 3 were asked for"):
        hs.load_queries("world", hops=3)
    assert not caplog.records


def test_the_demonstrations_name_no_entity_of_the_chain() -> None:
    queries = hs.load_queries("world-three-hops", few_shot=3)
    for query in queries.sample(40, seed=3):
        single = queries.filter(lambda each, id=query.id: each.id == id)  # type: ignore[misc]
        for form in queries.forms:
            before = single.prompts(form)[0].before
            assert before.count("\n") == 3
            for label in query.labels:
                assert not re.search(rf"(?<!\w){re.escape(label)}(?!\w)", before)


@pytest.mark.parametrize(("name", "n", "least"), [("three", 3, 500), ("four", 4, 500)])
def test_the_bundled_chains_have_one_answer_and_give_none_away(
    name: str, n: int, least: int
) -> None:
    facts = load_facts()
    queries = hs.load_queries(f"world-{name}-hops", few_shot=0)
    assert len(queries) >= least
    assert queries.n_hops == n
    prompts = [query.compose()[0] for query in queries]
    assert len(set(prompts)) == len(prompts)
    for query in queries:
        for k, relation in enumerate(query.relation_ids):
            assert facts.objects[query.entity_ids[k], relation] == query.entity_ids[k + 1]
            assert facts.relations[relation].template == query.templates[k]
        assert len(set(query.entity_ids)) == n + 1
    for query in queries.sample(60):
        chain = [facts.entities[each] for each in query.entity_ids]
        for form, asked in forms_of(n).items():
            text = query.compose(form)[0]
            hidden = chain[asked.start :] if asked.named else chain[-1:]
            assert not any(mentions(text, entity) for entity in hidden), (form, text)


def musique_row(**changes: Any) -> dict[str, Any]:
    steps = [
        {"question": "Where was Ann  Poe born?", "answer": "Lund", "paragraph_support_idx": 1},
        {"question": "#1 >> country", "answer": "Sweden", "paragraph_support_idx": 0},
        {"question": "Who rules #2 ?", "answer": "Carl", "paragraph_support_idx": 0},
    ]
    titles = [{"title": title, "paragraph_text": ""} for title in ("Lund", "Ann Poe")]
    row = {"id": "x", "paragraphs": titles, "question": "Who rules where Ann Poe was  born?"}
    row |= {"question_decomposition": steps, "answer": "Carl XVI", "answer_aliases": ["Carl"]}
    return row | changes


def test_musique_is_asked_in_its_own_words() -> None:
    (query,) = hs.load_queries(pd.DataFrame([musique_row()]))
    assert query.labels == ("Ann Poe", "Lund", "Sweden", "Carl XVI")
    assert query.names("e4") == ("Carl XVI", "Carl")
    assert {form: query.compose(form)[0] for form in query.forms} == {
        "three_hop": "Question: Who rules where Ann Poe was born?\nAnswer:",
        "first_hop": "Question: Where was Ann Poe born?\nAnswer:",
        "second_hop": "Question: Lund >> country\nAnswer:",
        "third_hop": "Question: Who rules Sweden ?\nAnswer:",
    }
    assert query.positions == ("t3",)
    text, spans = query.compose()
    assert text[slice(*spans["e1"])] == "Ann Poe"
    with pytest.raises(QueryError, match="its hops do not compose"):
        query.as_two_hop("e2")  # type: ignore[attr-defined]


def test_what_is_no_chain_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    step = musique_row()["question_decomposition"]
    both = {**step[2], "question": "#1 #2"}
    wrong = [
        musique_row(id="a", question_decomposition=[step[0], {**step[1], "question": "Who?"}]),
        musique_row(id="b", question_decomposition=[step[0]]),
        musique_row(id="c", paragraphs=[{"title": "Lund"}, {"title": "Nobody"}]),
        musique_row(id="d", question_decomposition=[*step[:2], both]),
    ]
    with caplog.at_level(logging.WARNING):
        unanswerable = musique_row(id="e", answerable=False)
        rows = [*wrong, unanswerable, musique_row(), musique_row()]
        queries = hs.load_queries(pd.DataFrame(rows))
    assert [query.id for query in queries] == ["x"]
    assert "6 of 7 rows are left out" in caplog.text
    with pytest.raises(QueryError, match="id 'x' is already that of row 1"):
        hs.load_queries(pd.DataFrame([musique_row(), musique_row(question="Who else?")]))
    with pytest.raises(HopscopeError, match="no row of MuSiQue"):
        hs.load_queries(pd.DataFrame([musique_row(question_decomposition=[{"no": "question"}])]))


def test_musique_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "musique.jsonl"
    path.write_text(json.dumps(musique_row()) + "\n", "utf-8")
    pd.DataFrame([musique_row()]).to_parquet(tmp_path / "musique.parquet")
    found = hs.load_queries(path, hops=3)
    assert found.queries == hs.load_queries(tmp_path / "musique.parquet").queries
    assert found.from_pandas(found.to_pandas(), hops=3).queries == found.queries
