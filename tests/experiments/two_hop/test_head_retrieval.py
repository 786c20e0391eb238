"""Heads by the keys that they hold: against the model's own attention weights."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from conftest import loaded

import hopscope as hs
from hopscope.errors import QueryError, UsageError
from hopscope.experiments.two_hop import head_retrieval
from hopscope.experiments.two_hop.head_retrieval import HeadRetrieval, classify_heads
from hopscope.models.load import load_model

FAMILIES = ["llama", "gpt2", "gemma3", "qwen2"]


@pytest.fixture(scope="module")
def queries() -> hs.QuerySet:
    return hs.load_queries("world", few_shot=1).sample(5)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_model_s_own_weights(family, queries):
    name = f"tiny-random-{family}"
    model = load_model(name, device="cpu")
    model.hf.set_attn_implementation("eager")
    result = classify_heads(loaded(name), queries, mass=0.7, progress=False)
    for query, prompt in zip(queries, queries.prompts(), strict=True):
        ids = torch.tensor([model.encode(prompt.text).ids])
        with torch.no_grad():
            weights = model.hf(ids, output_attentions=True).attentions
        own = result.frame[result.frame["query"] == query.id].set_index(["layer", "head"])
        for layer, of_layer in enumerate(weights):
            for head in range(model.n_heads):
                row = of_layer[0, head, -1].sort(descending=True).values
                held = next(n for n in range(1, 99) if row[:n].sum() >= 0.7 - 1e-4)
                window = model.window(layer) or 10**9
                assert own.loc[(layer, head), "k"] == held
                assert own.loc[(layer, head), "n_keys"] == min(ids.shape[1], window)


def made(shares: dict[tuple[int, int], list[int]]) -> HeadRetrieval:
    """Keys held by layer and head, query by query, of 64 keys."""
    rows = [
        {"query": str(query), "layer": layer, "head": head, "k": k, "n_keys": 64}
        for (layer, head), held in shares.items()
        for query, k in enumerate(held)
    ]
    details = pd.DataFrame({"query": ["0", "1", "2"]})
    return HeadRetrieval(pd.DataFrame(rows), details, {"queries": {"n": 3}})


RESULT = made({(0, 0): [64, 60, 2], (0, 1): [2, 2, 64], (1, 0): [32, 32, 32], (1, 1): [8, 1, 9]})


def test_classes_are_by_the_median_over_queries():
    table = RESULT.classes().set_index(["layer", "head"])["head_class"]
    assert table.to_dict() == {(0, 0): "I", (0, 1): "IV", (1, 0): "II", (1, 1): "III"}
    by_layer = RESULT.by_layer()
    assert by_layer.loc[0].to_dict() == {"I": 0.5, "II": 0, "III": 0, "IV": 0.5}
    assert (by_layer.sum(axis=1) == 1).all()


def test_the_picture_stacks_the_shares():
    ax = RESULT.plot()
    tops = [patch.get_y() + patch.get_height() for patch in ax.patches[-2:]]
    assert tops == [1, 1]
    plt.close("all")


def test_a_stopped_run_goes_on_and_is_read_back(queries, tmp_path, monkeypatch):
    model = loaded("tiny-random-llama")
    whole = classify_heads(model, queries, progress=False)
    monkeypatch.setattr(head_retrieval, "PER_PART", 2)
    held, calls = head_retrieval.keys_held, []

    def dying(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return held(*given)

    monkeypatch.setattr(head_retrieval, "keys_held", dying)
    with pytest.raises(KeyboardInterrupt):
        classify_heads(model, queries, out=tmp_path / "run", progress=False)
    again = classify_heads(model, queries, out=tmp_path / "run", progress=False)
    assert len(calls) == 2 + 2  # of three parts the first is not computed again
    pd.testing.assert_frame_equal(again.frame, whole.frame)
    assert isinstance(hs.load_result(tmp_path / "run"), HeadRetrieval)


def test_bad_input_is_refused(queries):
    model = loaded("tiny-random-llama")
    for mass in (0, 1.5):
        with pytest.raises(UsageError, match="mass must be above 0 and at most 1"):
            classify_heads(model, queries, mass=mass)
    with pytest.raises(QueryError, match="empty"):
        classify_heads(model, queries[:0])
