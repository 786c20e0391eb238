"""Tests of knockout() on known edges and beside brute-force attention, and of what it computes."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import loaded
from known import CORRECT, N_LAYERS, known_model, known_queries
from plain import PlainOutput, plain_output

import hopscope as hs
from hopscope.engine.edits import Knockout
from hopscope.errors import QueryError, UsageError
from hopscope.experiments.two_hop.attention_knockout import EDGES, Knockouts, knockout
from hopscope.models.language_model import LanguageModel
from hopscope.queries.answers import matches
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery

COLUMNS = [
    *("query", "edge", "control", "layer", "changed", "hit", "prediction_change"),
    *("answer_change", "answer_rank", "answer_logprob", "generation"),
]
LAYERS = set(range(N_LAYERS))


def chosen(*ids: str) -> QuerySet:
    return known_queries().filter(lambda query: query.id in ids)


def knocked(queries: QuerySet, **settings: Any) -> Knockouts:
    return knockout(known_model(), queries, **{"progress": False, "max_new_tokens": 2, **settings})


def rows(result: Knockouts, query: str, edge: str, control: str = "none") -> pd.DataFrame:
    frame = result.frame
    here = (frame["query"] == query) & (frame["edge"] == edge) & (frame["control"] == control)
    return frame[here].set_index("layer")


def bites(result: Knockouts, query: str, edge: str, control: str = "none") -> set[int]:
    """The layers at which the answer changes."""
    there = rows(result, query, edge, control)
    return set(there.index[there["changed"].astype(bool)])


def tokens_of(result: Knockouts, query: str, edge: str, control: str) -> tuple[list[int], ...]:
    details = result.details
    here = (details["query"] == query) & (details["edge"] == edge)
    row = details[here & (details["control"] == control)].iloc[0]
    return json.loads(row["query_tokens"]), json.loads(row["key_tokens"])


def around(blocks: Iterable[int], window: int) -> set[int]:
    """The middles of the windows that hold one of the blocks."""
    return {layer for layer in LAYERS if any(abs(layer - block) <= window for block in blocks)}


# "The capital of the country of Cedar is": 0 The, 1 capital, 2 of, 3 the, 4 country, 5 of,
# 6 Cedar, 7 is; in early-2 and late-2 "Upper Birch" takes two tokens.

BITES: dict[str, dict[str, set[int]]] = {
    # t2 takes over the bridge in block 2, in time for the answer in block 3 ...
    "early-1": {"t2->t1": {2}, "t2->e1": {2}, "t2->r1": set(), "t2->r2": {0}, "t1->r1": {0}},
    # ... whose last word alone names it: "Upper" does not matter.
    "early-2": {"t2->t1": {2}, "t2->e1": {2}, "t1->e1": set(), "t1->r1": {0}, "t1->r2": set()},
    # A late bridge is taken over in block 4, too late for the answer: the bridge itself is said.
    "late-1": {"t2->t1": {4}, "t2->e1": {4}, "t2->r1": set(), "t2->r2": set(), "t1->r1": {0}},
    "late-2": {"t2->t1": {4}, "t2->e1": {4}, "t1->e1": set(), "t1->r1": {0}, "t1->r2": set()},
    # This source names its bridge where no country is asked for, too.
    "named": {"t2->t1": {2}, "t1->r1": set(), "t2->before": {0, 2}, "t1->before": set()},
}
"""For each query and edge the blocks in which it carries what the model says."""


@pytest.mark.parametrize("window", [0, 1, 2, 3])
@pytest.mark.parametrize("query", BITES)
def test_known_edges_bite_in_the_known_windows(query: str, window: int) -> None:
    known = BITES[query]
    result = knocked(chosen(query), edges=list(known), controls=(), window=window)
    assert {edge: bites(result, query, edge) for edge in known} == {
        edge: around(blocks, window) for edge, blocks in known.items()
    }


@pytest.mark.parametrize(
    ("query", "edge", "window", "said"),
    [
        ("early-1", "t2->t1", 0, {0: "Alba", 2: "Aland", 4: "Alba"}),
        # Blind in both blocks, t2 has nothing to say; blind in one of them it names the bridge.
        ("early-1", "t2->t1", 1, {0: "Alba", 1: "Aland", 3: "Metro", 4: "Alba"}),
        ("early-1", "t2->t1", 2, {0: "Aland", 2: "Metro", 5: "Alba"}),
        ("early-1", "t2->r2", 0, {0: "Aland", 1: "Alba"}),
        ("early-1", "t1->r1", 0, {0: "Metro", 1: "Alba"}),
        ("late-1", "t2->t1", 0, {2: "Cland", 4: "Metro"}),
    ],
)
def test_knocked_out_models_say_what_is_known(
    query: str, edge: str, window: int, said: dict[int, str]
) -> None:
    result = knocked(chosen(query), edges=[edge], controls=(), window=window)
    generations = rows(result, query, edge)["generation"]
    assert {layer: str(generations[layer]).split()[0] for layer in said} == said


def test_measures_of_a_known_knockout() -> None:
    """Block 3 writes the answer with 10; block 5 the bridge with 1; the embedding "Metro", 1/2."""
    result = knocked(chosen("early-1"), edges=["t2->t1"], controls=(), window=0)
    found = rows(result, "early-1", "t2->t1")
    n_words = known_model().vocab_size

    def logprob(logit: float, *others: float) -> float:
        silent = n_words - 1 - len(others)
        return logit - float(np.log(np.exp([logit, *others]).sum() + silent))

    clean, knocked_out = logprob(10, 1, 0.5), logprob(0, 1, 0.5)
    assert result.details["clean_logprob"].tolist() == [pytest.approx(clean, abs=1e-4)]
    assert found["answer_logprob"][2] == pytest.approx(knocked_out, abs=1e-4)
    assert found["answer_change"][2] == pytest.approx(knocked_out - clean, abs=1e-4)
    assert found["prediction_change"][2] == pytest.approx(knocked_out - clean, abs=1e-4)
    assert found["answer_rank"].to_dict() == {layer: 2 if layer == 2 else 0 for layer in LAYERS}
    assert found["hit"].to_dict() == {layer: layer != 2 for layer in LAYERS}
    late = rows(knocked(chosen("late-1"), edges=["t2->t1"], window=0), "late-1", "t2->t1")
    said_before, said_after = logprob(1 + 2 / 64, 0.5), logprob(0, 0.5)
    assert late["prediction_change"][4] == pytest.approx(said_after - said_before, abs=1e-4)
    assert late["answer_change"][4] == pytest.approx(
        logprob(0, 0.5) - logprob(0, 1 + 2 / 64, 0.5), abs=1e-4
    )
    assert not late["hit"].any()


def test_some_heads_alone() -> None:
    """Head 2 takes bridges over; head 0 notes the country, head 1 the capital."""
    for heads, layers in ((None, {2}), ([2], {2}), ([0, 1], set()), ([2, 0], {2})):
        result = knocked(chosen("early-1"), edges=["t2->t1"], heads=heads, window=0)
        assert bites(result, "early-1", "t2->t1") == layers
    for heads, layers in (([0], {0}), ([1], set()), ([2], set())):
        result = knocked(chosen("early-1"), edges=["t1->r1"], heads=heads, window=0)
        assert bites(result, "early-1", "t1->r1") == layers
    for heads, layers in (([0], set()), ([1], {0})):
        result = knocked(chosen("early-1"), edges=["t2->r2"], heads=heads, window=0)
        assert bites(result, "early-1", "t2->r2") == layers


def test_layers_can_be_chosen() -> None:
    result = knocked(chosen(*CORRECT), layers=[4, 2, 4, 1], window=1, controls=())
    assert list(dict.fromkeys(result.frame["layer"])) == [4, 2, 1]
    assert result.run["settings"]["layers"] == [4, 2, 1]
    assert bites(result, "early-1", "t2->t1") == {1, 2}


def test_the_words_that_stand_for_relations() -> None:
    """ "country" and "capital" are the third words from the ends; a template of two has none."""
    edges = ["t2->r1_word", "t2->r2_word", "t1->r1_word", "t1->r2_word", "r1_word->r2_word"]
    result = knocked(chosen("early-1", "late-2"), edges=edges, controls=(), window=0)
    for query, last in (("early-1", 7), ("late-2", 8)):
        found = {edge: tokens_of(result, query, edge, "none") for edge in edges}
        assert found == {
            "t2->r1_word": ([last], [4]),
            "t2->r2_word": ([last], [1]),
            "t1->r1_word": ([last - 1], [4]),
            "t1->r2_word": ([last - 1], [1]),
            "r1_word->r2_word": ([4], [1]),
        }
    assert bites(result, "early-1", "t1->r1_word") == bites(result, "early-1", "t2->r2_word") == {0}
    assert bites(result, "early-1", "t2->r1_word") == set()
    short = [replace(each, r1_template="country {}") for each in chosen("early-1")]
    without = knocked(QuerySet(tuple(short), "short"), edges=edges[:2], controls=())
    assert set(without.frame["edge"]) == {"t2->r2_word"}


def test_an_answer_that_stays_right_is_unchanged_where_answers_are_compared() -> None:
    """The bridge comes before the answer where "Wrongville" came before it: both are right."""
    settings: dict[str, Any] = {"edges": ["t2->t1"], "window": 0, "max_new_tokens": 5}
    queries = chosen("early-1", "late-1", "second-line", "longer")
    text, answer = (knocked(queries, compare=each, **settings) for each in ("text", "answer"))
    assert bites(text, "second-line", "t2->t1") == {2}
    assert bites(answer, "second-line", "t2->t1") == set()
    rest = ["early-1", "late-1", "longer"]  # right and then wrong, or wrong before
    assert [bites(answer, each, "t2->t1") for each in rest] == [{2}, {4}, {2}]
    pd.testing.assert_frame_equal(
        text.frame.drop(columns="changed"), answer.frame.drop(columns="changed")
    )
    clean = dict(zip(answer.details["query"], answer.details["clean_generation"], strict=True))
    for row in answer.frame.itertuples():
        names = [name.lower() for name in queries.by_id(row.query).names("e3")]
        before, after = (" ".join(each.split("\n")) for each in (clean[row.query], row.generation))
        right = [any(name in each.lower().split() for name in names) for each in (before, after)]
        assert row.changed == (not all(right) and before.strip() != after.strip())


def test_the_papers_setting() -> None:
    queries = chosen("early-1").with_few_shot(2)
    result = knocked(queries, preset="hopping-too-late", layers=[2], max_new_tokens=3)
    settings = result.run["settings"]
    assert (settings["compare"], settings["match"]) == ("answer", "substring")
    assert (settings["window"], settings["one_line"]) == (3, False)
    assert settings["max_new_tokens"] == 3  # which was given
    assert settings["edges"][:3] == ["t2->t1", "t2->r1_word", "t2->r2_word"]
    assert result.run["queries"]["few_shot"] == 0


def test_few_shot_prompts_bite_in_the_same_windows() -> None:
    queries = chosen("early-1", "late-2").with_few_shot(2)
    edges = ["t2->t1", "t2->few_shot", "t1->few_shot", "t2->before", "t2->r2"]
    result = knocked(queries, edges=edges, window=0)
    assert result.run["settings"]["one_line"] is True
    assert bites(result, "early-1", "t2->t1") == {2}
    assert bites(result, "late-2", "t2->t1") == {4}
    assert bites(result, "early-1", "t2->r2") == {0}
    for query in ("early-1", "late-2"):
        assert bites(result, query, "t2->few_shot") == set()
        assert bites(result, query, "t1->few_shot") == set()
    n_shared = tokens_of(result, "early-1", "t2->few_shot", "none")[1]
    assert n_shared == list(range(len(n_shared)))
    assert tokens_of(result, "early-1", "t2->before", "none")[1] == [
        *n_shared,
        *(len(n_shared) + place for place in range(7)),
    ]


@pytest.mark.parametrize("one_line", [True, False])
def test_a_hit_is_no_change(one_line: bool) -> None:
    """The bridge comes before the answer where "Wrongville" came before it."""
    settings: dict[str, Any] = {"window": 0, "one_line": one_line, "max_new_tokens": 5}
    result = knocked(chosen("second-line"), edges=["t2->t1"], **settings)
    found = rows(result, "second-line", "t2->t1")
    assert bites(result, "second-line", "t2->t1") == {2}
    assert str(found["generation"][2]).startswith("Jland .")
    assert set(found["hit"]) == {not one_line}


def test_substring_counts_what_word_does_not() -> None:
    for match in ("word", "substring"):
        result = knocked(chosen("longer"), edges=["t2->t1"], window=0, match=match)
        hits = rows(result, "longer", "t2->t1")["hit"]
        assert set(hits.index[hits]) == (LAYERS - {2} if match == "substring" else set())


def test_first_token_asks_for_the_likeliest_next_token() -> None:
    queries = chosen("early-1", "half", "late-1")
    result = knocked(queries, edges=["t2->t1"], window=0, criterion="first_token")
    assert (result.frame["hit"] == (result.frame["answer_rank"] == 0)).all()
    assert {len(text.split()) for text in result.frame["generation"]} == {1}
    assert bites(result, "early-1", "t2->t1") == bites(result, "half", "t2->t1") == {2}
    assert rows(result, "half", "t2->t1")["hit"].to_dict() == {at: at != 2 for at in LAYERS}
    assert bites(result, "late-1", "t2->t1") == {4}
    assert result.run["settings"]["max_new_tokens"] == 1
    assert set(result.details["clean_generation"]) == {"Alba", "Port", "Cland"}


def test_random_edges_bite_where_they_must() -> None:
    """Of one token that t2 does not see, "capital" matters, in block 0; another word never."""
    drawn = set()
    for seed in range(6):
        settings: dict[str, Any] = {"window": 0, "seed": seed, "layers": [0, 2, 4]}
        result = knocked(chosen("early-1"), edges=["t2->t1"], **settings)
        queries, keys = tokens_of(result, "early-1", "t2->t1", "random")
        assert queries == [7]
        assert len(keys) == 1
        assert keys[0] in range(6)
        assert bites(result, "early-1", "t2->t1", "random") == ({0} if keys == [1] else set())
        assert bites(result, "early-1", "t2->t1") == {2}
        drawn |= set(keys)
    assert drawn > {1}


def test_random_edges_of_several_tokens() -> None:
    """The first hop's phrase has three words; in its place stand those of the second relation."""
    result = knocked(chosen("early-1"), edges=["t2->r1"], window=0, layers=[0, 2, 4])
    _, keys = tokens_of(result, "early-1", "t2->r1", "random")
    assert set(keys) == {0, 1, 2}
    assert bites(result, "early-1", "t2->r1", "random") == {0}  # "capital" is noted in block 0


