"""Tests of the analyses on chains of three hops: beside plain hooks, and beside two hops."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded
from plain import generated, plain_output, states

import hopscope as hs
from hopscope.engine.edits import Knockout, Patch
from hopscope.engine.logit_lens import logit_lens
from hopscope.errors import HopscopeError, UsageError
from hopscope.experiments.catalogue import analyses
from hopscope.experiments.randomness import random_like
from hopscope.experiments.two_hop.attention_knockout import usual_edges
from hopscope.experiments.two_hop.chains import bridge_at, positions_of
from hopscope.experiments.two_hop.description import PROMPTS
from hopscope.experiments.two_hop.layer_order import OWN_HOP, LayerOrder
from hopscope.experiments.two_hop.stages import STAGES, stages_of
from hopscope.models.language_model import LanguageModel
from hopscope.queries.multi_hop_query import MultiHopQuery
from hopscope.queries.query import Query, forms_of
from hopscope.queries.query_set import QuerySet

FAMILIES = ("llama", "gemma2", "gpt2", "gpt-neox")
ENDS = ("t1", "t2", "t3", "e1")
N_TOKENS = 4


def chains(few_shot: int = 0) -> QuerySet:
    """Chains whose phrases end at different tokens, since words stand behind their arguments."""
    rows = (
        ("Cedar", "Anna Lund", "Kyoto", "Japan"),
        ("the Elm", "Bela Roth", "Bergen", "Norway"),
        ("Upper Fir", "Carl Moe", "Lyon", "France"),
        ("Juniper", "Dora Yin", "Recife", "Brazil"),
    )
    templates = ("The keeper of {} now", "The town where {} was born", "The country with {}")
    queries = tuple(
        MultiHopQuery(row[0], row, templates, aliases=((), (), (), (f"Old {row[-1]}",)))
        for row in rows
    )
    return QuerySet(queries[:2] if few_shot else queries[:3], "chains", few_shot, pool=queries)


class Plain:
    """Asks a model about one query by raw hooks and transformers' own `generate`."""

    def __init__(self, model: LanguageModel, queries: QuerySet, query: Query) -> None:
        self.hf, self.tokenizer, self.end_tokens = model.hf, model.tokenizer, model.end_tokens
        self.query = query
        self.text = next(p.text for p in queries.prompts() if p.query_id == query.id)
        self.ids = self.encoded(self.text)

    def encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def position(self, name: str) -> int:
        """The last token of the text up to the end of a phrase."""
        source = self.text.rindex(self.query.labels[0]) + len(self.query.labels[0])
        now, born = self.text.index(" now", source) + 4, self.text.index(" born", source) + 5
        ends = {"e1": source, "t1": now, "t2": born, "t3": len(self.text)}
        return len(self.encoded(self.text[: ends[name]])) - 1

    def states(self, name: str) -> torch.Tensor:
        """The residual stream after each block at a position, shape (layer, d_model)."""
        return states(self.hf, self.ids)[:, self.position(name)]

    def said(self, cell: list[Any], ids: list[int] | None = None) -> str:
        """The greedy text of one cell."""
        found = plain_output(self.hf, ids or self.ids, cell, N_TOKENS, self.end_tokens)
        return str(self.tokenizer.decode(list(found.tokens), skip_special_tokens=True))


@cache
def plain(family: str, few_shot: int = 0) -> dict[str, Plain]:
    """By query id, what asks it the plain way."""
    queries, model = chains(few_shot), loaded(f"tiny-random-{family}")
    return {query.id: Plain(model, queries, query) for query in queries.pool[: len(queries)]}


def test_the_phrases_of_these_chains_end_apart() -> None:
    for one in plain("llama").values():
        assert len({one.position(name) for name in ENDS}) == 4


