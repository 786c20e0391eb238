"""Tests of back_attention(): that it reads what it says, trains, and can find what is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded
from matplotlib.axes import Axes
from plain import decoder_layers, first_of
from plain import states as plain_states
from torch import Tensor

import hopscope as hs
from hopscope.engine.prefix_store import PrefixStore
from hopscope.errors import QueryError, UsageError
from hopscope.experiments.two_hop import back_attention as experiment
from hopscope.experiments.two_hop.back_attention import ARMS, BackAttending, back_attention
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.query_set import QuerySet
from hopscope.statistics import share_difference
from hopscope.training.back_attention import AlikePrompts, BackAttention, next_logits
from hopscope.worlds.load import load_world

SOURCE, TARGET = 2, 0


def trained_like(d_model: int, later: bool, seed: int = 3) -> BackAttention:
    """A module whose output is not 0, as if it had been trained."""
    module = BackAttention(d_model, 5, later=later, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        module.output.weight.copy_(torch.randn(d_model, 5, generator=generator))
    return module


def plainly(module: BackAttention, hidden: Tensor, offered: Tensor) -> Tensor:
    """What the module adds, token by token and key by key; shapes (token, d_model)."""

    def normed(state: Tensor) -> Tensor:
        return state / (state.square().mean() + torch.finfo(state.dtype).eps).sqrt()

    added = []
    for token, state in enumerate(hidden):
        seen = range(len(hidden) if module.later else token + 1)
        keys = torch.stack([module.key.weight @ normed(offered[each]) for each in seen])
        values = torch.stack([module.value.weight @ normed(offered[each]) for each in seen])
        scores = keys @ (module.query.weight @ normed(state)) / len(keys[0]) ** 0.5
        read = scores.softmax(dim=0) @ values
        added.append(state.square().mean().sqrt() * (module.output.weight @ read))
    return torch.stack(added)


def places(few_shot: int) -> QuerySet:
    queries = hs.load_queries("world").sample(6, 1)
    return queries.with_few_shot(few_shot)


@torch.no_grad()
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("few_shot", [0, 2])
@pytest.mark.parametrize("name", ["tiny-random-gpt2", "tiny-random-gemma3"])
def test_a_module_reads_and_changes_what_it_should(name: str, few_shot: int, arm: str) -> None:
    """As one hooked forward over the whole prompt, of the question's tokens alone."""
    model, access = loaded(name), ARMS[arm]
    module = trained_like(model.d_model, access.later)
    prompt = TokenizedPrompt.of(model, places(few_shot).prompts()[0])
    n_shared = prompt.n_shared
    assert (n_shared > 0) == (few_shot > 0)
    states = plain_states(model.hf, prompt.ids)[SOURCE]

    def hook(_: object, __: object, output: object) -> object:
        hidden = first_of(output)[0]
        own = hidden[n_shared:]
        offered = states[n_shared:] if access.higher else own
        changed = torch.cat([hidden[:n_shared], own + plainly(module, own, offered)])[None]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = decoder_layers(model.hf)[TARGET].register_forward_hook(hook)
    try:
        expected = model.hf(input_ids=torch.tensor([prompt.ids])).logits[0, -1]
    finally:
        handle.remove()
    ids = torch.tensor([prompt.ids[n_shared:]])
    prefix = PrefixStore(model).get(prompt.shared)
    prompts = AlikePrompts(prefix, ids, states[None, n_shared:])
    found = next_logits(model, prompts, module, TARGET, higher=access.higher)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    clean = next_logits(model, prompts)[0]
    assert (found - clean).abs().max() > 1e-2


def test_an_untrained_module_changes_nothing_and_all_arms_are_of_one_size() -> None:
    modules = {arm: BackAttention(8, 3, later=each.later, seed=0) for arm, each in ARMS.items()}
    hidden = torch.randn(2, 4, 8)
    for module in modules.values():
        assert not module(hidden, hidden).any()
        assert sum(each.numel() for each in module.parameters()) == 4 * 8 * 3
    first, *others = [module.query.weight for module in modules.values()]
    assert all(torch.equal(first, other) for other in others)


@cache
def world_queries(n: int = 24) -> tuple[LanguageModel, QuerySet]:
    world = load_world("two-hop-looped", 0)
    splits = [world.queries(split).sample(n) for split in ("first_hop_ood", "in_distribution")]
    return world.model, QuerySet(tuple(query for each in splits for query in each), "some")


@cache
def trained() -> BackAttending:
    model, queries = world_queries()
    return back_attention(model, queries, tuple(ARMS), steps=12, rank=4, progress=False)


