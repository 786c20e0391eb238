"""Attention over a shared prefix against attention written out; prefixes and their store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.masking_utils import sliding_window_causal_mask_function

from hopscope.engine.attention import (
    ATTENTION_NAME,
    LayerMask,
    Pass,
    attending,
    extend,
    forward_streams,
    shared_prefix_attention,
)
from hopscope.engine.cache import MaskedCache, PassPlan, Prefix, StreamCache
from hopscope.engine.prefix_store import PrefixStore
from hopscope.engine.support import shares_prefixes
from hopscope.models.language_model import LanguageModel

ROWS, HEADS, KV_HEADS, HEAD_DIM, VALUE_DIM = 3, 4, 2, 8, 8


@dataclass(frozen=True)
class Attention:
    """One call of the attention function: what is seen, and the options."""

    prefix: int
    past: int
    queries: int
    window: int | None
    softcap: float | None
    sinks: bool
    scaling: float | None

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (row, head, q, d), and all keys and values (row, kv_head, k, d)."""
        generator = torch.Generator().manual_seed(0)
        total = self.prefix + self.past + self.queries
        query = torch.randn(ROWS, HEADS, self.queries, HEAD_DIM, generator=generator)
        keys = torch.randn(ROWS, KV_HEADS, total, HEAD_DIM, generator=generator)
        values = torch.randn(ROWS, KV_HEADS, total, VALUE_DIM, generator=generator)
        keys[:, :, : self.prefix] = keys[:1, :, : self.prefix]
        values[:, :, : self.prefix] = values[:1, :, : self.prefix]
        return query, keys, values

    def sink_logits(self) -> Tensor | None:
        return torch.tensor([0.5, -1.0, 2.0, 0.0]) if self.sinks else None

    def weights(self, query: Tensor, keys: Tensor, row: int, head: int, q: int) -> Tensor:
        """What one query gives to each key, one number at a time."""
        scale = 1 / math.sqrt(HEAD_DIM) if self.scaling is None else self.scaling
        position, kv = self.prefix + self.past + q, head // (HEADS // KV_HEADS)
        scores = torch.full((keys.shape[2],), -math.inf)
        for k in range(position + 1):
            if self.window is not None and k <= position - self.window:
                continue
            score = (query[row, head, q] * keys[row, kv, k]).sum() * scale
            if self.softcap is not None:
                score = self.softcap * torch.tanh(score / self.softcap)
            scores[k] = score
        exponents, sinks = scores.exp(), self.sink_logits()
        return exponents / (exponents.sum() + (0 if sinks is None else sinks[head].exp()))

    def by_hand(self) -> tuple[Tensor, Tensor]:
        """Outputs (row, q, head, d) and weights (row, head, q, k)."""
        query, keys, values = self.tensors()
        patterns = torch.zeros(ROWS, HEADS, self.queries, keys.shape[2])
        output = torch.zeros(ROWS, self.queries, HEADS, VALUE_DIM)
        for row, head, q in product(range(ROWS), range(HEADS), range(self.queries)):
            patterns[row, head, q] = self.weights(query, keys, row, head, q)
            kv = head // (HEADS // KV_HEADS)
            output[row, q, head] = patterns[row, head, q] @ values[row, kv]
        return output, patterns

    def by_hopscope(self, model: LanguageModel) -> tuple[Tensor, Tensor]:
        query, keys, values = self.tensors()
        ids, own = tuple(range(self.prefix)), self.prefix + self.past
        layer = keys[:1, :, : self.prefix], values[:1, :, : self.prefix]
        cache = StreamCache(Prefix(ids, (layer,)) if ids else Prefix(), 1, record_patterns=True)
        with attending(model, cache) as active:
            if self.past:
                active.update(keys[:, :, self.prefix : own], values[:, :, self.prefix : own], 0)
            key, value = active.update(keys[:, :, own:], values[:, :, own:], 0)
            output, _ = shared_prefix_attention(
                nn.Identity(),
                query,
                key,
                value,
                masked(self.window),
                scaling=self.scaling,
                softcap=self.softcap,
                s_aux=self.sink_logits(),
            )
        assert cache.patterns is not None
        return output, cache.patterns[0]


def masked(window: int | None) -> LayerMask:
    """A layer's mask as transformers has it built."""
    return LayerMask(None if window is None else sliding_window_causal_mask_function(window))


def every_attention() -> Iterator[Attention]:
    for prefix, past, queries in product((0, 5), (0, 2), (1, 3)):
        for window in (None, 1, 2, 6):
            yield Attention(prefix, past, queries, window, None, False, None)
        yield Attention(prefix, past, queries, None, 1.5, False, None)
        yield Attention(prefix, past, queries, None, None, True, None)
        yield Attention(prefix, past, queries, 3, 1.5, True, 0.7)


