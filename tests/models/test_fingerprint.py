"""What makes a model's outputs is in its fingerprint and setup, and nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from known import known_queries
from quantised import quantised
from tokenizers import processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import hopscope as hs
from hopscope.errors import ModelError, ResultError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import TINY_FAMILIES, build_tiny

MISTRAL = "tiny-random-mistral"
Change = Callable[[LanguageModel], object]


def own(family: str = MISTRAL) -> LanguageModel:
    hf, tokenizer = build_tiny(family)
    return LanguageModel(hf, copy.deepcopy(tokenizer), family)


def logits(model: LanguageModel) -> torch.Tensor:
    ids = torch.tensor([model.encode("The capital of the country of Kyoto is").ids])
    with torch.no_grad():
        return model.forward(input_ids=ids).logits  # type: ignore[no-any-return]


def with_other_theta(model: LanguageModel) -> None:
    config = copy.deepcopy(model.hf.config)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 100.0}
    other = type(model.hf)(config)
    other.load_state_dict(model.hf.state_dict())
    model.hf, model.config = other.eval(), config


def with_a_longer_window(model: LanguageModel) -> None:
    model.hf.config.sliding_window = 64


def with_bos(model: LanguageModel) -> None:
    backend = model.tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])


def with_another_end(model: LanguageModel) -> None:
    model.hf.generation_config.eos_token_id = 17


def with_an_untested_attention(model: LanguageModel) -> None:
    model.hf.config._attn_implementation = "paged|sdpa"


def with_rounded_frequencies(model: LanguageModel) -> None:
    nn.Module.to(model.hf, torch.bfloat16)
    for parameter in model.hf.parameters():
        parameter.data = parameter.data.float()


def with_a_saved_buffer(model: LanguageModel) -> None:
    model.hf.model.norm.register_buffer("shift", torch.ones(3))


CHANGES: dict[str, tuple[Change, str]] = {
    "rope_theta": (with_other_theta, "config"),
    "window": (with_a_longer_window, "config"),
    "bos": (with_bos, "tokenizer"),
    "eos": (with_another_end, "end_tokens"),
    "attention": (with_an_untested_attention, "attention"),
    "rounded": (with_rounded_frequencies, "modules"),
    "buffer": (with_a_saved_buffer, "modules"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_outputs_is_told_apart(name: str) -> None:
    change, part = CHANGES[name]
    before, model = own(), own()
    change(model)
    assert before.setup == own().setup
    differing = {key for key, value in model.setup.items() if before.setup[key] != value}
    assert differing == {part}


def test_a_weight_that_changes_later() -> None:
    model = own()
    before = model.fingerprint
    assert model.fingerprint is before, "it is computed once"
    with torch.no_grad():
        model.hf.model.norm.weight[0] += 1
    assert model.fingerprint != before


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_what_leaves_the_outputs_leaves_the_setup(family: str, tmp_path: Path) -> None:
    model = own(family)
    before, fingerprint, expected = model.setup, model.fingerprint, logits(model)
    model.hf.train()
    model.hf.config.use_cache = model.hf.config.return_dict = False
    if not getattr(model.config, "attn_logit_softcapping", None):
        model.hf.config._attn_implementation = "eager"
    model.tokenizer(["a", "a b"], padding=True, truncation=True, max_length=2)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    assert (model.setup, model.fingerprint) == (before, fingerprint)
    again = own(family)
    again.hf.save_pretrained(tmp_path)
    again.tokenizer.save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    read = load_model(tmp_path, "cpu", tokenizer=tokenizer)
    assert (read.setup, read.fingerprint) == (before, fingerprint)


def with_lora(scaling: float = 1.0, active: bool = True) -> LanguageModel:
    peft = pytest.importorskip("peft")
    hf, tokenizer = build_tiny(MISTRAL)
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, lora_alpha=2 * scaling, target_modules=["q_proj"]), hf
    )
    torch.manual_seed(0)
    for name, each in hf.named_parameters():
        if "lora_" in name:
            nn.init.normal_(each, std=0.5)
    for module in hf.modules():
        if not active and isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.enable_adapters(False)
    return LanguageModel(hf, tokenizer, "lora")


def test_adapters_of_the_same_weights() -> None:
    models = [with_lora(), with_lora(2.0), with_lora(active=False)]
    assert len({model.fingerprint for model in models}) == 1
    assert len({model.setup["modules"] for model in [*models, own()]}) == 4
    assert with_lora().setup == models[0].setup
    assert not torch.allclose(logits(models[0]), logits(models[1]), atol=0.01)


def test_quantised_weights() -> None:
    prints = []
    for bits in (8, 8, 4):
        hf, tokenizer = build_tiny(MISTRAL)
        prints.append(LanguageModel(quantised(hf, bits), tokenizer, "int8").fingerprint)
    assert prints[0] == prints[1]
    assert len({*prints, own().fingerprint}) == 3


def run(model: LanguageModel, out: Path) -> hs.Result:
    return hs.grade(model, known_queries()[:2], out=out, progress=False)


def test_another_configuration_is_another_run(tmp_path: Path) -> None:
    run(own(), tmp_path / "run")
    run(own(), tmp_path / "run")
    other = own()
    with_other_theta(other)
    assert other.fingerprint == own().fingerprint
    with pytest.raises(ResultError, match="holds another run: its model setup config is"):
        run(other, tmp_path / "run")


def test_a_run_goes_on_elsewhere_and_after_earlier_versions(tmp_path: Path) -> None:
    record = tmp_path / "run" / "run.json"
    run(own(), tmp_path / "run")
    written = json.loads(record.read_text())
    elsewhere = {**written["model"], "device": "NVIDIA H200"}
    earlier = {name: part for name, part in written["model"].items() if name != "setup"}
    later = {**written["model"], "setup": {"rule": 99, "config": "of another kind"}}
    for model in (elsewhere, earlier, later):
        record.write_text(json.dumps({**written, "model": model}))
        run(own(), tmp_path / "run")
    record.write_text(json.dumps({**written, "model": {**earlier, "sha256": "0" * 64}}))
    with pytest.raises(ResultError, match="holds another run: its model sha256 is 000"):
        run(own(), tmp_path / "run")


def offloaded(folder: Path, disk: Path, which: str) -> PreTrainedModel:
    pytest.importorskip("accelerate")
    parts = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(4)), "model.norm"]
    elsewhere = parts if which == "all" else parts[2:4]
    places: dict[str, Any] = {
        each: "disk" if each in elsewhere else "cpu"
        for each in [*parts, "lm_head", "model.rotary_emb"]
    }
    if which == "all":
        places["lm_head"] = "disk"
    return AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=disk, dtype="float32"
    )


@pytest.mark.parametrize("which", ["all", "some"])
@pytest.mark.parametrize("family", [MISTRAL, "tiny-random-llama"])
def test_weights_on_the_disk(family: str, which: str, tmp_path: Path) -> None:
    model = own(family)
    model.hf.save_pretrained(tmp_path / "model")
    hf = offloaded(tmp_path / "model", tmp_path / "disk", which)
    assert any(each.is_meta for each in hf.parameters())
    found = load_model(hf, tokenizer=model.tokenizer, name=model.name)
    assert str(found.device) == "cpu"
    for _ in range(2):
        assert (found.fingerprint, found.setup) == (model.fingerprint, model.setup)
        assert torch.equal(logits(found), logits(model))
    texts = ["The capital of Japan is"]
    heads = [hs.capture(each, texts, ["attn_head_out"])["attn_head_out"] for each in (found, model)]
    torch.testing.assert_close(*heads)
    patched = [hs.grade(each, known_queries()[:1], progress=False) for each in (found, model)]
    assert patched[0].frame.equals(patched[1].frame)


def test_a_model_without_numbers_is_refused() -> None:
    hf, tokenizer = build_tiny("tiny-random-llama")
    with torch.device("meta"):
        empty = LlamaForCausalLM(hf.config)
    with pytest.raises(ModelError, match=r"is on the device 'meta', where it has no numbers"):
        load_model(empty, tokenizer=tokenizer)
