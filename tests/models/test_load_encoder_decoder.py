"""EncoderDecoder, its tiny model, and what load_encoder_decoder and load_any take and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import loaded
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    T5EncoderModel,
    T5Model,
)

from hopscope.errors import ModelError, UnknownModelError, UsageError
from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_any, load_encoder_decoder, load_model
from hopscope.models.tiny import TINY_ENCODER_DECODERS, TINY_FAMILIES, build_tiny

T5 = "tiny-random-t5"
LLAMA = "tiny-random-llama"
PROMPTS = (
    "The capital of the country of Kyoto is",
    "The author of the novel Hamlet was born in",
    "The spouse of the performer of the song Imagine is",
    "The currency of the country of Berlin is",
)


@pytest.fixture(scope="module")
def t5() -> EncoderDecoder:
    return load_encoder_decoder(T5, device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny T5 with its tokenizer."""
    for part in build_tiny(T5):
        part.save_pretrained(tmp_path / "my-t5")
    return tmp_path / "my-t5"


@torch.no_grad()
def logits(hf: PreTrainedModel, ids: tuple[int, ...]) -> torch.Tensor:
    start = torch.tensor([[0]])
    return hf(input_ids=torch.tensor([ids]), decoder_input_ids=start).logits  # type: ignore[no-any-return]


def same_as_built(model: EncoderDecoder) -> bool:
    hf, tokenizer = build_tiny(T5)
    ids = tuple(tokenizer(PROMPTS[0]).input_ids)
    assert model.encode(PROMPTS[0]).ids == ids
    return torch.allclose(logits(model.hf, ids), logits(hf, ids), atol=1e-4)


def test_the_tiny_model_is_no_causal_family() -> None:
    assert TINY_ENCODER_DECODERS == (T5,)
    assert T5 not in TINY_FAMILIES