def test_random_edges_are_never_those_to_the_source() -> None:
    for seed in range(8):
        result = knocked(chosen("early-1"), edges=["t2->r2"], window=0, layers=[2], seed=seed)
        _, keys = tokens_of(result, "early-1", "t2->r2", "random")
        assert set(keys) == {3, 4, 5}


def test_random_edges_are_as_many_and_others() -> None:
    queries = chosen("early-1", "late-2").with_few_shot(2)
    result = knocked(queries, edges=[*EDGES, "t1->r1", "t2->r2"], layers=[0], window=0)
    details = result.details.set_index(["query", "edge", "control"])
    n_controls = 0
    for query, edge, control in details.index:
        if control == "none":
            continue
        (own_queries, own_keys), (asking, keys) = (
            tokens_of(result, query, edge, each) for each in ("none", "random")
        )
        question = min(tokens_of(result, query, "t2->r2", "none")[1])
        n_controls += 1
        assert asking == own_queries
        assert len(set(keys)) == len(own_keys)
        assert not set(keys) & {*own_keys, *own_queries}
        assert question <= min(keys)
        assert max(keys) < min(own_queries)
    assert n_controls == len(details) // 2


def test_no_control_where_too_few_others_are_left() -> None:
    result = knocked(chosen("early-1"), edges=["t2->before", "t2->t1"], layers=[2])
    found = set(zip(result.frame["edge"], result.frame["control"], strict=True))
    assert found == {("t2->before", "none"), ("t2->t1", "none"), ("t2->t1", "random")}