@pytest.mark.parametrize("few_shot", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_back_patching_equals_a_hooked_forward_for_each_cell(family: str, few_shot: int) -> None:
    queries, cells = chains(few_shot), [(1, 0), (3, 0), (3, 2)]
    result = hs.back_patch(
        loaded(f"tiny-random-{family}"),
        queries,
        positions=(*ENDS[:3], "t1->t3"),
        max_new_tokens=N_TOKENS,
        cells=cells,
        stop_early=False,
        progress=False,
    )
    asked, found = plain(family, few_shot), []
    donors = dict(zip(result.details["query"], result.details["donor"], strict=True))
    for query, position in itertools.product(queries, (*ENDS[:3], "t1->t3")):
        read, _, write = position.partition("->")
        own, at = asked[query.id].states(read), asked[query.id].position(write or read)
        vectors = {
            "none": own,
            "other": asked[donors[query.id]].states(read),
            "random": random_like(own, 0, query.id, position),
        }
        for (control, states_), (a, b) in itertools.product(vectors.items(), cells):
            said = asked[query.id].said([Patch(b, at, states_[a])])
            found.append((query.id, position, a, b, control, said))
    columns = ["query", "position", "source_layer", "target_layer", "control", "generation"]
    expected = pd.DataFrame(found, columns=columns)
    pd.testing.assert_frame_equal(result.frame[columns], expected, check_dtype=False)


def test_the_bridge_of_a_position_is_that_of_its_hop() -> None:
    result = hs.back_patch(
        loaded("tiny-random-llama"), chains()[:2], cells=[(1, 0)], progress=False
    )
    told = result.details.groupby("position", sort=False)["bridge"].first()
    assert told.to_dict() == {"t1": "Anna Lund", "t2": "Kyoto", "t3": "Kyoto"}
    query = chains()[0]
    bridges = [bridge_at(query, position) for position in ("e1", "t1", "t2", "t3")]
    assert bridges == ["e2", "e2", "e3", "e3"]
    assert [bridge_at(query.as_two_hop("e2"), each) for each in ("t1", "t2")] == ["e2", "e2"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("bridge", ["e2", "e3"])
def test_a_chain_that_is_divided_is_patched_as_the_whole(bridge: str) -> None:
    model, at = loaded("tiny-random-llama"), {"e2": "t1", "e3": "t2"}[bridge]
    given: dict[str, Any] = {"cells": [(2, 0), (3, 1)], "controls": ("other",), "progress": False}
    whole = hs.back_patch(model, chains(), positions=[at, "t3"], **given).frame
    divided = hs.back_patch(model, chains().as_two_hop(bridge), positions=["t1", "t2"], **given)
    columns = ["query", "source_layer", "target_layer", "control", "generation"]
    pd.testing.assert_frame_equal(whole[columns], divided.frame[columns])


@pytest.mark.parametrize("family", FAMILIES)
def test_descriptions_equal_a_hooked_generate(family: str) -> None:
    queries, model = chains()[:2], loaded(f"tiny-random-{family}")
    given: dict[str, Any] = {"source_layers": (3, 0), "target_layers": (0, 2)}
    result = hs.describe(
        model, queries, ENDS, max_new_tokens=N_TOKENS, match="substring", progress=False, **given
    )
    asked, text = plain(family), PROMPTS["description"]
    pool = {query.id: query for query in queries.pool}
    others = dict(zip(result.details["query"], result.details["other"], strict=True))
    found = []
    for query, position, a, b in itertools.product(queries, ENDS, (3, 0), (0, 2)):
        one = asked[query.id]
        target = one.encoded(text)
        said = one.said([Patch(b, len(target) - 1, one.states(position)[a])], target)
        other, row = pool[others[query.id]], {"query": query.id, "position": position}
        row |= {"source_layer": a, "target_layer": b, "generation": said}
        for entity in query.entities:
            row[entity] = any(n.lower() in said.lower() for n in query.names(entity))
        for entity in query.entities[1:]:
            named = any(name.lower() in said.lower() for name in other.names(entity))
            row[f"{entity}_other"] = named
        found.append(row)
    expected = pd.DataFrame(found)
    pd.testing.assert_frame_equal(result.frame[list(expected.columns)], expected, check_dtype=False)
    assert result.entities == ["e1", "e2", "e3", "e4"]
    assert set(result.above_chance()["entity"]) == {"e2", "e3", "e4"}


@pytest.mark.parametrize("family", FAMILIES)
def test_projections_are_those_of_the_lens_at_each_end(family: str) -> None:
    queries, model = chains(), loaded(f"tiny-random-{family}")
    result = hs.project(model, queries, ENDS, ("resid_post",), progress=False)
    assert result.n_hops == 3
    lens, table = logit_lens(model), result.frame.set_index(["query", "position", "target"])
    for query, position in itertools.product(queries, ENDS):
        with torch.no_grad():
            logits = lens(plain(family)[query.id].states(position)).float()
        for entity in query.entities[1:]:
            tokens = model.first_tokens(query.names(entity), variants=True, required=False)
            best = logits[:, list(tokens)].amax(dim=-1)
            expected = (best - torch.logsumexp(logits, dim=-1)).numpy()
            rows = table.loc[(query.id, position, entity)]
            np.testing.assert_allclose(rows["logprob"], expected, atol=1e-4)
    assert {f"e{k}_other" for k in (2, 3, 4)} <= set(result.frame["target"])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_knockouts_equal_blocked_edges(family: str) -> None:
    queries = chains()
    edges = usual_edges(queries)
    assert edges == ["t3->t2", "t3->t1", "t2->t1", "t3->e1", "t3->r1", "t1->e1"]
    result = hs.knockout(
        loaded(f"tiny-random-{family}"),
        queries,
        controls=(),
        window=0,
        layers=[0, 2],
        max_new_tokens=N_TOKENS,
        one_line=False,
        progress=False,
    )
    parts = result.details.set_index(["query", "edge"])
    for row in result.frame.itertuples():
        one, (asking, _, keys) = plain(family)[str(row.query)], str(row.edge).partition("->")
        token, blocked = one.position(asking), eval(parts.loc[(row.query, row.edge), "key_tokens"])
        if keys in ENDS[:3]:
            assert blocked == [one.position(keys)]
        said = one.said([Knockout(range(row.layer, row.layer + 1), [token], blocked)])
        assert row.generation == said


def test_every_relation_has_the_tokens_that_it_adds(llama: LanguageModel) -> None:
    from hopscope.prompting.tokenized import TokenizedPrompt

    prompt = TokenizedPrompt.of(llama, chains().prompts()[0])
    parts = {f"r{k}": prompt.tokens(f"r{k}") for k in (1, 2, 3)}
    texts = {name: llama.decode([prompt.ids[i] for i in tokens]) for name, tokens in parts.items()}
    assert [" ".join(text.split()) for text in texts.values()] == [
        "the keeper of now",
        "the town where was born",
        "The country with",
    ]
    together = [*itertools.chain.from_iterable(parts.values()), *prompt.tokens("e1")]
    assert len(set(together)) == len(together)


@pytest.mark.parametrize("few_shot", [0, 1])
def test_every_form_is_answered_greedily(few_shot: int) -> None:
    queries, model = chains(few_shot), loaded("tiny-random-llama")
    graded = hs.grade(model, queries, max_new_tokens=N_TOKENS, one_line=False, progress=False)
    assert list(graded.forms) == list(forms_of(3))
    for form in graded.forms:
        for prompt in queries.prompts(form):
            ids = torch.tensor([model.tokenizer(prompt.text)["input_ids"]])
            tokens = generated(model.hf, ids, torch.ones_like(ids), N_TOKENS, model.end_tokens)[0]
            said = model.tokenizer.decode(list(tokens), skip_special_tokens=True)
            row = graded.frame[(graded.frame["query"] == prompt.query_id)]
            assert row.set_index("form").loc[form, "generation"] == said


def verdicts(**right: list[str]) -> hs.Grading:
    """A grading of three hops in which each query has only some forms right."""
    rows = [(query, form, form in forms) for query, forms in right.items() for form in forms_of(3)]
    frame = pd.DataFrame(rows, columns=["query", "form", "correct"])
    return hs.Grading(frame.assign(prompt="", generation=""), pd.DataFrame(), {})


def test_the_subsets_of_chains() -> None:
    hops = ["first_hop", "second_hop", "third_hop"]
    graded = verdicts(
        correct=["first_hop", "second_hop", "three_hop"],
        incorrect=[*hops, "hops_1_2"],
        by_shortcut=[*hops, "three_hop", "without_r2"],
        inconsistent=[*hops, "without_e1"],
        one_bridge=["first_hop", "three_hop"],
        nothing=[],
    )
    counts = {"graded": 6, "correct": 1, "incorrect": 1, "inconsistent": 2, "both": 2}
    assert graded.counts() == counts
    summary = graded.summary().set_index("what")["right"]
    assert summary["all_hops"] == 3
    assert summary["three_hop"] == 3
    assert "third hops" in graded.findings()[0]
    assert "the question without e1" in graded.findings()[1]
    labels = [tick.get_text() for tick in graded.plot().get_yticklabels()]
    assert labels[:6] == ["first hop", "second hop", "third hop", *_chain_labels()]


def _chain_labels() -> list[str]:
    return ["hops 1 to 2", "hops 2 to 3", "three hops"]


def test_the_probe_reads_any_bridge(llama: LanguageModel) -> None:
    sources = [f"Tower {k}" for k in range(12)]
    queries = tuple(
        MultiHopQuery(
            f"{source} {k}",
            (source, f"Person {n % 4}", ("Kyoto", "Lyon")[n % 2], "x"),
            ("The keeper of {}", "The town of {}", f"The {('sea', 'lake')[k]} of {{}}"),
        )
        for n, source in enumerate(sources)
        for k in range(2)
    )
    found = hs.probe(llama, QuerySet(queries), target="e3", position="t2", folds=3, progress=False)
    assert set(found.details["label"]) == {"Kyoto", "Lyon"}
    with pytest.raises(UsageError, match="unknown target 'e4': choose one of e2, e3"):
        hs.probe(llama, QuerySet(queries), target="e4", folds=3, progress=False)


def test_stages_of_chains_have_a_hand_over_for_each_bridge(llama: LanguageModel) -> None:
    assert list(STAGES) == list(stages_of(2))
    assert list(STAGES.values()) == [1, 2, 2, 3, 4]
    assert list(stages_of(3)) == [
        "bridge e2 described at t1",
        "knockout t2->t1 bites",
        "attention at t2 projects bridge e2",
        "bridge e3 described at t2",
        "knockout t3->t2 bites",
        "attention at t3 projects bridge e3",
        "answer described at t3",
        "MLP at t3 projects prediction",
    ]
    result = hs.stages(llama, chains()[:2], layers=[0, 3], progress=False)
    assert dict(zip(result.frame["stage"], result.frame["number"], strict=True)) == stages_of(3)
    assert len(result.broken()) == 26 + 1
    means = hs.stages(llama, chains()[:2], layers=[0, 3], second_stage="mean", progress=False)
    assert means.frame["stage"].nunique() == 6
    result.plot()


def test_phrases_that_end_at_one_token_have_no_edge_between_them(llama: LanguageModel) -> None:
    queries = hs.load_queries("world-three-hops", few_shot=0)[:2]
    result = hs.stages(llama, queries, layers=[0], progress=False)
    rows = result.frame[result.frame["stage"] == "knockout t2->t1 bites"]
    assert rows["first_layer"].isna().all()


def order(**firsts: tuple[float | None, ...]) -> LayerOrder:
    """A result at t3, by query: first layers of e2, e3, e4, and those of another query's."""
    rows = [
        {"query": q, "position": "t3", "entity": entity, "control": control, "first_layer": layer}
        for q, layers in firsts.items()
        for (control, entity), layer in zip(
            itertools.product(("none", "other"), ("e2", "e3", "e4")), layers, strict=True
        )
    ]
    frame = pd.DataFrame(rows).astype({"first_layer": float})
    return LayerOrder(frame, pd.DataFrame({"query": list(firsts)}), {})


def test_inversions_count_later_entities_in_earlier_layers() -> None:
    result = order(
        aligned=(1, 2, 3, 3, 2, 1),
        inverted=(4, 2, 3, 1, 2, 3),
        same=(2, 2, 2, 1, 1, None),
        alone=(None, None, 5, 9, 1, None),
        never=(None,) * 6,
    )
    table = result.inversions().set_index(["control", "earlier", "later"])
    own, other = table.loc["none"], table.loc["other"]
    assert own["n"].to_dict() == {
        ("e2", "e3"): 3,
        ("e2", "e4"): 3,
        ("e3", "e4"): 3,
        ("any", "any"): 3,
    }
    assert own["inverted"].to_list() == [1, 1, 0, 1]
    assert (other.loc[("any", "any"), ["n", "inverted"]]).to_list() == [4, 2]
    gain = result.above_chance().iloc[0]
    assert (gain["n"], gain["better"], gain["worse"]) == (3, 1, 1)
    assert result.end == "t3"
    decoded, inverted = result.findings()
    assert "3 queries in which two entities or more are decoded at t3" in inverted
    assert all(re.match(r" \(\d+–\d+\)", after) for after in decoded.split("%")[1:])
    assert re.search(r"with another query's entities \d+ % \(\d+–\d+\)", inverted)
    assert result.at(OWN_HOP)["entity"].unique().tolist() == ["e4"]
    result.plot()


def test_layer_order_is_read_off_a_projection(llama: LanguageModel, tmp_path: Path) -> None:
    result = hs.layer_order(llama, chains(), rank=60, progress=False, out=tmp_path / "run")
    projected = hs.project(llama, chains(), sites=("resid_post",), progress=False)
    for row in result.frame.itertuples():
        target = f"{row.entity}_other" if row.control == "other" else str(row.entity)
        here = projected.frame.query("query == @row.query and position == @row.position")
        here = here[(here["target"] == target) & (here["rank"] <= 60)]
        assert np.array_equal([here["layer"].min()], [row.first_layer], equal_nan=True)
    saved = LayerOrder.load(tmp_path / "run" / "layer_order")
    pd.testing.assert_frame_equal(saved.frame, result.frame)
    assert set(result.places["position"]) == {"t1", "t2", "t3", OWN_HOP}


def two_hop_analyses() -> Iterator[Any]:
    """The analyses that take queries, and those of two hops alone."""
    for entry in analyses():
        if entry.asks in ("subset", "queries"):
            yield entry


@pytest.mark.parametrize("entry", list(two_hop_analyses()), ids=lambda entry: entry.name)
def test_an_analysis_takes_chains_or_says_how_to_divide_them(
    entry: Any, llama: LanguageModel
) -> None:
    given = entry.accepts["queries"]
    takes = type(given).__name__ == "Queries"
    if takes:
        assert given.checked("queries", chains(), llama) is not None
        return
    with pytest.raises(
        HopscopeError, match=r"3 hops.*one of e2, e3, with queries\.as_two_hop\('e3'\)"
    ):
        entry.function(llama, chains())


def test_positions_are_those_of_the_queries() -> None:
    assert positions_of(chains(), None) == ["t1", "t2", "t3"]
    assert positions_of(chains(), ["t3", "e1"]) == ["t3", "e1"]
    with pytest.raises(UsageError, match="unknown position 't4': choose one of t1, t2, t3, e1"):
        positions_of(chains(), ["t4"])


def worded(n: int) -> QuerySet:
    """Questions in their own words, of which one does not name its source."""
    labels = tuple(f"Name{k}" for k in range(n + 1))
    templates = tuple(f"Question: what of {{}} {k}?" for k in range(n))
    given: dict[str, Any] = {"endings": ("\nAnswer:",) * n}
    rows = (
        MultiHopQuery("a", labels, templates, wording="Question: all of Name0?\nAnswer:", **given),
        MultiHopQuery("b", labels, templates, wording="Question: all?\nAnswer:", **given),
    )
    return QuerySet(rows, "worded")


@pytest.mark.parametrize("n", [2, 3])
def test_questions_in_their_own_words_are_read_at_their_end(n: int, llama: LanguageModel) -> None:
    queries, end = worded(n), f"t{n}"
    layers: dict[str, Any] = {"source_layers": [1], "target_layers": [0]}
    for result in (
        hs.back_patch(llama, queries, cells=[(1, 0)], progress=False),
        hs.describe(llama, queries, progress=False, **layers),
        hs.project(llama, queries, progress=False),
        hs.layer_order(llama, queries, progress=False),
    ):
        assert set(result.frame["position"]) == {end}
        assert result.findings()
        result.plot()
    assert set(hs.knockout(llama, queries, layers=[1], progress=False).frame["query"]) == {"a"}
    assert hs.grade(llama, queries, progress=False).counts()["graded"] == 2
    with pytest.raises(HopscopeError, match="its own words, such as MuSiQue's, is not composed"):
        hs.stages(llama, queries, layers=[0], progress=False)
    with pytest.raises(HopscopeError, match="in its own words, of which its bridges cannot be"):
        hs.prompt_conditions(llama, queries, ["bridge_first"], progress=False)