def test_the_tiny_model_depends_on_its_seed_alone() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, _ = build_tiny(T5, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    again, other = build_tiny(T5, seed=1)[0], build_tiny(T5, seed=2)[0]
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not any(torch.equal(a, c) for a, _, c in pairs)


def test_the_tiny_model_says_different_things(t5: EncoderDecoder) -> None:
    hf: Any = t5.hf
    said = set()
    for prompt in PROMPTS:
        ids = torch.tensor([t5.encode(prompt).ids])
        said.add(tuple(hf.generate(ids, max_new_tokens=6, do_sample=False)[0].tolist()))
    assert len(said) == len(PROMPTS)


def test_attention_of_the_tiny_model_is_neither_even_nor_fixed_on_one_token() -> None:
    hf, tokenizer = build_tiny(T5)
    hf.set_attn_implementation("eager")
    ids = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    start = torch.tensor([[0]])
    told = hf(input_ids=ids, decoder_input_ids=start, output_attentions=True)
    for weights in (*told.encoder_attentions, *told.cross_attentions):
        assert 1.5 / ids.shape[1] < float(weights.amax(dim=-1).mean()) < 0.95


def test_the_parts(t5: EncoderDecoder) -> None:
    assert (t5.n_layers, t5.n_encoder_layers, t5.n_heads, t5.d_model) == (3, 4, 4, 48)
    assert (t5.head_dim, t5.vocab_size, t5.max_context, t5.relative) == (12, 512, None, True)
    assert t5.dtype == torch.float32
    assert t5.device == torch.device("cpu")
    assert t5.config is t5.hf.config
    assert t5.start_token == 0
    assert t5.end_tokens == {1}
    assert t5.cache_argument in ("cache", "past_key_values")
    for part in ("EncoderDecoder", T5, "t5", "3 layers", "d_model 48", "float32", "cpu"):
        assert part in repr(t5)
    attentions: set[nn.Module] = set()
    for layer in range(4):
        assert t5.encoder_attention(layer) in set(t5.encoder_sublayer(layer).children())
        attentions.add(t5.encoder_attention(layer))
    for layer in range(3):
        assert t5.cross_attention(layer) in set(t5.cross_sublayer(layer).children())
        attentions.add(t5.cross_attention(layer))
    assert len(attentions) == 7


def test_the_bias_of_the_first_block_is_that_of_all(t5: EncoderDecoder) -> None:
    bias = t5.encoder_bias(3, 6)
    assert bias.shape == (1, 4, 6, 6)
    assert torch.equal(bias, t5.encoder_bias(0, 6))
    assert torch.equal(bias[..., 0, 1], bias[..., 3, 4]), "not relative"
    assert not torch.equal(bias[..., 0, 1], bias[..., 1, 0])


def test_the_end_token_belongs_to_the_prompt(t5: EncoderDecoder) -> None:
    encoded = t5.encode("The capital of Zürich", room=10_000)
    assert encoded.ids[-1] in t5.end_tokens
    assert encoded.ids.count(encoded.ids[-1]) == 1
    assert encoded.offsets[-1] == (0, 0)
    assert t5.decode(encoded.ids) == "The capital of Zürich"
    assert t5.answer_tokens(["Paris"]) == tuple(
        t5.tokenizer("Paris", add_special_tokens=False).input_ids[:1]  # an answer begins anew
    )


def test_the_fingerprint_tells_weights_apart(t5: EncoderDecoder) -> None:
    other, tokenizer = build_tiny(T5, seed=1)
    assert EncoderDecoder(*build_tiny(T5), "x").fingerprint == t5.fingerprint
    assert EncoderDecoder(other, tokenizer, "x").fingerprint != t5.fingerprint


def test_the_start_token_must_be_told() -> None:
    hf, tokenizer = build_tiny(T5)
    hf.config.decoder_start_token_id = hf.generation_config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        _ = EncoderDecoder(hf, tokenizer, T5).start_token


@pytest.mark.parametrize("load", [load_encoder_decoder, load_any])
def test_what_is_taken(load: Any, folder: Path) -> None:
    hf, tokenizer = build_tiny(T5)
    hf.train()
    saved = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    for given, how, name in (
        (T5, {"device": "cpu"}, T5),
        (folder, {"device": "cpu"}, "my-t5"),
        (str(folder), {"device": "cpu", "name": "mine"}, "mine"),
        (hf, {"tokenizer": tokenizer, "name": "mine"}, "mine"),
        (saved, {}, "my-t5"),
    ):
        model = load(given, **how)
        assert type(model) is EncoderDecoder
        assert model.name == name
        assert model.wrapped is None
        assert not model.hf.training
        assert not any(parameter.requires_grad for parameter in model.hf.parameters())
        assert same_as_built(model)
        assert load(model) is model
    assert load(folder, device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_load_any_takes_causal_models_too() -> None:
    assert type(load_any(LLAMA, device="cpu")) is LanguageModel
    assert load_any(loaded(LLAMA)) is loaded(LLAMA)


def test_load_model_says_what_else_loads_it(folder: Path, t5: EncoderDecoder) -> None:
    hf, tokenizer = build_tiny(T5)
    for given, how in ((T5, {}), (folder, {}), (hf, {"tokenizer": tokenizer}), (t5, {})):
        with pytest.raises(ModelError, match=r"not a causal.*load_encoder_decoder"):
            load_model(given, **how)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="t5 is an encoder-decoder"):
        LanguageModel(hf, tokenizer, T5)


def test_load_encoder_decoder_refuses_causal_models(tmp_path: Path) -> None:
    hf, tokenizer = build_tiny(LLAMA)
    hf.save_pretrained(tmp_path / "llama")
    given: Any
    for given in (LLAMA, tmp_path / "llama", hf, loaded(LLAMA)):
        with pytest.raises(ModelError, match=r"not an encoder-decoder.*umt5.*load_model"):
            load_encoder_decoder(given, tokenizer=tokenizer)
    with pytest.raises(ModelError, match=r"'llama'\) is not an encoder-decoder"):
        EncoderDecoder(hf, tokenizer, "x")


@pytest.mark.parametrize("load", [load_encoder_decoder, load_any])
def test_other_encoder_decoders_are_refused(load: Any, tmp_path: Path) -> None:
    config = BartConfig(
        vocab_size=512, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    bart, tokenizer = BartForConditionalGeneration(config), build_tiny(LLAMA)[1]
    bart.save_pretrained(tmp_path / "bart")
    for given in (bart, tmp_path / "bart"):
        with pytest.raises(ModelError, match=r"'bart'\).*encoder-decoder that can be read here"):
            load(given, tokenizer=tokenizer)


def test_a_model_without_a_head_or_a_decoder_is_refused() -> None:
    hf, tokenizer = build_tiny(T5)
    config: Any = hf.config
    with pytest.raises(ModelError, match="no unembedding"):
        load_encoder_decoder(T5Model(config), tokenizer=tokenizer)
    with pytest.raises(ModelError, match="not an encoder-decoder") as caught:
        load_encoder_decoder(T5EncoderModel(config), tokenizer=tokenizer)
    assert "load_model" not in str(caught.value)


def test_unknown_names_tell_the_known_ones() -> None:
    with pytest.raises(UnknownModelError, match=T5) as caught:
        load_encoder_decoder("tiny-random-t6")
    assert LLAMA not in str(caught.value)
    with pytest.raises(UnknownModelError) as caught:
        load_any("zzz")
    assert T5 in str(caught.value)
    assert LLAMA in str(caught.value)
    with pytest.raises(UnknownModelError, match=T5):
        build_tiny("tiny-random-bert")


def test_an_unknown_type_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "mystery"}))
    with pytest.raises(ModelError, match="such as 't5'"):
        load_encoder_decoder(folder)


def test_device_and_device_map_exclude_each_other(folder: Path) -> None:
    with pytest.raises(UsageError, match="device_map"):
        load_encoder_decoder(folder, device="cpu", device_map="cpu")
    assert same_as_built(load_encoder_decoder(folder, device_map="cpu"))