def test_controls_can_be_left_out() -> None:
    for controls in ((), []):
        result = knocked(chosen("early-1"), controls=controls, layers=[2])
        assert set(result.frame["control"]) == set(result.details["control"]) == {"none"}
        assert result.above_chance().empty
    assert result.run["settings"]["controls"] == []


def test_controls_follow_the_seed_and_not_the_order() -> None:
    queries = chosen("late-1", "early-1", "early-2")
    turned = replace(queries, queries=queries.queries[::-1])
    keys = ["query", "edge", "control", "layer"]
    settings: dict[str, Any] = {"edges": ["t2->t1"], "layers": [0, 2], "max_new_tokens": 1}
    first, again, other, backwards = (
        knocked(asked, seed=seed, **settings)
        for asked, seed in ((queries, 0), (queries, 0), (queries, 2), (turned, 0))
    )
    pd.testing.assert_frame_equal(first.frame, again.frame)
    pd.testing.assert_frame_equal(
        first.frame.sort_values(keys, ignore_index=True),
        backwards.frame.sort_values(keys, ignore_index=True),
    )
    own = first.frame["control"] == "none"
    pd.testing.assert_frame_equal(first.frame[own], other.frame[own])
    drawn, redrawn = (list(result.details["key_tokens"]) for result in (first, other))
    assert drawn[::2] == redrawn[::2]  # those of the edge itself
    assert drawn[1::2] != redrawn[1::2]


