"""Quantised models: which load how, what is refused, and what a run records of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig, PreTrainedModel

import hopscope.models.quantization
from hopscope.errors import ModelError, UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_any, load_model
from hopscope.models.quantization import QUANTIZATIONS
from hopscope.models.tiny import build_tiny
from hopscope.results.run_record import difference, provenance

LLAMA = "tiny-random-llama"
IDS = torch.arange(10, 40)[None]
every_kind = pytest.mark.parametrize("kind", QUANTIZATIONS)


def needed(kind: str) -> None:
    pytest.importorskip(QUANTIZATIONS[kind])


def saved(folder: Path, hf: PreTrainedModel | None = None) -> Path:
    built, tokenizer = build_tiny(LLAMA)
    (hf or built).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(model: LanguageModel) -> Tensor:
    with torch.no_grad():
        return model.forward(input_ids=IDS).logits


def dense(weight: Any, dtype: torch.dtype) -> Tensor:
    """The matrix that a packed weight stands for, by the library that packed it."""
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[no-any-return]
    return weight.dequantize(dtype)  # type: ignore[no-any-return]


@every_kind
@pytest.mark.parametrize("family", ["llama", "gpt-neox"])
def test_it_computes_with_the_dequantised_weights(kind: str, family: str) -> None:
    needed(kind)
    name = f"tiny-random-{family}"
    model, (plain, tokenizer) = load_model(name, "cpu", quantization=kind), build_tiny(name)
    original = logits(LanguageModel(plain, tokenizer, name))
    packed = 0
    for place, weight in model.hf.named_parameters():
        if hasattr(weight, "quant_state") or hasattr(weight, "__tensor_flatten__"):
            plain.get_parameter(place).data = dense(weight, torch.float32)
            packed += 1
    assert packed >= 4 * model.n_layers
    found, expected = logits(model), logits(LanguageModel(plain, tokenizer, name))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - original).abs().max() > 0.01
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    assert not any(each.requires_grad for each in model.hf.parameters())


@every_kind
def test_the_dtype_is_that_of_the_model(kind: str) -> None:
    needed(kind)
    model = load_model(LLAMA, "cpu", "bfloat16", quantization=kind)
    assert model.dtype == logits(model).dtype == torch.bfloat16
    if kind == "nf4":
        assert model.hf.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16


@every_kind
def test_a_folder_is_quantised_and_a_quantised_folder_is_read(kind: str, tmp_path: Path) -> None:
    needed(kind)
    once = load_model(saved(tmp_path / "dense"), "cpu", quantization=kind, name="once")
    first = once.fingerprint, once.setup, logits(once)
    again = load_model(saved(tmp_path / "quantised", once.hf), "cpu")
    assert again.quantization == once.quantization is not None
    assert (again.fingerprint, again.setup) == first[:2]
    assert torch.equal(logits(again), first[2])
    with pytest.raises(UsageError, match="quantised comes quantised"):
        load_model(tmp_path / "quantised", "cpu", quantization=kind)


@every_kind
def test_an_encoder_decoder(kind: str) -> None:
    needed(kind)
    model = load_any("tiny-random-t5", "cpu", quantization=kind)
    assert model.quantization is not None
    outputs = model.forward(input_ids=IDS, decoder_input_ids=IDS).logits
    assert outputs.isfinite().all()


@every_kind
def test_a_pass_leaves_the_fingerprint(kind: str) -> None:
    """bitsandbytes packs weights anew in the first pass on some CPUs, unless it is kept from it."""
    needed(kind)
    model = load_model(LLAMA, "cpu", quantization=kind)
    before = model.fingerprint, model.setup
    first = logits(model)
    model._digests = None
    assert (model.fingerprint, model.setup) == before
    assert torch.equal(logits(model), first)


def test_weights_that_were_packed_anew_are_refused() -> None:
    needed("nf4")
    tokenizer = build_tiny(LLAMA)[1]
    packed = load_model(LLAMA, "cpu", quantization="nf4").hf
    packed.model.layers[1].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj were packed for this CPU"):
        load_model(packed, tokenizer=tokenizer)


def record(model: LanguageModel) -> dict[str, Any]:
    class Nothing:
        name, few_shot, few_shot_seed, fingerprint = "none", 0, 0, "0"

        def __len__(self) -> int:
            return 0

    return provenance(model, Nothing(), "nothing", {})


def test_two_ways_to_quantise_are_two_runs() -> None:
    for kind in QUANTIZATIONS:
        needed(kind)
    plain, *others = (
        record(load_model(LLAMA, "cpu", quantization=kind)) for kind in (None, *QUANTIZATIONS)
    )
    assert "quantization" not in plain["model"]
    assert [each["model"]["quantization"]["quant_method"] for each in others] == [
        *QUANTIZATIONS.values()
    ]
    for one in others:
        for two in (plain, *others):
            assert (difference(one, two) is None) == (one is two)


def test_what_quantises_its_inputs_has_another_setup() -> None:
    needed("int8")
    import torchao.quantization as ao

    models = []
    for config in (ao.Int8WeightOnlyConfig(), ao.Int8DynamicActivationInt8WeightConfig()):
        hf, tokenizer = build_tiny(LLAMA)
        ao.quantize_(hf.model, config)
        models.append(LanguageModel(hf, tokenizer, "int8"))
    assert models[0].fingerprint == models[1].fingerprint
    assert models[0].setup != models[1].setup


def test_a_configuration_of_transformers() -> None:
    needed("nf4")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    model = load_model(LLAMA, "cpu", quantization=config)
    assert model.quantization is not None
    assert model.quantization["bnb_4bit_quant_type"] == "fp4"


def test_an_unknown_kind_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="unknown quantization 'int9': choose one of nf4, int8"):
        load_model("no/such/place", "cpu", quantization="int9")


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUANTIZATIONS, "nf4", "no_such_library")
    with pytest.raises(ModelError, match=r"needs no_such_library: pip install hopscope\[quant"):
        load_model("no/such/place", "cpu", quantization="nf4")


def test_what_is_not_quantised_is_refused() -> None:
    """torchao takes linear modules alone, of which GPT-2 has none in its blocks."""
    needed("int8")
    with pytest.raises(ModelError, match=r"torchao quantises none of the modules of .*gpt2"):
        load_model("tiny-random-gpt2", "cpu", quantization="int8")


def test_loaded_models_stay_as_they_are() -> None:
    needed("nf4")
    hf, tokenizer = build_tiny(LLAMA)
    with pytest.raises(UsageError, match="is already loaded, and weights are quantised while"):
        load_model(hf, tokenizer=tokenizer, quantization="nf4")
    model = load_model(LLAMA, "cpu", quantization="nf4")
    with pytest.raises(UsageError, match="cannot be converted to another dtype"):
        load_model(model.hf, dtype="bfloat16", tokenizer=tokenizer)
    again = load_model(model.hf, "cpu", tokenizer=tokenizer)
    assert (again.fingerprint, again.setup) == (model.fingerprint, model.setup)


@pytest.mark.parametrize(
    ("method", "library"),
    [("gptq", "optimum"), ("awq", "gptqmodel"), ("compressed-tensors", "compressed-tensors")],
)
def test_a_checkpoint_whose_library_is_missing(method: str, library: str, tmp_path: Path) -> None:
    states_quantization(saved(tmp_path / "packed"), {"quant_method": method, "bits": 4})
    with pytest.raises(ModelError, match=rf"pip install {library}.*\nInstall that library"):
        load_model(tmp_path / "packed", "cpu")


def states_quantization(folder: Path, config: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))


def rewritten(folder: Path, weights: dict[str, Tensor]) -> None:
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in 8 bits")
def test_an_fp8_checkpoint_is_dequantised_on_a_cpu(tmp_path: Path) -> None:
    folder, block = saved(tmp_path / "fp8"), 24
    stored, expected = load_file(folder / "model.safetensors"), build_tiny(LLAMA)
    for name, weight in list(stored.items()):
        if name.endswith("proj.weight"):
            tiles = weight.unflatten(1, (-1, block)).unflatten(0, (-1, block))
            scale = tiles.abs().amax((1, 3), keepdim=True) / 448
            rounded = (tiles / scale).to(torch.float8_e4m3fn)
            stored[name] = rounded.reshape(weight.shape)
            stored[f"{name}_scale_inv"] = scale[:, 0, :, 0].contiguous()
            dequantised = (rounded.float() * scale).reshape(weight.shape)
            expected[0].get_parameter(name).data = dequantised
    rewritten(folder, stored)
    states_quantization(folder, {"quant_method": "fp8", "weight_block_size": [block, block]})
    model = load_model(folder, "cpu")
    assert model.quantization is None
    assert torch.equal(logits(model), logits(LanguageModel(*expected, "dense")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may compute in 4 bits")
def test_an_mxfp4_checkpoint_is_dequantised_on_a_cpu(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_local_experts": 4, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2}
    config = GptOssConfig(vocab_size=512, num_hidden_layers=2, eos_token_id=1, **sizes, **heads)
    hf = AutoModelForCausalLM.from_config(config, dtype="float32").eval()
    folder = saved(tmp_path / "mxfp4", hf)
    stored = load_file(folder / "model.safetensors")
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    torch.manual_seed(0)
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, n_in, n_out = stored.pop(name).shape
        codes = torch.randint(0, 16, (experts, n_out, n_in // 32, 32))
        scales = torch.randint(120, 124, (experts, n_out, n_in // 32))
        stored[f"{name}_blocks"] = (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        stored[f"{name}_scales"] = scales.to(torch.uint8)
        numbers = values[codes] * 2.0 ** (scales - 127)[..., None]
        hf.get_parameter(name).data = numbers.flatten(2).transpose(1, 2).contiguous()
    rewritten(folder, stored)
    states_quantization(folder, {"quant_method": "mxfp4"})
    model = load_model(folder, "cpu")
    assert (model.quantization, model.dtype) == (None, torch.float32)
    torch.testing.assert_close(logits(model), logits(LanguageModel(hf, model.tokenizer, "dense")))


def test_the_default_advice_names_an_extra_that_there_is() -> None:
    extras = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    line = next(line for line in extras.splitlines() if line.startswith("quantization = "))
    assert all(library in line for library in QUANTIZATIONS.values())
    assert hopscope.models.quantization.TORCHAO.keys() < QUANTIZATIONS.keys()
