"""What linear modules compute without their bias: as exact as their weight where it can be read."""

from __future__ import annotations

import pytest
import torch
from quantised import quantised
from torch import nn
from transformers.pytorch_utils import Conv1D

from hopscope.models.language_model import LanguageModel
from hopscope.models.linear import unembedding_rows, without_bias
from hopscope.models.load import load_model
from hopscope.models.tiny import build_tiny


@pytest.mark.parametrize("make", [nn.Linear, lambda width, out: Conv1D(out, width)])
def test_a_large_bias_costs_no_digits_in_bfloat16(make: type[nn.Linear]) -> None:
    torch.manual_seed(0)
    module = make(8, 6).to(torch.bfloat16)
    nn.init.constant_(module.bias, 300.0)
    inputs = 0.1 * torch.randn(4, 3, 8, dtype=torch.bfloat16)
    weight = module.weight.float() if isinstance(module, Conv1D) else module.weight.float().T
    expected = inputs.float() @ weight
    torch.testing.assert_close(without_bias(module, inputs).float(), expected, rtol=0.01, atol=1e-3)


def test_a_module_with_a_forward_of_its_own_is_run() -> None:
    module, inputs = nn.Linear(4, 4), torch.randn(2, 4)
    expected = 3 * nn.functional.linear(inputs, module.weight)
    plain = module.forward
    module.forward = lambda given: 3 * plain(given)  # type: ignore[method-assign]
    torch.testing.assert_close(without_bias(module, inputs), expected)


def test_the_rows_of_an_unembedding_have_its_adapter() -> None:
    peft = pytest.importorskip("peft")
    hf, tokenizer = build_tiny("tiny-random-qwen2")
    base = hf.lm_head.weight.detach().clone()
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    model = load_model(peft.get_peft_model(hf, config), tokenizer=tokenizer)
    adapter = model.hf.lm_head
    added = adapter.lora_B["default"].weight @ adapter.lora_A["default"].weight
    expected = (base + added * adapter.scaling["default"]).detach()
    assert not torch.allclose(expected, base, atol=1e-3)
    torch.testing.assert_close(unembedding_rows(model), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_the_rows_of_a_plain_unembedding_are_its_weight(family: str) -> None:
    model = load_model(f"tiny-random-{family}", device="cpu")
    assert torch.equal(unembedding_rows(model), model.unembedding.get_parameter("weight").detach())


def test_a_quantised_projection_is_run() -> None:
    hf, tokenizer = build_tiny("tiny-random-llama")
    module = LanguageModel(quantised(hf), tokenizer, "quantised").head_projection(0)
    inputs = torch.randn(2, module.in_features)
    expected = inputs @ (module.weight.data8 * module.weight.scale).T
    torch.testing.assert_close(without_bias(module, inputs), expected)