def test_the_frame_has_the_columns_of_the_design() -> None:
    result = knocked(chosen("early-1", "late-2"))
    frame = result.frame
    assert list(frame.columns) == COLUMNS
    for name in ("query", "edge", "control", "generation"):
        assert pd.api.types.is_string_dtype(frame[name]), name
    for name in ("layer", "answer_rank"):
        assert pd.api.types.is_integer_dtype(frame[name]), name
    for name in ("changed", "hit"):
        assert frame[name].dtype == bool, name
    for name in ("prediction_change", "answer_change", "answer_logprob"):
        assert pd.api.types.is_float_dtype(frame[name]), name
    assert not frame.isna().to_numpy().any()
    assert list(frame.index) == list(range(len(frame)))
    assert repr(result) == f"Knockouts(known, known, 2 queries, {len(frame)} rows)"


def test_every_query_edge_control_and_layer_has_one_row() -> None:
    frame = knocked(chosen("early-1", "late-2")).frame
    found = list(frame[["query", "edge", "control", "layer"]].itertuples(index=False, name=None))
    both = ("none", "random")
    known = [
        (query, edge, control, layer)
        for query, edges in (("early-1", EDGES[:3]), ("late-2", EDGES))
        for edge, control, layer in itertools.product(edges, both, range(N_LAYERS))
    ]
    assert found == known