def test_the_frame_has_every_held_out_query_once_an_arm() -> None:
    result = trained()
    assert (result.frame.groupby(["query", "arm"]).size() == 1).all()
    assert set(result.frame["arm"]) == set(ARMS)
    assert result.n_queries == len(result.details) == 48
    model, queries = world_queries()
    clean = hs.back_patch(
        model, queries, ("t1",), (), cells=[(3, 1)], criterion="first_token", progress=False
    )
    before = clean.details.set_index("query")["clean_hit"]
    for _, rows in result.frame.groupby("arm"):
        assert rows.set_index("query")["before"].to_dict() == before.to_dict()
    halves = result.details.set_index("query")["half"]
    sources = {query.id: query.e1_label for query in queries}
    assert (halves.groupby(sources).nunique() == 1).all()


def test_training_repairs_facts_that_recur_and_leaves_the_model_alone() -> None:
    """A second hop that was never composed is asked of other source entities in both halves."""
    world = load_world("two-hop-looped", 0)
    model, queries = world.model, world.queries("second_hop_ood").sample(160)
    before = {name: each.clone() for name, each in model.hf.state_dict().items()}
    result = back_attention(model, queries, ("back",), steps=60, progress=False)
    assert all(torch.equal(each, before[name]) for name, each in model.hf.state_dict().items())
    assert not any(each.grad is not None for each in model.hf.parameters())
    net = result.net().iloc[0]
    assert net["low"] > 0.15
    assert net["better"] > 5 * net["worse"]


def test_each_half_is_trained_on_the_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, queries = world_queries()
    seen: list[set[str]] = []
    read = experiment._Trainer._answer_logprobs

    def noting(self: Any, logits: Tensor, places: Sequence[int]) -> Tensor:
        if logits.requires_grad:
            seen[-1].update(queries[place].id for place in places)
        return read(self, logits, places)

    def fit(_: object, loss_of: Callable[[int], Tensor], *__: object, **___: object) -> None:
        seen.append(set())
        for step in range(8):
            loss_of(step)

    monkeypatch.setattr(experiment._Trainer, "_answer_logprobs", noting)
    monkeypatch.setattr(experiment, "fit", fit)
    half = back_attention(model, queries, ("back",), progress=False).details.set_index("query")
    for number, ids in enumerate(seen):
        assert len(ids) > len(queries) / 3
        assert set(half.loc[sorted(ids), "half"]) == {1 - number}


def test_numbers_are_counted() -> None:
    result = trained()
    back = result.frame[result.frame["arm"] == "back"]
    better = int((~back["before"] & back["hit"]).sum())
    worse = int((back["before"] & ~back["hit"]).sum())
    net = result.net().set_index(["arm", "base"]).loc[("back", "never")]
    expected = share_difference(better, worse, len(back))
    np.testing.assert_allclose(net[["difference", "low", "high"]].astype(float), expected)
    rates = result.rates().set_index(["arm", "what"])
    assert rates.loc[("back", "repaired"), "rate"] == better / (~back["before"]).sum()
    assert rates.loc[("back", "broken"), "rate"] == worse / back["before"].sum()
    assert set(result.net()["base"]) == {"never", "higher", "later", "own"}


def test_it_is_the_same_again_and_is_kept(tmp_path: Path) -> None:
    model, queries = world_queries()
    given = {"steps": 3, "rank": 2, "arms": ["back"], "progress": False}
    first = back_attention(model, queries, out=tmp_path / "run", **given)
    again = back_attention(model, queries, **given)
    read = hs.load_result(tmp_path / "run")
    for other in (again, read):
        pd.testing.assert_frame_equal(first.frame, other.frame)
    other = back_attention(model, queries, seed=1, **given)
    one, two = (each.details.set_index("query")["half"].to_dict() for each in (first, other))
    assert one != two
    assert one.keys() == two.keys()


def test_findings_name_the_control() -> None:
    said = " ".join(trained().findings())
    assert "Back attention repairs" in said
    assert "Over as many parameters without either it is" in said
    headline = trained().headline()
    assert headline is not None
    assert headline.base == "as many parameters without either"
    assert isinstance(trained().plot(), Axes)
    alone = BackAttending(trained().frame.query("arm == 'back'"), trained().details, trained().run)
    assert alone.headline() is None


def test_what_cannot_be_is_refused() -> None:
    model, queries = world_queries()
    with pytest.raises(UsageError, match="source_layer 1 must be above target_layer 1"):
        back_attention(model, queries, source_layer=1, target_layer=1)
    with pytest.raises(UsageError, match="source_layer 4 must be above"):
        back_attention(model, queries, source_layer=4)
    with pytest.raises(QueryError, match="too few"):
        back_attention(model, queries[:2], steps=1)
