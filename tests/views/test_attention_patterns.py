"""Tests of attention_view(): the patterns against transformers' own, and what is shown of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import loaded
from families import model_of

import hopscope as hs
from hopscope.display import notebook
from hopscope.display.grid import all_chosen, first_choice, slice_json, spec_of
from hopscope.errors import ModelError, UsageError
from hopscope.models.load import load_model
from hopscope.views.attention_patterns import AttentionPatterns, attention_view

TEXT = "The capital of the country of Kyoto is"


@pytest.fixture(scope="module")
def patterns() -> AttentionPatterns:
    return attention_view(loaded("tiny-random-llama"), TEXT)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_patterns_are_those_of_eager_attention(family: str) -> None:
    name = f"tiny-random-{family}"
    found = hs.attention_view(loaded(name), TEXT)
    hf = load_model(name, device="cpu").hf
    hf.set_attn_implementation("eager")
    ids = torch.tensor([loaded(name).encode(TEXT).ids])
    expected = torch.cat(hf(input_ids=ids, output_attentions=True).attentions)
    torch.testing.assert_close(found.weights, expected, atol=1e-5, rtol=1e-4)
    assert "".join(found.tokens) == loaded(name).decode(ids[0].tolist())


def test_a_few_shot_prompt_is_shown_whole() -> None:
    model, queries = loaded("tiny-random-llama"), hs.load_queries("world").sample(1)
    (prompt,) = queries.prompts()
    found = attention_view(model, prompt)
    assert len(found.tokens) == len(model.encode(prompt.text).ids)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(found.weights.shape[:3]))


def test_the_table_has_a_row_for_each_key_that_is_seen(patterns: AttentionPatterns) -> None:
    n_layers, n_heads, n, _ = patterns.weights.shape
    frame = patterns.frame
    assert len(frame) == n_layers * n_heads * n * (n + 1) // 2
    row = frame.query("layer == 2 and head == 1 and query == 5 and key == 3").iloc[0]
    assert row["weight"] == pytest.approx(float(patterns.weights[2, 1, 5, 3]))
    assert row["over_even"] == pytest.approx(6 * row["weight"])
    means = frame.groupby(["layer", "head", "query"])["over_even"].mean()
    np.testing.assert_allclose(means, 1, rtol=1e-4)


def test_the_grid_has_the_first_query_on_top_and_a_choice_of_heads(
    patterns: AttentionPatterns,
) -> None:
    grid, n = patterns.grid(), len(patterns.tokens)
    spec = spec_of(grid)
    assert spec["x"]["names"] == list(patterns.tokens)
    assert spec["y"]["names"] == list(patterns.tokens[::-1]), "the y axis goes upwards"
    assert len(list(all_chosen(grid.choices))) == 4 * (4 + 1)
    shown = slice_json(grid, {"layer": "3", "head": "2"})["measures"][0]
    rows = np.array(shown["values"], dtype=float).reshape(n, n)[::-1]
    np.testing.assert_allclose(
        np.nan_to_num(rows), patterns.weights[3, 2].numpy(), atol=1e-4, rtol=1e-3
    )
    assert np.isnan(rows[np.triu_indices(n, 1)]).all()
    mean = slice_json(grid, first_choice(grid))["measures"][0]["values"]
    rows = np.array(mean, dtype=float).reshape(n, n)[::-1]
    expected = patterns.weights[0].mean(0).numpy()
    np.testing.assert_allclose(np.nan_to_num(rows), expected, atol=1e-4, rtol=1e-3)


def test_it_is_drawn_and_shown(
    patterns: AttentionPatterns, monkeypatch: pytest.MonkeyPatch
) -> None:
    ax = patterns.plot(1, 3)
    assert ax.get_title() == "layer 1, head 3"
    drawn = ax.collections[0].get_array()
    assert drawn is not None
    np.testing.assert_allclose(drawn.filled(0), patterns.weights[1, 3].numpy())
    assert patterns.plot(2).get_title() == "layer 2, mean of heads"
    assert set(patterns._repr_mimebundle_()) == {"text/plain", "image/png"}
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    bundle = patterns._repr_mimebundle_()
    assert 'alt="Attention of tiny-random-llama"' in bundle["text/html"]
    view = patterns.view()
    view.chosen = {"layer": "2", "head": "1"}
    with pytest.raises(UsageError):
        view.chosen = {"layer": "9", "head": "1"}


def test_what_is_not_there_is_told(patterns: AttentionPatterns) -> None:
    with pytest.raises(UsageError, match="no layer 4: the model has layers 0 to 3"):
        patterns.plot(4)
    with pytest.raises(UsageError, match="no head -1: the model has heads 0 to 3"):
        patterns.plot(0, -1)
    with pytest.raises(ModelError, match="attn_pattern cannot be read in mamba"):
        attention_view(model_of("mamba"), TEXT)


def test_the_patterns_are_written_as_a_page(patterns: AttentionPatterns, tmp_path: Path) -> None:
    text = patterns.to_html(tmp_path / "patterns.html").read_text("utf-8")
    assert "://" not in text
    assert '"layer": "0"' in text