def test_an_edge_that_is_not_there_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A source of one token has none before t1; a zero-shot prompt no demonstrations."""
    with caplog.at_level(logging.INFO, logger="hopscope"):
        result = knocked(chosen("early-1", "early-2"), edges=["t2->few_shot", "t1->e1", "t2->t1"])
    edges = result.frame.groupby("query")["edge"].unique()
    assert list(edges["early-1"]) == ["t2->t1"]
    assert list(edges["early-2"]) == ["t1->e1", "t2->t1"]
    assert "query early-1 has no edge t1->e1" in caplog.text
    assert list(result.details["edge"]) == ["t2->t1"] * 2 + ["t1->e1"] * 2 + ["t2->t1"] * 2
    assert tokens_of(result, "early-2", "t1->e1", "none") == ([7], [6])
    for ahead in ("t1->t2", "t2->t2"):
        with pytest.raises(QueryError, match=f"the edge {ahead} cannot be blocked"):
            knocked(chosen("early-1", "early-2"), edges=[ahead, "t2->t1"])


def test_queries_without_any_edge(tmp_path: Path) -> None:
    """They fill a part of the run, or all of it."""
    queries = chosen("early-1", "late-1", "late-3", "named", "early-2")
    queries = replace(queries, queries=sorted(queries, key=lambda query: query.id == "early-2"))
    result = knocked(queries, edges=["t1->e1"], layers=[0, 2], out=tmp_path / "run")
    alone = knocked(chosen("early-2"), edges=["t1->e1"], layers=[0, 2])
    pd.testing.assert_frame_equal(result.frame, alone.frame)
    pd.testing.assert_frame_equal(hs.load_result(tmp_path / "run").frame, alone.frame)
    nothing = knocked(chosen("early-1"), edges=["t1->e1"], out=tmp_path / "empty")
    assert list(nothing.frame.columns) == COLUMNS
    assert len(nothing.frame) == 0
    assert repr(nothing) == "Knockouts(known, known, 1 queries, 0 rows)"
    assert len(hs.load_result(tmp_path / "empty").frame) == 0
    assert nothing.effect().empty
    assert nothing.above_chance().empty


def test_details_tell_the_tokens() -> None:
    result = knocked(chosen("late-1", "late-2"), edges=["t2->e1", "t2->r1", "t2->r2", "t1->before"])
    row = result.details.iloc[0]
    assert row["prompt"] == "The capital of the country of Cedar is"
    assert (row["bridge"], row["answer"]) == ("Cland", "Crag")
    assert str(row["clean_generation"]).startswith("Cland .")
    assert row["clean_rank"] == 2
    found = {
        (query, edge): tokens_of(result, query, edge, "none")
        for query in ("late-1", "late-2")
        for edge in ("t2->e1", "t2->r1", "t2->r2", "t1->before")
    }
    assert found == {
        ("late-1", "t2->e1"): ([7], [6]),
        ("late-1", "t2->r1"): ([7], [3, 4, 5]),
        ("late-1", "t2->r2"): ([7], [0, 1, 2]),
        ("late-1", "t1->before"): ([6], [0, 1, 2, 3, 4, 5]),
        ("late-2", "t2->e1"): ([8], [6, 7]),
        ("late-2", "t2->r1"): ([8], [3, 4, 5]),
        ("late-2", "t2->r2"): ([8], [0, 1, 2]),
        ("late-2", "t1->before"): ([7], [0, 1, 2, 3, 4, 5, 6]),
    }


def places() -> QuerySet:
    sources = ("Kyoto", "the Eiffel Tower", "Rio de Janeiro", "Berlin", "the Colosseum")
    queries = tuple(
        TwoHopQuery(
            id=source,
            e1_label=source,
            e2_label=f"Land{number}",
            e3_label=("Tokyo", "Paris", "Brasilia", "Bonn", "Rome")[number],
            r1_template="The country where {} lies",
            r2_template="The capital of {}",
        )
        for number, source in enumerate(sources)
    )
    return QuerySet(queries, "places")


@dataclass(frozen=True)
class Case:
    """What is knocked out in one comparison."""

    model: str
    few_shot: int = 0
    edges: tuple[str, ...] = ("t2->t1", "t1->e1")
    window: int = 1
    heads: tuple[int, ...] | None = None
    criterion: str = "generation"

    def load(self) -> LanguageModel:
        return loaded(f"tiny-random-{self.model}")

    def queries(self) -> QuerySet:
        """What the clean model says of the first one is among the names of its answer."""
        asked = replace(places()[1:2] if self.few_shot else places()[1:3], few_shot=self.few_shot)
        text = Plain(self, asked).clean(asked[0])[1]
        word = max(text.split(), key=len).strip(".,:;!?")
        first = replace(asked[0], e3_aliases=(word, "the"))
        return replace(asked, queries=(first, *asked.queries[1:]))


class Plain:
    """Asks one model the plain way: one forward and one `generate` per cell."""

    n_tokens = 2

    def __init__(self, case: Case, queries: QuerySet) -> None:
        model = case.load()
        self.hf, self.tokenizer, self.end_tokens = model.hf, model.tokenizer, model.end_tokens
        self.case, self.texts = case, {p.query_id: p.text for p in queries.prompts()}

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def tokens(self, query: TwoHopQuery, part: str) -> list[int]:
        """The tokens of a part, by where the prompt is cut before and behind it."""
        text = self.texts[query.id]
        question = text.rindex("The capital of ")
        hop = text.index("the country where", question)
        source = text.index(query.e1_label, hop)
        ends = {"hop": (hop, text.rindex(" is")), "e1": (source, source + len(query.e1_label))}
        ends["r2"] = (question, len(text))
        # third words from the end of "The country where {} lies" and of "The capital of {}"
        ends["r1_word"] = (hop, hop + len("the country where"))
        ends["r2_word"] = (question, question + len("The capital"))
        cut = {name: tuple(self.length(text[:end]) for end in ends[name]) for name in ends}
        inside = {name: [*range(*both)] for name, both in cut.items()}
        last = inside["r2"].pop()
        return {
            "t1": inside["hop"][-1:],
            "t2": [last],
            "e1": inside["e1"],
            "r1_word": inside["r1_word"][-1:],
            "r2_word": inside["r2_word"][-1:],
            "r1": [token for token in inside["hop"] if token not in inside["e1"]],
            "r2": [token for token in inside["r2"] if token not in inside["hop"]],
            "few_shot": [*range(inside["r2"][0])],
        }[part]

    def length(self, text: str) -> int:
        """How many tokens a text has; a space belongs to the word behind it."""
        return len(self.ids(text.rstrip(" ")))

    def clean(self, query: TwoHopQuery) -> tuple[PlainOutput, str]:
        return self.answer_text(query, [])

    def answer_text(self, query: TwoHopQuery, cell: Sequence[Knockout]) -> tuple[PlainOutput, str]:
        """Logits of the next token, and the text that counts."""
        ids = self.ids(self.texts[query.id])
        first = self.case.criterion == "first_token"
        found = plain_output(self.hf, ids, cell, 0 if first else self.n_tokens, self.end_tokens)
        tokens = (int(found.logits.argmax()),) if first else found.stopped(self._line_ends)
        return found, str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _line_ends(self, tokens: tuple[int, ...]) -> bool:
        return bool(self.case.few_shot) and "\n" in self.tokenizer.decode(list(tokens))

    def first_tokens(self, query: TwoHopQuery) -> list[int]:
        names = [f" {name}" for name in query.names("e3")]
        ids = [self.tokenizer(n, add_special_tokens=False)["input_ids"][0] for n in names]
        return [each for each in ids if self.tokenizer.decode([each]).strip()]


CASES = (
    Case("llama", edges=("t2->t1", "e1->r2")),
    Case("mistral", edges=("t2->t1", "t2->e1"), window=0),
    Case("gemma2"),
    Case("gpt2", heads=(1, 2), edges=("t2->r1", "r1->e1"), window=2),
    Case("llama", 1, edges=("t2->few_shot", "t2->t1"), heads=(0,)),
    Case("mistral", 1, edges=("t2->t1",), criterion="first_token"),
    Case("gpt2", 1, edges=("t1->e1",)),
    Case("gemma2", edges=("t2->r1_word", "t1->r2_word"), window=0),
    Case("qwen3", 1, edges=("t2->r2_word", "r1_word->r2_word")),
)
ASKED_LAYERS = (0, 3)


@cache
def run_case(case: Case) -> tuple[QuerySet, Knockouts]:
    queries = case.queries()
    return queries, knockout(
        case.load(),
        queries,
        edges=case.edges,
        window=case.window,
        heads=case.heads,
        criterion=case.criterion,  # type: ignore[arg-type]
        max_new_tokens=Plain.n_tokens,
        layers=ASKED_LAYERS,
        progress=False,
    )


def plain_rows(case: Case) -> pd.DataFrame:
    """The rows of a result, computed the plain way; only a control's keys are taken from it."""
    queries, result = run_case(case)
    plain, found = Plain(case, queries), []
    for query in queries:
        clean, before = plain.clean(query)
        predicted, answers = int(clean.logits.argmax()), plain.first_tokens(query)
        for edge, control in itertools.product(case.edges, ("none", "random")):
            asking, keys = (plain.tokens(query, part) for part in edge.split("->"))
            if control == "random" and len(tokens_of_control(result, query, edge)) == 0:
                continue
            if control == "random":
                keys = tokens_of_control(result, query, edge)
            for layer in ASKED_LAYERS:
                window = range(max(0, layer - case.window), min(3, layer + case.window) + 1)
                heads = case.heads
                output, text = plain.answer_text(query, [Knockout(window, asking, keys, heads)])
                said, was = ((t.split("\n")[0] if case.few_shot else t) for t in (text, before))
                first, ranks = case.criterion == "first_token", output.ranks(answers)
                found.append(
                    {
                        "query": query.id,
                        "edge": edge,
                        "control": control,
                        "layer": layer,
                        "changed": said.strip() != was.strip(),
                        "hit": ranks[0] == 0 if first else matches(said, query.names("e3")),
                        "prediction_change": output.logprob([predicted])
                        - clean.logprob([predicted]),
                        "answer_change": output.logprob(answers) - clean.logprob(answers),
                        "answer_rank": ranks,
                        "answer_logprob": output.logprob(answers),
                        "generation": text,
                    }
                )
    return pd.DataFrame(found)


