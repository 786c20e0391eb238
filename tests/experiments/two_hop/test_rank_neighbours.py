"""Middle ranks and the clusters of the top: against the model's own logits."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded

import hopscope as hs
from hopscope.errors import UsageError
from hopscope.experiments.two_hop import rank_neighbours as ranking
from hopscope.experiments.two_hop.rank_neighbours import (
    RankNeighbours,
    rank_neighbours,
    unembedding_clusters,
)
from hopscope.models.tiny import build_tiny
from hopscope.prompting.query_prompts import QueryPrompts
from hopscope.queries.build_bundled import DATA, load_facts, read_rows
from hopscope.queries.list_questions import one_of_each_prompt, right_answers

HOW = {"n_clusters": 7, "top": 3, "ranks": 12, "progress": False}


@pytest.fixture(scope="module")
def queries() -> hs.QuerySet:
    """Queries whose answers are told by the first token of the tiny models' tokenizer."""
    some = hs.load_queries("world", few_shot=1).sample(40)
    prompts = QueryPrompts.of(loaded("tiny-random-llama"), some)
    return some.filter(lambda query: bool(prompts.answer_tokens(query)))[:4]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_ranks_are_those_of_plain_logits(family, queries):
    model = loaded(f"tiny-random-{family}")
    result = rank_neighbours(model, queries, **HOW)
    clusters = unembedding_clusters(model, 7)
    for query, prompt in zip(queries, queries.prompts(), strict=True):
        with torch.no_grad():
            logits = model.hf(torch.tensor([model.encode(prompt.text).ids])).logits[0, -1]
        order = logits.argsort(descending=True)[:12].tolist()
        near = {int(clusters[token]) for token in order[:3]}
        own = result.frame.query("query == @query.id and control == 'none'")
        assert own["rank"].tolist() == list(range(3, 12))
        assert own["inside"].tolist() == [int(clusters[token]) in near for token in order[3:]]
        right = QueryPrompts.of(model, queries).answer_tokens(query)
        known = not set(right).isdisjoint(order[:3])
        assert own["right"].tolist() == [token in right and not known for token in order[3:]]


def listed(model: hs.LanguageModel) -> tuple[hs.QuerySet, list[int]]:
    """A query for each of three right answers, tokens that are ranked high, and their ranks."""
    base = hs.load_queries("world", few_shot=0)[0]
    ids = torch.tensor([model.encode(base.two_hop()).ids])
    with torch.no_grad():
        order = model.hf(ids).logits[0, -1].argsort(descending=True).tolist()
    names = {}
    for rank, token in enumerate(order):
        name = model.tokenizer.decode([token]).strip()
        if name and model.first_tokens([name], required=False, after=base.two_hop()) == (token,):
            names[rank] = name
    ranks = list(names)[:3]
    answers = [names[rank] for rank in ranks]
    rows = [
        replace(base, id=name, e2_label="?", e2_aliases=(), e3_label=name, e3_aliases=())
        for name in answers
    ]
    return hs.QuerySet(rows, "lists"), ranks


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_list_question_has_all_its_answers_but_those_at_the_top(family):
    model = loaded(f"tiny-random-{family}")
    asked, ranks = listed(model)
    top, last = ranks[1], ranks[2] + 2
    options = {**HOW, "top": top, "ranks": last, "controls": ()}
    result = rank_neighbours(model, asked, **options)
    (row,) = result.details.to_dict("records")
    assert (row["n_answers"], row["n_in_top"], row["answer_rank"]) == (3, 1, ranks[0])
    right = result.frame.set_index("rank")["right"]
    assert right[right].index.tolist() == ranks[1:]
    assert result.accuracy()["n"].max() == 1, "an answer is still to be found"
    one = rank_neighbours(model, asked[:1], **options)
    assert not one.frame["right"].any(), "another spelling of what is at the top"
    assert one.accuracy().empty


def test_the_bundled_lists_are_facts_the_other_way_round():
    rows = hs.load_queries("world-lists", few_shot=2)
    questions = one_of_each_prompt(rows)
    assert 50 < len(questions) < len(rows)
    facts = load_facts()
    kinds = {
        f"{each['subject_type']}-of-{each['relation']}": each
        for each in read_rows(DATA / "facts" / "lists.csv")
    }
    for query in questions:
        answers, each = right_answers(query), kinds[query.r2]
        assert len(answers) >= 5
        wanted = {
            facts.entities[subject].label
            for (subject, relation), target in facts.objects.items()
            if (relation, target) == (each["relation"], query.e2)
            and facts.entities[subject].type == each["subject_type"]
        }
        found = {names[0] for names in answers}
        assert found <= wanted
        assert facts.objects[query.e1, query.r1] == query.e2
        assert query.e1_label not in found
    assert "A city in the country containing" in " ".join(query.two_hop() for query in questions)
    for query, prompt in list(zip(questions, questions.prompts(), strict=True))[::20]:
        shown = prompt.text.removesuffix(query.two_hop())
        for names in right_answers(query):
            assert not any(f" {name}\n" in shown for name in names), "a demonstration gives it away"


