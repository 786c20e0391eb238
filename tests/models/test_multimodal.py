"""Models that read images, too: a prompt of text is read by their text decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from plain import TINY_SHAPE, plain_outputs
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3TextConfig,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    Mistral3Config,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3VLConfig,
    SiglipVisionConfig,
)

from hopscope.engine.edits import Cell, Knockout, Patch
from hopscope.engine.plain import plain_sweep
from hopscope.engine.read_out import ReadOut
from hopscope.engine.support import shares_prefixes
from hopscope.engine.sweep import sweep
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import build_tiny

TEXT = {
    **TINY_SHAPE,
    "bos_token_id": None,
    "eos_token_id": 1,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
"""As many blocks as the text decoder has."""


def llava() -> PreTrainedConfig:
    return LlavaConfig(
        text_config=LlamaConfig(**TEXT),
        vision_config=CLIPVisionConfig(**TOWER),
        image_token_index=500,
    )


def internvl() -> PreTrainedConfig:
    sizes = {"image_size": [32, 32], "patch_size": [16, 16]}
    return InternVLConfig(
        text_config=Qwen2Config(**TEXT),
        vision_config=InternVLVisionConfig(**{**TOWER, **sizes}),
        image_token_id=500,
    )


def gemma3() -> PreTrainedConfig:
    layers = ["sliding_attention", "full_attention"] * 2
    text = {"head_dim": 16, "sliding_window": 8, "layer_types": layers}
    return Gemma3Config(
        text_config=Gemma3TextConfig(**TEXT, **text),
        vision_config=SiglipVisionConfig(**TOWER),
        mm_tokens_per_image=4,
        image_token_index=500,
    )


def qwen2_5_vl() -> PreTrainedConfig:
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4}
    tower = {"depth": 4, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 48}
    return Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=tower, image_token_id=500
    )


def mistral3() -> PreTrainedConfig:
    return Mistral3Config(
        text_config=MistralConfig(**TEXT),
        vision_config=PixtralVisionConfig(**TOWER),
        image_token_index=500,
    )


def qwen3_vl() -> PreTrainedConfig:
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4}
    tower = {"depth": 4, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 48}
    return Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 12, "rope_parameters": rope},
        vision_config={**tower, "deepstack_visual_indexes": [1, 2, 3]},
        image_token_id=500,
    )


MODELS: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "LlavaForConditionalGeneration": llava,
    "InternVLForConditionalGeneration": internvl,
    "Gemma3ForConditionalGeneration": gemma3,
    "Qwen2_5_VLForConditionalGeneration": qwen2_5_vl,
    "Mistral3ForConditionalGeneration": mistral3,
    "Qwen3VLForConditionalGeneration": qwen3_vl,
}


def built(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return getattr(transformers, name)(MODELS[name]()).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("saved", [False, True], ids=["loaded", "folder"])
def test_a_prompt_of_text(name: str, saved: bool, tmp_path: Path) -> None:
    hf, (_, tokenizer) = built(name), build_tiny("tiny-random-llama")
    model = LanguageModel(hf, tokenizer, name)
    if saved:
        hf.save_pretrained(tmp_path)
        model = load_model(tmp_path, "cpu", tokenizer=tokenizer)
    assert model.stack is model.hf.model.language_model
    ids = model.encode("The capital of the country of Kyoto is").ids
    vector, last = torch.linspace(-1, 1, model.d_model), len(ids) - 1
    cells: list[Cell] = [[], [Patch(1, last, vector)], [Knockout([0, 1], [last], [0, 2, 4])]]
    read_out = ReadOut((5,), max_new_tokens=4)
    expected = plain_outputs(hf, ids, cells, 4, model.end_tokens)
    assert shares_prefixes(model, 1)
    for way in (sweep, plain_sweep):
        found = way(model, ids, cells, read_out)
        logprobs = [each.logprob([5]) for each in expected]
        torch.testing.assert_close(found.logprob, torch.tensor(logprobs), atol=1e-4, rtol=1e-4)
        assert list(found.tokens) == [each.tokens for each in expected]
    assert len({round(each, 3) for each in logprobs}) == len(cells)