def tokens_of_control(result: Knockouts, query: TwoHopQuery, edge: str) -> list[int]:
    details = result.details
    here = (details["query"] == query.id) & (details["edge"] == edge)
    keys = details[here & (details["control"] == "random")]["key_tokens"]
    return json.loads(keys.iloc[0]) if len(keys) else []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_row_equals_brute_force_attention(case: Case) -> None:
    frame, plain = run_case(case)[1].frame, plain_rows(case)
    assert list(plain.columns) == COLUMNS
    exact = ["query", "edge", "control", "layer", "changed", "hit", "generation"]
    pd.testing.assert_frame_equal(frame[exact], plain[exact])
    for name in ("prediction_change", "answer_change", "answer_logprob"):
        np.testing.assert_allclose(frame[name], plain[name], rtol=0, atol=2e-4)
    for rank, ranks in zip(frame["answer_rank"], plain["answer_rank"], strict=True):
        assert rank in ranks


def test_the_comparison_is_not_idle() -> None:
    """Knockouts matter, in the text of some rows and the numbers of nearly all."""
    frames = [run_case(case)[1].frame for case in CASES]
    for case, frame in zip(CASES, frames, strict=True):
        least = 0.25 if "r1_word" in str(case.edges) else 0.5  # a word of three matters less
        assert (frame["answer_change"].abs() > 1e-3).mean() >= least, case
    together = pd.concat(frames)
    for name in ("changed", "hit"):
        assert 0.1 < together[name].mean() < 0.9, name
    assert together["answer_rank"].nunique() > 20
    controls = together["control"].value_counts()
    assert controls["random"] > 0.5 * controls["none"]