def test_clusters_are_of_directions_and_come_back_with_the_seed():
    model = loaded("tiny-random-llama")
    labels = unembedding_clusters(model, 5)
    assert torch.equal(labels, unembedding_clusters(model, 5))
    assert not torch.equal(labels, unembedding_clusters(model, 5, seed=1))
    rows = torch.nn.functional.normalize(model.unembedding.weight.float(), dim=-1)
    means = torch.stack([rows[labels == k].mean(dim=0) for k in range(5)])
    nearest = torch.cdist(rows, means).argmin(dim=1)
    assert (nearest == labels).float().mean() > 0.8


def test_clusters_are_those_of_an_adapted_unembedding():
    peft = pytest.importorskip("peft")
    hf, tokenizer = build_tiny("tiny-random-llama")
    plain = unembedding_clusters(hs.load_model(hf, tokenizer=tokenizer), 5)
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    adapted = peft.get_peft_model(hf, config)
    labels = unembedding_clusters(hs.load_model(adapted, tokenizer=tokenizer), 5)
    assert not torch.equal(labels, plain)
    merged = adapted.merge_and_unload()
    assert torch.equal(labels, unembedding_clusters(hs.load_model(merged, tokenizer=tokenizer), 5))


def test_shuffled_clusters_have_the_same_sizes(queries):
    model = loaded("tiny-random-llama")
    result = rank_neighbours(model, queries, **HOW)
    assert set(result.frame["control"]) == {"none", "shuffled"}
    alone = rank_neighbours(model, queries, controls=(), **HOW)
    own = result.frame.query("control == 'none'").reset_index(drop=True)
    pd.testing.assert_frame_equal(alone.frame, own)


def made() -> RankNeighbours:
    rows = [
        ("a", "none", 10, True, True), ("a", "none", 11, True, False),
        ("a", "none", 12, False, False), ("b", "none", 10, False, False),
        ("b", "none", 11, False, True), ("a", "shuffled", 10, True, False),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["query", "control", "rank", "inside", "right"])
    details = pd.DataFrame({"query": ["a", "b", "c"], "answer_rank": [11, 50, 4]})
    known = pd.DataFrame([("c", "none", 10, True, True)], columns=frame.columns)
    run = {"queries": {"n": 3}, "settings": {"top": 10}}
    return RankNeighbours(pd.concat([frame, known], ignore_index=True), details, run)


def test_shares_are_means_over_queries():
    table = made().accuracy().set_index(["control", "inside"])
    assert table.loc[("none", True), ["n", "accuracy"]].tolist() == [1, 0.5]
    assert table.loc[("none", False), ["n", "accuracy"]].tolist() == [2, 0.25]
    drawn = made().drawn().set_index("control")
    assert drawn.loc["none", "share"] == pytest.approx(np.mean([2 / 3, 0, 1]))


def test_the_picture_shows_both_sides():
    ax = made().plot()
    heights = [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == 2]
    assert any(np.allclose(each, [0.5, 0.25]) for each in heights)
    plt.close("all")


@pytest.mark.parametrize(
    "wrong", [{"top": 0}, {"top": 12}, {"ranks": 10**9}, {"n_clusters": 1}, {"n_clusters": 10**9}]
)
def test_numbers_that_leave_no_middle_are_refused(queries, wrong):
    with pytest.raises(UsageError, match="unknown control"):
        rank_neighbours(loaded("tiny-random-llama"), queries, controls=("other",), **HOW)
    with pytest.raises(UsageError, match=r"do not fit|top must be 1 or more"):
        rank_neighbours(loaded("tiny-random-llama"), queries, **{**HOW, **wrong})


def test_a_stopped_run_goes_on_and_is_read_back(queries, tmp_path, monkeypatch):
    model = loaded("tiny-random-llama")
    whole = rank_neighbours(model, queries, **HOW)
    monkeypatch.setattr(ranking, "PER_PART", 1)
    clusters = ranking.key_clusters
    calls = []

    def dying(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return clusters(*given)

    monkeypatch.setattr(ranking, "key_clusters", dying)
    with pytest.raises(KeyboardInterrupt):
        rank_neighbours(model, queries, out=tmp_path / "run", **HOW)
    again = rank_neighbours(model, queries, out=tmp_path / "run", **HOW)
    assert len(calls) == 4 + 2 * 3  # the first query is not asked again
    pd.testing.assert_frame_equal(again.frame, whole.frame)
    assert isinstance(hs.load_result(tmp_path / "run"), RankNeighbours)
