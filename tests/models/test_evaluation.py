"""A model computes the same numbers in whatever mode, and with whatever outputs, it is set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import hopscope as hs
from hopscope.documents.lay_out import lay_out
from hopscope.engine.edits import Patch
from hopscope.engine.masked.reader import reader_of
from hopscope.engine.plain import plain_sweep
from hopscope.engine.read_out import CellOutputs, ReadOut, Version
from hopscope.engine.sweep import sweep
from hopscope.masks.named import causal
from hopscope.models.evaluation import evaluating
from hopscope.models.load import load_model
from hopscope.models.tiny import build_tiny

READ_OUT = ReadOut((5,), max_new_tokens=3)
TEXT = "The capital of the country of Kyoto is"
OUTPUTS = {
    "return_dict": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "use_cache": False,
}
Way = Callable[..., CellOutputs]


def with_dropout(hf: PreTrainedModel) -> PreTrainedModel:
    """The model with half of what passes a dropout of a block dropped, as in training."""
    for module in hf.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return hf


def numbers(model: hs.LanguageModel, way: Way = sweep) -> CellOutputs:
    vector = torch.linspace(-1, 1, model.d_model)
    return way(model, model.encode(TEXT).ids, [[], [Patch(1, -1, vector)]], READ_OUT)


@pytest.mark.parametrize("way", [sweep, plain_sweep])
def test_a_model_in_training_mode(way: Way) -> None:
    hf, tokenizer = build_tiny("tiny-random-gpt2")
    model = load_model(with_dropout(hf), tokenizer=tokenizer)
    expected = numbers(model, way)
    hf.train()
    hf.transformer.h[2].eval()
    modes = [module.training for module in hf.modules()]
    ids = torch.tensor([model.encode(TEXT).ids])
    with torch.no_grad():
        assert not torch.allclose(hf(ids).logits, hf(ids).logits), "dropout is active"
    found = numbers(model, way)
    assert torch.equal(found.logprob, expected.logprob)
    assert found.tokens == expected.tokens
    assert [module.training for module in hf.modules()] == modes


@pytest.mark.parametrize("way", [sweep, plain_sweep])
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("family", ["tiny-random-llama", "tiny-random-gpt2"])
def test_what_a_configuration_asks_to_be_returned(family: str, name: str, way: Way) -> None:
    expected = numbers(load_model(family, "cpu"), way)
    hf, tokenizer = build_tiny(family)
    hf.set_attn_implementation("eager")
    setattr(hf.config, name, OUTPUTS[name])
    found = numbers(load_model(hf, tokenizer=tokenizer), way)
    torch.testing.assert_close(found.logprob, expected.logprob, atol=1e-5, rtol=0)
    assert found.tokens == expected.tokens
    assert getattr(hf.config, name) == OUTPUTS[name]


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_saved_configuration(name: str, tmp_path: Path) -> None:
    for part in build_tiny("tiny-random-llama"):
        part.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), name: OUTPUTS[name]}))
    found = numbers(load_model(tmp_path, "cpu"))
    expected = numbers(load_model("tiny-random-llama", "cpu"))
    torch.testing.assert_close(found.logprob, expected.logprob, atol=1e-5, rtol=0)


def test_an_encoder_decoder_in_training_mode() -> None:
    hf, tokenizer = build_tiny("tiny-random-t5")
    model = hs.load_encoder_decoder(hf, tokenizer=tokenizer)
    question = hs.load_questions("world-docs", distractors=1)[0]

    def encode(text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        encoded = model.encode(text)
        return encoded.ids, encoded.offsets

    versions = [Version(lay_out(encode, question), causal())]
    expected = reader_of(model).read(versions, READ_OUT).outputs
    with_dropout(hf).train()
    for stack in (hf, hf.encoder, hf.decoder):
        stack.config.return_dict = False
    found = reader_of(model).read(versions, READ_OUT).outputs
    assert torch.equal(found.logprob, expected.logprob)
    assert hf.training
    assert hf.encoder.training


def test_an_error_sets_a_model_back() -> None:
    hf, _ = build_tiny("tiny-random-gpt2")
    hf.train()
    hf.config.return_dict = False

    def fail() -> None:
        with evaluating(hf):
            assert not any(module.training for module in hf.modules())
            assert hf.config.return_dict
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert all(module.training for module in hf.modules())
    assert not hf.config.return_dict