def test_rows_in_small_chunks_are_the_same() -> None:
    chunked, whole = (
        knocked(chosen("early-2"), edges=["t2->t1"], max_memory=memory, window=0)
        for memory in (1, None)
    )
    pd.testing.assert_frame_equal(chunked.frame, whole.frame, check_exact=False, atol=1e-5)


def test_a_run_goes_on_and_is_read(tmp_path: Path) -> None:
    queries, out = known_queries()[:6], tmp_path / "run"
    settings: dict[str, Any] = {"layers": [2, 4], "window": 0, "edges": ["t2->t1"]}
    whole = knocked(queries, **settings)
    pd.testing.assert_frame_equal(knocked(queries, out=out, **settings).frame, whole.frame)
    parts = sorted(out.glob("frame-*.parquet"))
    assert len(parts) == 2
    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    again = knocked(queries, out=out, **settings)
    pd.testing.assert_frame_equal(again.frame, whole.frame)
    pd.testing.assert_frame_equal(again.details, whole.details)
    assert parts[0].stat().st_mtime_ns == kept
    read = hs.load_result(out)
    assert isinstance(read, Knockouts)
    pd.testing.assert_frame_equal(read.frame, whole.frame)
    pd.testing.assert_frame_equal(read.effect(), whole.effect())
    saved = hs.load_result(whole.save(tmp_path / "saved"))
    pd.testing.assert_frame_equal(saved.frame, whole.frame)
    assert saved.run == whole.run


def test_shards_make_the_whole(tmp_path: Path) -> None:
    queries = known_queries()[:6]
    settings: dict[str, Any] = {"layers": [2, 4], "window": 0, "edges": ["t2->t1"]}
    for shard in ((2, 2), (1, 2)):
        result = knocked(queries, out=tmp_path / "run", shard=shard, **settings)
    pd.testing.assert_frame_equal(result.frame, knocked(queries, **settings).frame)


def made(changed: dict[tuple[str, str, str], Sequence[bool]]) -> Knockouts:
    """A result in which each query, edge and control changes at some of the layers 2, 0, 1."""
    found = [
        (query, edge, control, layer, bool(there), False, -1.0 - layer, -2.0 * layer, 3, -4.0, "")
        for (query, edge, control), by_layer in changed.items()
        for layer, there in zip((2, 0, 1), by_layer, strict=True)
    ]
    details = pd.DataFrame({"query": list(dict.fromkeys(query for query, _, _ in changed))})
    return Knockouts(pd.DataFrame(found, columns=COLUMNS), details, {"kind": "knockout"})


BY_HAND = {  # at the layers 2, 0, 1
    ("a", "t2->t1", "none"): (True, False, True),
    ("a", "t2->t1", "random"): (False, False, False),
    ("b", "t2->t1", "none"): (False, False, False),
    ("b", "t2->t1", "random"): (True, False, False),
    ("c", "t2->t1", "none"): (True, True, True),
    ("c", "t2->e1", "none"): (True, False, False),
    ("c", "t2->e1", "random"): (True, True, True),
}


def test_effect_is_the_mean_over_queries() -> None:
    effect = made(BY_HAND).effect()
    assert list(effect.columns) == ["edge", "control", "layer", "n", "effect", "low", "high"]
    table = effect.set_index(["edge", "control", "layer"])
    assert table["effect"].to_dict() == pytest.approx(
        {
            **{("t2->t1", "none", layer): share for layer, share in ((2, 2 / 3), (0, 1 / 3))},
            ("t2->t1", "none", 1): 2 / 3,
            **{("t2->t1", "random", layer): share for layer, share in ((2, 1 / 2), (0, 0), (1, 0))},
            **{("t2->e1", "none", layer): share for layer, share in ((2, 1), (0, 0), (1, 0))},
            **{("t2->e1", "random", layer): 1 for layer in (2, 0, 1)},
        }
    )
    assert table["n"].to_dict() == {
        key: {("t2->t1", "none"): 3, ("t2->t1", "random"): 2}.get(key[:2], 1) for key in table.index
    }
    assert ((table["low"] <= table["effect"]) & (table["effect"] <= table["high"])).all()
    assert (table["high"] - table["low"] > 0.4).all()  # a share of three queries or fewer