@pytest.mark.parametrize("attention", list(every_attention()), ids=str)
def test_attention_by_hand(llama: LanguageModel, attention: Attention) -> None:
    output, patterns = attention.by_hopscope(llama)
    expected, expected_patterns = attention.by_hand()
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patterns, expected_patterns, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_keeps_the_dtype(llama: LanguageModel, dtype: torch.dtype) -> None:
    query, keys, values = (t.to(dtype) for t in Attention(4, 0, 3, 5, 1.5, True, None).tensors())
    cache = StreamCache(Prefix(tuple(range(4)), ((keys[:1, :, :4], values[:1, :, :4]),)), 1)
    sinks = torch.zeros(HEADS, dtype=dtype)
    with attending(llama, cache) as active:
        key, value = active.update(keys[:, :, 4:], values[:, :, 4:], 0)
        output, _ = shared_prefix_attention(
            nn.Identity(), query, key, value, masked(5), softcap=1.5, s_aux=sinks
        )
    assert output.dtype == dtype
    assert output.isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [2, 4, 5, 6])
def test_layers_share_what_their_window_cuts(
    llama: LanguageModel, window: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found once a pass; where it cuts nothing, attention is causal and needs no mask."""
    n, layers = 5, range(3)
    rule, asked, masks = sliding_window_causal_mask_function(window), list[None](), list[Any]()
    generator = torch.Generator().manual_seed(0)
    parts = (torch.randn(1, heads, n, 8, generator=generator) for heads in (4, 2, 2))
    query, keys, values = parts

    def sees(*each: Tensor) -> Tensor:
        asked.append(None)
        return rule(*each)

    def product(*args: Any, **kwargs: Any) -> Tensor:
        masks.append(kwargs["attn_mask"])
        return sdpa(*args, **kwargs)

    sdpa = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", product)
    cache = MaskedCache(len(layers)) if masked else StreamCache(Prefix(), len(layers))
    plan = PassPlan(visible=[None] * len(layers), positions=torch.arange(n)[None])
    before = torch.ones(n, n, dtype=torch.bool).tril()
    seen = before & ~before.tril(-window)
    expected = sdpa(query, keys, values, attn_mask=seen, enable_gqa=True).transpose(1, 2)
    with attending(llama, cache, plan) as active:
        for layer in layers:
            own = active.update(keys, values, layer)
            found, _ = shared_prefix_attention(nn.Identity(), query, *own, LayerMask(sees))
            torch.testing.assert_close(found, expected)
    assert len(asked) == 1
    if masked:
        assert [each is None for each in masks] == [window >= n] * len(layers)


def test_attention_is_the_models_own_again_afterwards(llama: LanguageModel) -> None:
    before, cache = llama.config._attn_implementation, StreamCache(Prefix(), llama.n_layers)
    with attending(llama, cache):
        assert llama.config._attn_implementation == ATTENTION_NAME
    assert llama.config._attn_implementation == before
    with pytest.raises(KeyError), attending(llama, cache):
        raise KeyError
    assert llama.config._attn_implementation == before
    nothing = torch.zeros(1, 1, 1, 1)
    with pytest.raises(AssertionError, match="inside `attending`"):
        shared_prefix_attention(nn.Identity(), nothing, nothing, nothing, None)


def test_rows_take_over_the_past_of_their_parents() -> None:
    cache = StreamCache(Prefix(), 1)
    keys = torch.arange(3.0).reshape(3, 1, 1, 1)
    Pass(cache, PassPlan()).update(keys, -keys, 0)
    new, second = torch.full((4, 1, 1, 1), 9.0), Pass(cache, PassPlan([torch.tensor([2, 0, 0, 1])]))
    keys, values = second.update(new, -new, 0)
    assert keys[:, 0, :, 0].tolist() == [[2, 9], [0, 9], [0, 9], [1, 9]]
    assert torch.equal(values, -keys)
    assert second.get_seq_length() == cache.n_seen() == 2
    assert second.get_mask_sizes(1) == (3, 0)


def test_keys_and_values_of_other_widths_are_kept_as_they_are() -> None:
    """As where latent attention has keys 192 and values 128 wide."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 3, 5, width, generator=generator) for width in (6, 4))
    cache = MaskedCache(1, n_more=5, growing=True)
    for start, stop in ((0, 3), (3, 4), (4, 5)):
        new = keys[:, :, start:stop], values[:, :, start:stop]
        found = Pass(cache, PassPlan()).update(*new, 0)
        assert torch.equal(found[0], keys[:, :, :stop])
        assert torch.equal(found[1], values[:, :, :stop])


def test_the_prefix_counts_as_seen() -> None:
    layer = torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)
    assert StreamCache(Prefix((1, 2, 3, 4), (layer,)), 1).n_seen() == 4
    assert StreamCache(Prefix(), 1).n_seen() == 0


TEXT = "The capital of the country of the Colosseum is Rome. The capital of Spain is"


def tokens(model: LanguageModel) -> tuple[int, ...]:
    return model.encode(TEXT).ids


