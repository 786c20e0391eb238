"""Keys turned to other positions against keys that the model computes there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import loaded, short_name
from multidoc import ROPE, encode_by
from torch import Tensor
from transformers import DynamicCache

from hopscope.engine.masked.rotary import Rotary, rotary_of
from hopscope.engine.support import shares_prefixes
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import build_tiny

TEXT = "The capital of France is Paris. The capital of Italy is Rome."
rope = pytest.mark.parametrize("name", ROPE, ids=short_name)


@torch.no_grad()
def keys_at(model: LanguageModel, positions: list[int]) -> list[Tensor]:
    """The keys that the model itself computes, shape (1, kv_head, token, head_dim) by block."""
    ids = torch.tensor([encode_by(model)(TEXT)[0]])[:, : len(positions)]
    cache = DynamicCache()
    seen = torch.ones(1, 1, len(positions), len(positions), dtype=torch.bool).tril()
    kinds = set(getattr(model.config, "layer_types", None) or ())
    mask: Any = dict.fromkeys(kinds, seen) if len(kinds) > 1 else seen
    model.hf(
        input_ids=ids,
        position_ids=torch.tensor([positions]),
        attention_mask=mask,
        use_cache=True,
        **{model.cache_argument: cache},
    )
    return [layer.keys for layer in cache.layers]


@rope
@pytest.mark.parametrize("distance", [1, 40, -7])
def test_turned_keys_are_those_computed_at_the_other_place(name: str, distance: int) -> None:
    model = loaded(name)
    rotary = rotary_of(model)
    assert rotary is not None
    here = list(range(10, 20))
    keys = keys_at(model, here)
    there = keys_at(model, [each + distance for each in here])
    angles = rotary.angles(torch.full((1, 10), distance))
    for layer, (own, other) in enumerate(zip(keys, there, strict=True)):
        assert (own - other).abs().max() > 1e-3, "the test's own premise: positions are told"
        turned = own.clone()
        rotary.turn(turned, *angles(layer))
        torch.testing.assert_close(turned, other, atol=1e-4, rtol=1e-4)


@rope
def test_each_key_is_turned_by_its_own_distance(name: str) -> None:
    model = loaded(name)
    rotary = rotary_of(model)
    assert rotary is not None
    first, second = keys_at(model, list(range(6)))[0], keys_at(model, list(range(30, 36)))[0]
    both = torch.cat([first, first])
    distance = torch.tensor([[30] * 6, [0, 0, 0, 30, 30, 0]])
    rotary.turn(both, *rotary.angles(distance)(0))
    torch.testing.assert_close(both[0], second[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[1, :, 3:5], second[0, :, 3:5], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[1, :, :3], first[0, :, :3])
    torch.testing.assert_close(both[1, :, 5:], first[0, :, 5:])


@rope
def test_there_are_frequencies_for_every_block(name: str) -> None:
    rotary = rotary_of(loaded(name))
    assert rotary is not None
    assert len(rotary.frequencies) == loaded(name).n_layers


def test_blocks_of_gemma_3_turn_at_their_own_rates() -> None:
    rotary = rotary_of(loaded("tiny-random-gemma3"))
    assert rotary is not None
    sliding, full = rotary.frequencies[:2]
    assert not torch.allclose(sliding, full)
    assert torch.equal(rotary.frequencies[2], sliding)
    assert torch.equal(rotary.frequencies[3], full)


def test_absolute_positions_have_no_rotary_embeddings() -> None:
    assert rotary_of(loaded("tiny-random-gpt2")) is None
    assert Rotary.of(loaded("tiny-random-gpt2")) is None


def test_embeddings_that_depend_on_the_length_of_the_prompt_are_not_used() -> None:
    hf, tokenizer = build_tiny("tiny-random-llama")
    hf.model.rotary_emb.rope_type = "dynamic"
    assert rotary_of(load_model(hf, device="cpu", tokenizer=tokenizer, name="dynamic")) is None


def test_the_probe_refuses_frequencies_that_are_not_the_models() -> None:
    model = loaded("tiny-random-llama")
    rotary = rotary_of(model)
    assert rotary is not None
    assert rotary._agrees(model)
    wrong = replace(rotary, frequencies=tuple(each * 1.1 for each in rotary.frequencies))
    assert not wrong._agrees(model)


def test_a_model_that_adds_positions_of_its_own_is_not_turned() -> None:
    hf, tokenizer = build_tiny("tiny-random-llama")
    inner = hf.model.embed_tokens
    places = torch.randn(256, 48, generator=torch.Generator().manual_seed(0))

    def add(_: object, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
        hidden = inner(kwargs["input_ids"]) + places[kwargs["position_ids"]]
        return args, {**kwargs, "input_ids": None, "inputs_embeds": hidden}

    model = load_model(hf, device="cpu", tokenizer=tokenizer, name="adds")
    assert shares_prefixes(model, 1)
    hf.model.register_forward_pre_hook(add, with_kwargs=True)
    assert Rotary.of(model) is None