def test_effect_of_a_log_probability() -> None:
    for measure, means in (("prediction_change", (-3, -1, -2)), ("answer_change", (-4, 0, -2))):
        effect = made(BY_HAND).effect(measure)  # type: ignore[arg-type]
        own = effect[(effect["edge"] == "t2->t1") & (effect["control"] == "none")]
        assert list(own["layer"]) == [2, 0, 1]
        assert list(own["effect"]) == list(means)


def test_above_chance_pairs_each_query_with_its_control() -> None:
    table = made(BY_HAND).above_chance().set_index("edge")
    assert list(table.columns) == ["n", "difference", "low", "high"]
    assert table["n"].to_dict() == {"t2->t1": 2, "t2->e1": 1}  # c has no control of t2->t1
    assert table["difference"].to_dict() == pytest.approx(
        {"t2->t1": (2 / 3 - 1 / 3) / 2, "t2->e1": 1 / 3 - 1}
    )
    assert table[["low", "high"]].isna().all(axis=None)  # two queries are too few


@pytest.mark.parametrize("n", [2, 5, 6])
def test_few_queries_are_told_without_an_interval_of_their_layers(n: int) -> None:
    changes = {
        (f"q{each}", "t2->t1", control): (bites, bites and each % 2 == 0, bites)
        for each in range(n)
        for control, bites in (("none", True), ("random", False))
    }
    first, *_ = made(changes).findings()
    assert "nan" not in first
    few = re.search(r"over all layers \+\d+ points over as many random edges: too few", first)
    enough = re.search(r"over all layers \+\d+ points \(\+\d+ to \+\d+\) over", first)
    assert (few is not None, enough is not None) == (n < 6, n >= 6)


def test_above_chance_without_controls_is_empty() -> None:
    table = made({key: by for key, by in BY_HAND.items() if key[2] == "none"}).above_chance()
    assert table.empty
    assert list(table.columns) == ["edge", "n", "difference", "low", "high"]


def test_first_layers_by_hand() -> None:
    found = made(BY_HAND).first_layers()
    assert list(found.index) == ["a", "b", "c"]
    assert found[["a", "c"]].to_dict() == {"a": 1, "c": 0}
    assert np.isnan(found["b"])
    assert made(BY_HAND).first_layers("t2->e1").to_dict() == {"c": 2}


def test_known_first_layers() -> None:
    result = knocked(chosen("early-1", "late-1", "named"), window=0, controls=())
    found = result.first_layers()
    assert found.to_dict() == {"early-1": 2, "late-1": 4, "named": 2}
    assert result.first_layers("t2->r1").isna().all()
    wide = knocked(chosen("early-1", "late-1"), window=3, controls=(), edges=["t2->t1"])
    assert wide.first_layers().to_dict() == {"early-1": 0, "late-1": 1}


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"edges": []}, "give a list of edges"),
    ({"edges": ["t2->t3"]}, "'t2->t3' is no edge: write 'query->key', each one of t1, t2, e1"),
    ({"edges": ["t1->t2", "t2"]}, "'t2' is no edge"),
    ({"edges": ["t2->t1->e1"]}, "'t2->t1->e1' is no edge"),
    ({"edges": ["t1 -> e1"]}, "'t1 -> e1' is no edge"),
    ({"controls": ("other",)}, "unknown control 'other': choose one of random"),
    ({"window": -1}, "window must be 0 or more, not -1"),
    ({"layers": [0, 6]}, "layers are numbers from 0 to 5; got 6"),
    ({"layers": [-1]}, "layers are numbers from 0 to 5; got -1"),
    ({"layers": []}, "layers are numbers from 0 to 5; got none"),
    ({"heads": [0, 3]}, "no head 3: the model has heads 0 to 2"),
    ({"heads": [-1]}, "no head -1: the model has heads 0 to 2"),
    ({"heads": []}, "a knockout without heads blocks nothing"),
    ({"criterion": "rank"}, "unknown criterion 'rank': choose one of generation, first_token"),
    ({"match": "exact"}, "unknown match 'exact'"),
    ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, not 0"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=str)
def test_a_mistake_is_told(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        knocked(chosen("early-1"), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_will_do() -> None:
    result = knocked(chosen("early-1"), edges=["t2->t1"], heads=np.arange(3), layers=np.arange(3))
    assert result.run["settings"]["heads"] == [0, 1, 2]


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(QueryError, match=r"empty query set.*graded\.summary"):
        knocked(chosen())


def test_an_unknown_measure_or_edge_is_told() -> None:
    with pytest.raises(
        UsageError, match="unknown measure 'hit': choose one of changed, prediction"
    ):
        made(BY_HAND).effect("hit")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no edge 't1->e1': the run has t2->t1, t2->e1"):
        made(BY_HAND).first_layers("t1->e1")