def assert_same(a: Prefix, b: Prefix) -> None:
    assert a.ids == b.ids
    for (keys, values), (other_keys, other_values) in zip(a.layers, b.layers, strict=True):
        torch.testing.assert_close(keys, other_keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values, other_values, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def keys_and_values(model: LanguageModel, ids: tuple[int, ...]) -> Prefix:
    """What transformers itself keeps of a plain forward; without a config it keeps all."""
    cache = DynamicCache()
    model.hf(input_ids=torch.tensor([ids]), use_cache=True, **{model.cache_argument: cache})
    kept: list[Any] = list(cache.layers)
    return Prefix(ids, tuple((layer.keys, layer.values) for layer in kept))


def test_a_prefix_is_what_transformers_keeps(tiny_model: LanguageModel) -> None:
    ids = tokens(tiny_model)
    assert_same(extend(tiny_model, Prefix(), ids), keys_and_values(tiny_model, ids))


@pytest.mark.parametrize("pieces", [(1,), (5,), (3, 4, 11), (12, 13, 14)], ids=str)
def test_a_prefix_extended_is_the_whole(tiny_model: LanguageModel, pieces: tuple[int, ...]) -> None:
    ids, prefix = tokens(tiny_model), Prefix()
    for start, end in zip((0, *pieces), (*pieces, len(ids)), strict=True):
        prefix = extend(tiny_model, prefix, ids[start:end])
    assert_same(prefix, keys_and_values(tiny_model, ids))


@pytest.mark.parametrize("length", [1, 6])
def test_a_cropped_prefix_is_that_of_fewer_tokens(tiny_model: LanguageModel, length: int) -> None:
    ids = tokens(tiny_model)
    whole = extend(tiny_model, Prefix(), ids)
    assert_same(whole.crop(length), keys_and_values(tiny_model, ids[:length]))
    assert len(whole.crop(length)) == length
    shared, own = whole.crop(length).layers[0][0], whole.layers[0][0]
    assert shared.data_ptr() == own.data_ptr(), "a copy, not a view"


def test_a_prefix_of_no_token_is_empty(llama: LanguageModel) -> None:
    assert extend(llama, Prefix(), tokens(llama)).crop(0) == Prefix()
    assert len(Prefix()) == 0


def test_rows_over_a_prefix_equal_whole_prompts(tiny_model: LanguageModel) -> None:
    ids = tokens(tiny_model)
    endings = torch.tensor([[5, 50, 500], [400, 40, 4], [7, 7, 7]])
    cache = StreamCache(extend(tiny_model, Prefix(), ids), tiny_model.n_layers)
    whole = torch.cat([torch.tensor([ids] * 3), endings], dim=1)
    with torch.no_grad():
        logits = forward_streams(tiny_model, cache, endings)
        expected = tiny_model.hf(input_ids=whole).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_go_contiguous_into_the_unembedding(
    tiny_model: LanguageModel, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a matrix product of half precision copies the unembedding for every row."""
    seen: list[bool] = []
    original = tiny_model.unembedding.forward

    def forward(hidden: Tensor) -> Any:
        seen.append(hidden.stride() == torch.empty(hidden.shape).stride())
        return original(hidden)

    monkeypatch.setattr(tiny_model.unembedding, "forward", forward)
    cache = StreamCache(Prefix(), tiny_model.n_layers)
    with torch.no_grad():
        forward_streams(tiny_model, cache, torch.tensor([tokens(tiny_model)] * rows))
    assert seen == [True]


@pytest.fixture
def computed(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The tokens of every prefix that is computed, in order."""
    assert shares_prefixes(llama, 1)  # told once, by a probe that computes a prefix of its own
    seen: list[tuple[int, ...]] = []

    def counting(model: LanguageModel, prefix: Prefix, ids: tuple[int, ...]) -> Prefix:
        seen.append(ids)
        return extend(model, prefix, ids)

    monkeypatch.setattr("hopscope.engine.prefix_store.extend", counting)
    return seen


def test_a_prefix_is_computed_once(llama: LanguageModel, computed: list[tuple[int, ...]]) -> None:
    store, ids = PrefixStore(llama), tokens(llama)
    first = store.get(ids[:4])
    assert_same(first, keys_and_values(llama, ids[:4]))
    assert store.get(ids[:4]) is first
    assert len(store.get(ids[:5])) == 5
    assert store.get(()) == Prefix()
    assert computed == [ids[:4], ids[:5]]


def test_the_oldest_prefix_goes_first(
    llama: LanguageModel, computed: list[tuple[int, ...]]
) -> None:
    store = PrefixStore(llama, most=2)
    a, b, c = (5,), (6,), (7,)
    for ids in (a, b, c, b, c, a, c):
        assert store.get(ids).ids == ids
    assert computed == [a, b, c, a]


def test_without_replaceable_attention_nothing_is_shared(
    llama: LanguageModel, computed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(llama.probed, "why plain", "a test says so")
    assert PrefixStore(llama).get((5, 6)) == Prefix()
    assert computed == []
