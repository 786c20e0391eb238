"""Operations of a search: against one hooked forward for each, and on graphs made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded
from transformers import AttentionInterface, AttentionMaskInterface

import hopscope as hs
from hopscope.engine.edits import Knockout
from hopscope.errors import ModelError, QueryError, UsageError
from hopscope.experiments.worlds.computation_graph import ComputationGraph, computation_graph
from hopscope.experiments.worlds.graph_operations import (
    OTHER_PLACES,
    Operation,
    OperationSearch,
    Thresholds,
    _fewer,
    _Versions,
)
from hopscope.experiments.worlds.graph_plots import longest_chain
from hopscope.loading import load_result
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.capture import capture
from hopscope.queries.graph_paths import PathPrompt, PathSet
from hopscope.statistics import wilson

FAMILIES = ["gpt2", "llama", "qwen3", "gemma3", "gpt-neox"]
PROMPT = PathPrompt("0", "the bridge of a city", "is", ((1, 2), (2, 3)), start=1, goal=3)


def plain_logits(model: LanguageModel, ids: list[int], edits: list[Knockout]) -> torch.Tensor:
    row = torch.tensor([ids])
    with torch.no_grad(), hs.edit(model, edits, row.shape[1]):
        return model.hf(input_ids=row).logits[0, -1].float()


def all_operations(model: LanguageModel, n: int) -> list[Operation]:
    return [
        Operation(layer, head, to, source)
        for layer in range(model.n_layers)
        for head in range(model.n_heads)
        for to in range(n)
        for source in range(to)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_operation_is_left_out_as_by_a_hook_of_its_own(family):
    model = loaded(f"tiny-random-{family}")
    search = OperationSearch(model, PROMPT, Thresholds())
    ids = search.ids.tolist()
    for each in all_operations(model, len(ids))[::7]:
        passed = search._passes(_Versions(changed=[each]), [])
        hooked = plain_logits(
            model, ids, [Knockout([each.layer], [each.to], [each.source], [each.head])]
        )
        assert float(passed.answer[0]) == pytest.approx(float(hooked[search.answer]), abs=1e-4)
        assert int(passed.said[0]) == int(hooked.argmax())


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_what_the_attention_weights_are_the_softmax_of(family):
    model = loaded(f"tiny-random-{family}")
    search = OperationSearch(model, PROMPT, Thresholds())
    weights = capture(model, [PROMPT.text], ("attn_pattern",), range(search.n))["attn_pattern"]
    every = all_operations(model, search.n)
    diagonal = [
        Operation(each.layer, each.head, to, to) for each in every for to in range(search.n)
    ]
    asked = sorted({*every, *diagonal})
    scores = torch.zeros(model.n_layers, model.n_heads, search.n, search.n)
    layer, head, to, source, _ = torch.tensor(asked).T
    scores[layer, head, to, source] = search._passes(_Versions(), asked).scores[0]
    hidden = torch.ones(search.n, search.n).triu(1).bool()
    for layer in range(model.n_layers):
        window = model.window(layer)
        beyond = torch.ones(search.n, search.n).tril(-window).bool() if window else hidden
        own = scores[layer].masked_fill(hidden | beyond, float("-inf")).softmax(-1)
        torch.testing.assert_close(own, weights[0, :, layer].transpose(0, 1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_importance_is_what_a_plain_loop_finds(family):
    model = loaded(f"tiny-random-{family}")
    limits = Thresholds(logit=0.02, score=1e9)
    search = OperationSearch(model, PROMPT, limits)
    ids = search.ids.tolist()
    clean = plain_logits(model, ids, [])[search.answer]
    drops, read = {}, {len(ids) - 1}
    for layer in reversed(range(model.n_layers)):
        here = [each for each in all_operations(model, len(ids)) if each.layer == layer]
        for each in here:
            if each.to not in read:
                continue
            edit = Knockout([layer], [each.to], [each.source], [each.head])
            drop = float(clean - plain_logits(model, ids, [edit])[search.answer])
            if drop > limits.logit:
                drops[each] = drop
        read |= {each.source for each in drops if each.layer == layer}
    found = search._important()
    assert set(found) == set(drops)
    assert drops, "the test must test something"
    for each, drop in drops.items():
        assert found[each][0] == pytest.approx(drop, abs=1e-4)


def strong_logits(model: LanguageModel, ids: list[int], each: Operation) -> torch.Tensor:
    """Logits with one weight as large as the largest of its key, by an attention of its own."""
    last: dict[int, torch.Tensor] = {}
    given: dict[int, float] = {}

    def plain(module, query, key, value, attention_mask, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = query @ key.mT * scale
        future = torch.ones(scores.shape[-2:]).triu(1).bool()
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        last[module.layer_idx] = weights[0]
        if module.layer_idx in given:
            weights[0, each.head, each.to, each.source] = given[module.layer_idx]
        return (weights @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("plain_for_a_test", plain)
    AttentionMaskInterface.register("plain_for_a_test", lambda **_: None)
    before = model.config._attn_implementation
    model.config._attn_implementation = "plain_for_a_test"
    try:
        with torch.no_grad():
            model.hf(input_ids=torch.tensor([ids]))
            given[each.layer] = float(last[each.layer][each.head, :, each.source].max())
            return model.hf(input_ids=torch.tensor([ids])).logits[0, -1].float()
    finally:
        model.config._attn_implementation = before


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_negative_operations_are_what_a_plain_loop_finds(family):
    model = loaded(f"tiny-random-{family}")
    limits = Thresholds(logit=0.02, score=1e9)
    search = OperationSearch(model, PROMPT, limits, "both")
    ids = search.ids.tolist()
    clean = plain_logits(model, ids, [])[search.answer]
    needed = set(OperationSearch(model, PROMPT, limits)._important())
    drops, read = {}, {len(ids) - 1}
    for layer in reversed(range(model.n_layers)):
        for each in all_operations(model, len(ids)):
            if each.layer != layer or each.to not in read:
                continue
            drop = float(clean - strong_logits(model, ids, each)[search.answer])
            edit = Knockout([layer], [each.to], [each.source], [each.head])
            without = float(clean - plain_logits(model, ids, [edit])[search.answer])
            if without > limits.logit:
                drops[each] = without
            elif drop > limits.logit:
                drops[each._replace(sign=-1)] = drop
        read |= {each.source for each in drops if each.layer == layer}
    found = search._important()
    assert set(found) == set(drops)
    assert any(each.sign < 0 for each in found), "the test must test something"
    assert needed <= set(found)
    for each, drop in drops.items():
        assert found[each][0] == pytest.approx(drop, abs=1e-4)


def test_the_score_of_a_negative_operation_falls_as_it_rises():
    model = loaded("tiny-random-gpt2")
    search = OperationSearch(model, PROMPT, Thresholds(dependence=0.003))
    operations = [each for each in all_operations(model, search.n) if each.layer < 2][::9]
    negative = [each._replace(sign=-1) for each in operations]
    words, _ = search._starts()
    falls = search._changed(operations, words)
    torch.testing.assert_close(search._changed(negative, words), -falls)
    of_words, _ = search._dependences(negative)
    for each, column in zip(negative, falls.T, strict=True):
        assert of_words[each] == (column < -0.003).nonzero().flatten().tolist()


def test_of_both_signs_those_of_which_there_are_fewer():
    needed, strong = [3, 1, 2, 4, 0, 0], [1, 3, 2, 0, 4, 0]
    found = _fewer(torch.tensor([needed, strong]))
    # As many: those that are needed. Where one kind is missing, the other.
    assert found[0].tolist() == [False, True, True, True, False, True]
    assert found[1].tolist() == [True, False, False, False, True, False]
    model = loaded("tiny-random-gpt2")
    limits = Thresholds(logit=0.02, score=1e9)
    both, fewer = (
        OperationSearch(model, PROMPT, limits, signs)._important() for signs in ("both", "fewer")
    )
    last = model.n_layers - 1
    counted = [sum(each.layer == last and each.sign == sign for each in both) for sign in (1, -1)]
    kept = {each.sign for each in fewer if each.layer == last}
    assert min(counted) > 0, "the test must test something"
    assert kept == {1 if counted[0] <= counted[1] else -1}


def test_an_operation_may_matter_by_the_scores_of_later_blocks_alone():
    model = loaded("tiny-random-gpt2")
    by_logit = OperationSearch(model, PROMPT, Thresholds(logit=0.02, score=1e9))._important()
    by_both = OperationSearch(model, PROMPT, Thresholds(logit=0.02, score=1e-4))._important()
    assert set(by_logit) < set(by_both)
    more = set(by_both) - set(by_logit)
    assert all(by_both[each][1] > 1e-4 for each in more)
    last = model.n_layers - 1
    assert all(each.layer < last for each in more), "the last block's own scores do not change"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_word_is_taken_away_as_the_mean_of_the_others(family):
    model = loaded(f"tiny-random-{family}")
    search = OperationSearch(model, PROMPT, Thresholds())
    words, places = search._starts()
    ids = search.ids
    embedded = model.hf.get_input_embeddings().weight
    kinds = ids.unique()
    for token in range(search.n):
        others = embedded[kinds[kinds != ids[token]]].mean(dim=0)
        torch.testing.assert_close(
            words[token], others - embedded[ids[token]], rtol=1e-4, atol=1e-5
        )
    if family == "gpt2":
        table = model.hf.transformer.wpe.weight[: search.n]
        for token in range(search.n):
            rest = torch.cat([table[:token], table[token + 1 :]]).mean(dim=0)
            torch.testing.assert_close(places[token], rest - table[token], rtol=1e-4, atol=1e-5)
    else:
        assert places.abs().max() < 1e-5, "rotary places are not in the states"


def merged(
    prompt: PathPrompt, steps: list[tuple[Operation, list[int], list[int]]]
) -> tuple[int, bool, bool]:
    """How many operations are explained, and whether the start is joined to goal and another."""
    search = OperationSearch(loaded("tiny-random-gpt2"), prompt, Thresholds())
    words = {each: of_words for each, of_words, _ in steps}
    places = {each: of_places for each, _, of_places in steps}
    explained, held = search._merged(list(words), words, places)
    found = search._joined(held)
    return len(explained), found["joined"], found["joined_other"]


def test_sets_merge_where_a_vertex_is_shared_or_a_place_is_looked_up():
    # Edges a b, b c and a f: c is the goal, and nothing else is two steps away from a.
    edges = ((0, 1), (2, 3), (4, 5))
    prompt = replace(PROMPT, text="a b b c a f a", edges=edges, start=6, goal=3)
    search = OperationSearch(loaded("tiny-random-gpt2"), prompt, Thresholds())
    assert search.words == ["a", "b", "b", "c", "a", "f", "a"], "a token a letter"
    # Each second vertex takes over its first by place; b meets b; a meets a at the end.
    first = [(Operation(0, 0, 1, 0), [], [0, 1]), (Operation(0, 0, 3, 2), [], [2, 3])]
    meet = (Operation(1, 0, 3, 1), [2], [])
    last = (Operation(2, 0, 6, 3), [6], [])
    assert merged(prompt, [*first, meet, last]) == (4, True, False)
    # Without the first copy, c's set has no a to share with the last token.
    assert merged(prompt, [first[1], meet, last]) == (2, False, False)
    # What depends on a vertex that only one of the sets has is not explained.
    assert merged(prompt, [*first, meet, (last[0], [3], [])]) == (3, False, False)
    # Nor is what depends on one of the two places alone, or on nothing.
    assert merged(prompt, [*first, meet, (last[0], [], [6])]) == (3, False, False)
    assert merged(prompt, [*first, meet, (last[0], [], [])]) == (3, False, False)
    # Places of both are enough, and words of any mention count.
    assert merged(prompt, [*first, meet, (last[0], [], [3, 6])]) == (4, True, False)
    assert merged(prompt, [*first, meet, (last[0], [4], [])]) == (4, True, False)
    # In one block the sets are those from before it.
    together = [*first, (Operation(1, 0, 3, 1), [2], []), (Operation(1, 0, 6, 3), [6], [])]
    assert merged(prompt, together)[0] == 3


def test_another_vertex_that_is_joined_is_told_apart_from_the_goal():
    prompt = replace(PROMPT, text="a b a f a", edges=((0, 1), (2, 3)), start=4, goal=1)
    fetch = (Operation(0, 0, 4, 3), [], [3, 4])
    assert merged(prompt, [fetch]) == (1, False, True)
    right = (Operation(0, 0, 4, 1), [], [1, 4])
    assert merged(prompt, [right]) == (1, True, False)
    assert merged(prompt, [fetch, right]) == (2, True, True)


def test_where_no_vertex_is_as_far_away_the_control_is_a_way_elsewhere():
    # a leads to b, c to f: nothing but b is one step away from a.
    prompt = replace(PROMPT, text="a b c f a", edges=((0, 1), (2, 3)), start=4, goal=1)
    right = (Operation(0, 0, 4, 1), [], [1, 4])
    wrong = [(Operation(0, 0, 4, token), [], [token, 4]) for token in (2, 3)]
    assert merged(prompt, [right]) == (1, True, False)
    assert merged(prompt, [right, wrong[0]]) == (2, True, False)
    assert merged(prompt, wrong) == (2, False, True)
    # Here c leads onto the way itself, a step from its start: that is no way elsewhere.
    prompt = replace(PROMPT, text="c a a b b", edges=((0, 1), (2, 3)), start=2, goal=3)
    onto = [(Operation(0, 0, 4, token), [], [token, 4]) for token in (0, 1)]
    assert merged(prompt, onto) == (2, True, False)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_tokens_of_rotary_models_are_moved_as_by_position_ids(family):
    model = loaded(f"tiny-random-{family}")
    text = " ".join(["the bridge of a city"] * 4)
    search = OperationSearch(model, replace(PROMPT, text=text), Thresholds(dependence=1e-4))
    n = search.n
    assert n - 1 > OTHER_PLACES, "not all other places are taken"
    operations = [each for each in all_operations(model, n) if each.to == n - 1][::5]
    falls = torch.zeros(n, len(operations))
    clean = search._passes(_Versions(), operations).scores[0]
    for token in range(n):
        places = [place for place in range(n) if place != token]
        taken = [places[round(at * (n - 2) / (OTHER_PLACES - 1))] for at in range(OTHER_PLACES)]
        assert len(set(taken)) == OTHER_PLACES
        for place in taken:
            positions = torch.arange(n)[None].clone()
            positions[0, token] = place
            passed = search._passes(_Versions(positions=positions), operations)
            with torch.no_grad():
                plain = model.hf(
                    input_ids=search.ids[None],
                    position_ids=positions,
                    attention_mask=torch.ones_like(positions),
                ).logits[0, -1]
            assert float(passed.answer[0]) == pytest.approx(float(plain[search.answer]), abs=1e-4)
            falls[token] += (clean - passed.scores[0]) / OTHER_PLACES
    torch.testing.assert_close(search._moved(operations), falls, rtol=1e-3, atol=1e-5)
    _, found = search._dependences(operations)
    for index, each in enumerate(operations):
        for token, fall in enumerate(falls[:, index].tolist()):
            assert (token in found[each]) == (fall > 1e-4) or abs(fall - 1e-4) < 1e-5
    assert any(found.values()), "the test must test something"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_dependences_are_falls_of_scores_when_a_word_or_place_is_replaced(family):
    model = loaded(f"tiny-random-{family}")
    search = OperationSearch(model, PROMPT, Thresholds(dependence=0.003))
    operations = [each for each in all_operations(model, search.n) if each.layer < 2][::9]
    words, places = search._dependences(operations)
    away = dict(zip(("words", "places"), search._starts(), strict=True))
    clean = search._passes(_Versions(), operations).scores[0]
    seen = 0
    in_states = {"words": words} if family == "llama" else {"words": words, "places": places}
    for kind, found in in_states.items():
        for token in range(search.n):
            added = torch.zeros(1, search.n, model.d_model)
            added[0, token] = away[kind][token]
            falls = clean - search._passes(_Versions(added=added), operations).scores[0]
            for each, fall in zip(operations, falls.tolist(), strict=True):
                assert (token in found[each]) == (fall > 0.003)
                seen += token in found[each]
    assert seen > 5, "the test must test something"


def test_the_shipped_search_is_right_and_made_of_more_than_an_untrained_one():
    world = hs.load_world("graph-search", device="cpu")
    result = computation_graph(world.model, world.paths(12), progress=False)
    table = result.explained()
    assert table["group"].tolist() == [1, 2, 3]
    assert table["correct"].tolist() == [1.0, 1.0, 1.0]
    assert table["operations"].is_monotonic_increasing
    assert table["explained"].mean() > 0.7
    assert table["other"].mean() < 0.3


def test_the_shipped_chains_are_followed_by_words_and_distances():
    world = hs.load_world("in-context", device="cpu")
    result = computation_graph(world.model, world.paths(12), Thresholds(score=1), progress=False)
    (row,) = result.explained().to_dict("records")
    assert row["correct"] == 1
    assert row["explained"] > 0.5
    assert row["other"] < row["explained"] - 0.3
    assert result.frame[["words", "places"]].map(bool).any().all()


def test_the_chain_that_stands_out_is_the_longest_explained_one_to_the_last_token():
    table = pd.DataFrame(
        [
            (0, 1, 3, True),  # 0: read by 2
            (0, 2, 3, False),
            (2, 3, 4, True),
            (1, 2, 4, True),  # later than what it could read
            (3, 4, 5, True),  # 4: ends at the last token
            (3, 3, 5, True),
            (4, 0, 5, False),
            (2, 0, 1, True),  # too late for the first one
        ],
        columns=["layer", "from_token", "to_token", "explained"],
    )
    assert longest_chain(table, 5) == [4, 2, 0]
    assert longest_chain(table, 1) == [7]
    assert longest_chain(table, 2) == []
    assert longest_chain(table.assign(explained=False), 5) == []
    of_one_block = table.loc[[2, 4]].assign(layer=3)  # the second cannot read what the first wrote
    assert longest_chain(of_one_block, 5) == [4]


def test_the_tables_the_plot_and_the_run_folder(tmp_path):
    model = loaded("tiny-random-gpt2")
    prompts = PathSet(tuple(replace(PROMPT, id=str(n), group=n % 2) for n in range(10)), "ten")
    limits = Thresholds(logit=0.02, score=0.01, dependence=0.001)
    result = computation_graph(model, prompts, limits, progress=False, out=tmp_path / "run")
    again = load_result(tmp_path / "run")
    assert isinstance(again, ComputationGraph)
    pd.testing.assert_frame_equal(again.frame, result.frame)
    table = result.explained()
    assert table["n"].tolist() == [5, 5]
    for name in ("correct", "other"):
        ends = (name, f"{name}_low", f"{name}_high")
        for share, low, high in table[list(ends)].itertuples(index=False, name=None):
            assert (share, low, high) == wilson(round(share * 5), 5)
    assert result.details["n_operations"].sum() == len(result.frame)
    assert result.details["n_explained"].sum() == result.frame["explained"].sum()
    both = computation_graph(model, prompts, limits, signs="both", progress=False)
    assert set(both.frame["sign"]) == {1, -1}
    assert set(result.frame["sign"]) == {1}
    crosses = [line for line in both.plot("3").get_lines() if line.get_marker() == "x"]
    assert len(crosses) == (both.frame[both.frame["query"] == "3"]["sign"] < 0).sum()
    older = {"frame": result.frame.drop(columns="sign"), "details": result.details}
    ax = ComputationGraph.of(older, result.run).plot("3")
    tokens = OperationSearch(model, PROMPT, limits).tokens.split(" ")
    assert [label.get_text() for label in ax.get_xticklabels()] == tokens
    shown = result.frame[result.frame["query"] == "3"]
    chain = longest_chain(shown, len(tokens) - 1)
    strong = [
        line for line in ax.get_lines() if line.get_linewidth() > 2 and line.get_marker() == "o"
    ]
    ends = shown.loc[sorted(chain), ["from_token", "to_token"]].to_numpy().tolist()
    assert [np.asarray(line.get_xdata()).tolist() for line in strong] == ends
    with pytest.raises(UsageError, match="no query 'x'"):
        result.plot("x")


@pytest.mark.parametrize("room", [0, -1])
def test_prompts_past_the_length_at_which_positions_change_are_refused(room, monkeypatch):
    model = loaded("tiny-random-llama")
    longer = replace(PROMPT, id="1", text=f"{PROMPT.text} and so on", answer="is")
    length = len(model.encode(longer.text).ids)
    monkeypatch.setitem(model.probed, "position_limit", length + room)
    prompts = PathSet((longer, PROMPT))
    if room == 0:
        assert len(computation_graph(model, prompts, progress=False).details) == 2
        return
    message = rf"cannot run the attention of tiny-random-llama .* up to {length} tokens"
    with pytest.raises(ModelError, match=message):
        computation_graph(model, prompts, progress=False)


def test_what_cannot_be_is_refused():
    model = loaded("tiny-random-gpt2")
    with pytest.raises(QueryError, match="empty"):
        computation_graph(model, PathSet(()))
    with pytest.raises(QueryError, match="no vertex at place 40"):
        computation_graph(model, PathSet((replace(PROMPT, goal=40),)), progress=False)
    with pytest.raises(UsageError, match="score"):
        Thresholds(score=-1)
