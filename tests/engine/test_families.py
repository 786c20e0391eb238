"""Families against transformers, on a prompt longer than every window: right, or refused by name.

Each model is random. What is expected is computed by raw hooks on its blocks and by what must not
depend on what, with nothing of hopscope's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from plain import TINY_SHAPE, first_of
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import hopscope.engine.attention
import hopscope.engine.editing
import hopscope.engine.support
from hopscope.engine.clean_run import clean_run
from hopscope.engine.editing import edit, recording
from hopscope.engine.edits import Cell, Knockout, Patch
from hopscope.engine.logit_lens import logit_lens
from hopscope.engine.plain import plain_read, plain_sweep
from hopscope.engine.prefix_store import PrefixStore
from hopscope.engine.read_out import ReadOut
from hopscope.engine.sublayers import Writer, writer_of
from hopscope.engine.support import position_limit, shares_prefixes
from hopscope.engine.sweep import sweep
from hopscope.errors import ModelError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import build_tiny

N_TOKENS, N_SHARED, WINDOW = 103, 30, 40
IDS = tuple(3 + (7 * i * i + i) % 500 for i in range(N_TOKENS))
ALL_TOKENS = tuple(range(512))
SITES = ("attn_out", "mlp_out")

SHAPE: Mapping[str, Any] = {
    **TINY_SHAPE,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
GPT = {"n_embd": 48, "n_layer": 4, "n_head": 4, "n_positions": 256}
WINDOWS: Mapping[str, Any] = {"sliding_window": WINDOW}
ALTERNATING = {**WINDOWS, "layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
DEEPSEEK = {**LATENT, **EXPERTS, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
GRANITE = {
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 2.0,
    "logits_scaling": 3.0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 6,
    "long_factor": [4.0] * 6,
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


@dataclass(frozen=True)
class Family:
    """A configuration, and what is expected of it.

    Attributes:
        shares: whether its prompts share prefixes; if not, it runs the plain way.
        refused: the sites and kinds of edits that are refused.
        leaks: whether tokens also reach later ones by another way than attention.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    model_type: str | None = None
    shares: bool = True
    refused: frozenset[str] = frozenset()
    leaks: bool = False


def plain_way(settings: Mapping[str, Any] | None = None, *refused: str, **more: Any) -> Family:
    return Family(settings or {}, shares=False, refused=frozenset(refused), **more)


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "llama, yarn": Family({"rope_parameters": {**LONGROPE, "rope_type": "yarn", "factor": 4.0}}),
    "llama, dynamic": Family({"rope_parameters": DYNAMIC, "max_position_embeddings": 64}),
    "mistral": Family(WINDOWS),
    "ministral": Family({**ALTERNATING, "head_dim": 12}),
    "mixtral": Family({**WINDOWS, **EXPERTS}),
    "qwen2": Family({**WINDOWS, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen2_moe": Family({**EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3": Family({"head_dim": 16}),
    "qwen3_moe": Family({**EXPERTS, "head_dim": 12}),
    "gemma": Family({"head_dim": 16}),
    "gemma2": Family(
        {
            **ALTERNATING,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 6.0,
        }
    ),
    "gemma3_text": Family({**ALTERNATING, "head_dim": 16, "query_pre_attn_scalar": 16}),
    "vaultgemma": Family({**ALTERNATING, "head_dim": 16, "query_pre_attn_scalar": 16}),
    "phi": Family(),
    "phi3": Family(WINDOWS),
    "phi3, longrope": Family(
        {**WINDOWS, "rope_parameters": LONGROPE, "original_max_position_embeddings": 64}
    ),
    "phimoe": Family({**WINDOWS, **EXPERTS}),
    "gpt2": Family(GPT),
    "gptj": Family({**GPT, "rotary_dim": 8}),
    "codegen": Family({**GPT, "rotary_dim": 8}),
    "gpt_neox": Family(),
    "gpt_oss": Family({**ALTERNATING, **EXPERTS, "head_dim": 12}),
    "olmo": Family(),
    "olmo2": Family(),
    "olmo3": Family(ALTERNATING),
    "olmoe": Family(EXPERTS),
    "glm": Family({"head_dim": 12, "partial_rotary_factor": 0.5}),
    "glm4": Family({"head_dim": 12, "partial_rotary_factor": 0.5}),
    "granite": Family(GRANITE),
    "granitemoe": Family({**GRANITE, **EXPERTS}),
    "hyperclovax": Family({**GRANITE, "head_dim": 12}),
    "afmoe": Family({**ALTERNATING, **EXPERTS, "head_dim": 12, "num_dense_layers": 1}),
    "llama4_text": Family(
        {
            **EXPERTS,
            "intermediate_size_mlp": 96,
            "head_dim": 12,
            "attention_chunk_size": WINDOW,
            "interleave_moe_layer_step": 2,
            "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
        }
    ),
    "cohere": Family({"logit_scale": 0.25}),
    "cohere2": Family({**ALTERNATING, "logit_scale": 0.25, "head_dim": 12}),
    "exaone4": Family({**ALTERNATING, "head_dim": 12}),
    "starcoder2": Family(WINDOWS),
    "smollm3": Family({"no_rope_layers": [1, 1, 1, 0]}),
    "nemotron": Family({"initializer_range": 0.1}),
    "helium": Family({"head_dim": 12}),
    "stablelm": plain_way({"partial_rotary_factor": 0.5}),
    "minicpm3": plain_way({**LATENT, "scale_emb": 2.0, "scale_depth": 1.4, "dim_model_base": 24}),
    "youtu": plain_way(LATENT),
    "deepseek_v2": plain_way(DEEPSEEK),
    "deepseek_v3": plain_way({**DEEPSEEK, "n_shared_experts": 1}),
    "bloom": plain_way({"n_layer": 4, "n_head": 4}),
    "falcon": plain_way(),
    "falcon, alibi": plain_way({"alibi": True}),
    "mpt": plain_way({"d_model": 48, "n_layers": 4, "n_heads": 4, "max_seq_len": 256}),
    "gpt_neo": plain_way(
        {
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": WINDOW,
        }
    ),
    "diffllama": plain_way(),
    "falcon_h1": plain_way(
        {
            "head_dim": 12,
            "mamba_d_ssm": 96,
            "mamba_n_heads": 8,
            "mamba_d_head": 12,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "lm_head_multiplier": 0.5,
        },
        *SITES,
        leaks=True,
    ),
    "granitemoehybrid": Family(
        {
            **GRANITE,
            **EXPERTS,
            "layer_types": ["attention"] * 4,
            "mamba_n_heads": 8,
            "shared_intermediate_size": 32,
        },
        refused=frozenset(SITES),
    ),
    "nanochat": Family(refused=frozenset({*SITES, "residual", "lens"})),
}


@cache
def model_of(name: str) -> LanguageModel:
    family = FAMILIES[name]
    model_type = family.model_type or name.partition(",")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **{**SHAPE, **family.settings})
        from_config: Any = AutoModelForCausalLM.from_config
        hf = from_config(config, dtype=torch.float32).eval()
        for parameter in hf.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
            parameter.data.nan_to_num_()  # some experts are left as they were in memory
    return load_model(hf, tokenizer=build_tiny("tiny-random-llama")[1], name=name)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def model(request: pytest.FixtureRequest, family: Family) -> LanguageModel:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return model_of(request.node.callspec.params["family"])


@torch.no_grad()
def logprobs(model: LanguageModel, ids: Sequence[int] = IDS) -> Tensor:
    """Of all tokens after a prompt, by transformers alone."""
    logits = model.hf(input_ids=torch.tensor([list(ids)])).logits[0, -1]
    return torch.log_softmax(logits.float(), dim=-1)


def swept(model: LanguageModel, cells: Sequence[Cell], ids: Sequence[int] = IDS) -> Tensor:
    """The same by the engine, over a kept prefix: (cell, token)."""
    clean = clean_run(model, ids, PrefixStore(model).get(tuple(ids[:N_SHARED])))
    return sweep(model, ids, cells, ReadOut((5,), track=ALL_TOKENS), clean=clean).tracked


def one_by_one(model: LanguageModel, cells: Sequence[Cell], ids: Sequence[int] = IDS) -> Tensor:
    return plain_sweep(model, ids, cells, ReadOut((5,), track=ALL_TOKENS)).tracked


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)


@contextmanager
def last_token_after(block: nn.Module, vector: Tensor) -> Iterator[None]:
    """Put a vector into the residual stream after a block, at the prompt's last token."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        changed = first_of(output).clone()
        changed[:, -1] = vector
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def stream(model: LanguageModel) -> Tensor:
    """The residual stream before each block and after the last one: (boundary, token, width)."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args[0] if args else kwargs["hidden_states"])[0].clone())

    modules = (*model.layers, model.final_norm)
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    model.hf(input_ids=torch.tensor([IDS]))
    for handle in handles:
        handle.remove()
    return torch.stack(found)


def test_a_prompt_past_every_length(model: LanguageModel, family: Family) -> None:
    expected = logprobs(model)
    assert shares_prefixes(model, 1) == family.shares
    limit = position_limit(model)
    assert (limit is None) or not shares_prefixes(model, N_TOKENS)
    assert_close(swept(model, [[]])[0], expected)


def test_patches_of_the_stream(model: LanguageModel, family: Family) -> None:
    vector = torch.linspace(-1, 1, model.d_model)
    cell = [Patch(1, -1, vector)]
    if "residual" in family.refused:
        with pytest.raises(ModelError, match="patches of the residual stream do not hold in"):
            swept(model, [cell])
        return
    with last_token_after(model.layers[1], vector):
        expected = logprobs(model)
    assert (expected - logprobs(model)).abs().max() > 0.1
    assert_close(swept(model, [cell])[0], expected)
    assert_close(one_by_one(model, [cell])[0], expected)


def test_sublayers_add_up(model: LanguageModel, family: Family) -> None:
    into: dict[str, list[Tensor | None]] = {site: [None] * model.n_layers for site in SITES}
    if family.refused & {*SITES}:
        with pytest.raises(ModelError, match="attn_out cannot be read or changed in"):
            recording(model, ["attn_out"], into).__enter__()
        return
    with torch.no_grad(), recording(model, SITES, into):
        model.hf(input_ids=torch.tensor([IDS]))
    found = stream(model)
    for layer in range(model.n_layers):
        attention, mlp = (into[site][layer] for site in SITES)
        assert attention is not None
        assert mlp is not None
        assert attention.shape == mlp.shape == (1, N_TOKENS, model.d_model)
        assert_close(found[layer] + attention[0] + mlp[0], found[layer + 1])


def test_patches_of_sublayers(model: LanguageModel, family: Family) -> None:
    added = torch.randn(2, model.d_model, generator=torch.Generator().manual_seed(1))
    cell: Cell = [Patch(1, -1, added[0], "attn_out"), Patch(1, -1, added[1], "mlp_out")]
    if family.refused & {*SITES}:
        with pytest.raises(ModelError, match="attn_out"):
            swept(model, [cell])
        return
    with last_token_after(model.layers[1], stream(model)[1, -1] + added.sum(dim=0)):
        expected = logprobs(model)
    assert (expected - logprobs(model)).abs().max() > 0.1
    assert_close(swept(model, [cell])[0], expected)
    assert_close(one_by_one(model, [cell])[0], expected)


def test_knockouts(model: LanguageModel, family: Family) -> None:
    """What all later tokens no longer see may be any token, and nothing else may."""
    at = N_TOKENS - 4
    cell: Cell = [Knockout(range(model.n_layers), range(at + 1, N_TOKENS), [at])]
    others = [(*IDS[:at], 77, *IDS[at + 1 :]), (*IDS[: at - 1], 77, *IDS[at:])]
    assert (logprobs(model, others[0]) - logprobs(model)).abs().max() > 1e-3
    both = [run(model, [cell]) for run in (swept, one_by_one)]
    assert_close(*both)
    assert (both[0] - logprobs(model)).abs().max() > 1e-3
    same, another = (swept(model, [cell], ids) for ids in others)
    assert (another - both[0]).abs().max() > 1e-3
    if family.leaks:
        assert (same - both[0]).abs().max() > 1e-3
    else:
        assert_close(same, both[0])


def test_the_lens_of_the_last_block(model: LanguageModel, family: Family) -> None:
    if "lens" in family.refused:
        with pytest.raises(ModelError, match="the logit lens does not hold in"):
            logit_lens(model)
        return
    logits = logit_lens(model)(stream(model)[-1, -1])
    assert_close(torch.log_softmax(logits, dim=-1), logprobs(model))


def run_unhooked(model: LanguageModel) -> None:
    """A patched pass in which the patched module's hooks are not called."""
    patch = Patch(1, -1, torch.zeros(model.d_model), "mlp_out")
    with edit(model, [patch], N_TOKENS), pytest.MonkeyPatch.context() as patched:
        patched.setattr(model.mlp(1), "_forward_hooks", {})
        logprobs(model)


def test_a_patch_that_is_never_made_is_an_error() -> None:
    with pytest.raises(ModelError, match="the patch of mlp_out in block 1 was never made in llama"):
        run_unhooked(model_of("llama"))


def run_without_hooks(model: LanguageModel, layer: int, cell: Cell) -> None:
    """An edited pass in which the hooks before a block's attention are not called."""
    with edit(model, cell, N_TOKENS), pytest.MonkeyPatch.context() as patched:
        patched.setattr(model.attention(layer), "_forward_pre_hooks", {})
        logprobs(model)


def test_a_knockout_that_is_never_made_is_an_error() -> None:
    model = model_of("llama")
    with pytest.raises(ModelError, match="the knockout in block 2 was never made in llama"):
        run_without_hooks(model, 2, [Knockout([1, 2], [-1], [0])])


def without_attention(layer: int) -> LanguageModel:
    """A model in which one block's attention module is there, but is not run."""
    hf, tokenizer = build_tiny("tiny-random-llama")
    block = hf.model.layers[layer]
    block.forward = lambda hidden, **_: hidden + block.mlp(hidden)
    return load_model(hf, tokenizer=tokenizer, name="skips attention")


@pytest.mark.parametrize("layers", [[2], [1]])
def test_knockouts_are_refused_where_attention_does_not_run(layers: list[int]) -> None:
    model = without_attention(2)
    message = "knockouts do not hold in|knockout in block 2 was never made in"
    with pytest.raises(ModelError, match=message), edit(model, [Knockout(layers, [-1], [0])], 3):
        pass


def test_a_model_without_numbers_is_tried_once() -> None:
    hf, tokenizer = build_tiny("tiny-random-llama")
    hf.get_parameter("model.layers.2.mlp.down_proj.weight").data.fill_(torch.nan)
    model, passes = load_model(hf, tokenizer=tokenizer), list[None]()
    model.layers[0].register_forward_hook(lambda *_: passes.append(None))
    for layer in range(4):
        for each in (Patch(layer, -1, torch.zeros(48)), Knockout([layer], [-1], [0])):
            with edit(model, [each], 3):
                pass
    assert len(passes) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("right", [True, False])
def test_outlier_dimensions_hide_no_wrong_writer(dtype: torch.dtype, right: bool) -> None:
    """One component of the stream is far larger than all others, as in many trained models."""
    hf, tokenizer = build_tiny("tiny-random-llama")
    hf.get_parameter("model.layers.0.mlp.down_proj.weight").data[3] *= 1e5
    model = load_model(hf.to(dtype), tokenizer=tokenizer)
    writer_of(model, 0, "mlp_out")
    if not right:  # what is written there is read by attention, and never reaches the stream
        norm = model.layers[2].get_submodule("input_layernorm")
        model.probed["writers"][2]["mlp_out"] = Writer(norm, 1.0)
    refused = pytest.raises(ModelError, match="patches of mlp_out do not hold in")
    vector = torch.zeros(model.d_model)
    with nullcontext() if right else refused, edit(model, [Patch(1, -1, vector, "mlp_out")], 3):
        pass


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")],
    ids=["device", "host"],
)
def test_a_probe_for_which_memory_does_not_suffice_says_nothing_of_the_model(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model("tiny-random-llama", device="cpu")

    def fails(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(hopscope.engine.attention, "_scores", fails)
        with pytest.raises(type(error), match="memory"):
            shares_prefixes(model, 1)
    assert shares_prefixes(model, 1)
    with monkeypatch.context() as patch:
        patch.setattr(hopscope.engine.editing, "_part", fails)
        with (
            pytest.raises(type(error), match="memory"),
            edit(model, [Patch(1, -1, torch.zeros(model.d_model), "attn_out")], 3),
        ):
            pass
    with edit(model, [Patch(1, -1, torch.zeros(model.d_model), "attn_out")], 3):
        pass


def test_the_position_limit_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("tiny-random-llama", device="cpu")
    assert position_limit(model) is None
    monkeypatch.delattr(hopscope.engine.support, "rotations")
    assert position_limit(model) is None


def test_scores_do_not_overflow_in_float16() -> None:
    """Products of queries and keys are past float16 here, and scaled ones are not."""
    hf, tokenizer = build_tiny("tiny-random-qwen2")
    hf.half()
    for name, parameter in hf.named_parameters():
        if name.endswith(("q_proj.bias", "k_proj.bias")):
            parameter.add_(100.0)
    model = load_model(hf, tokenizer=tokenizer)
    expected = logprobs(model)
    assert expected.isfinite().all()
    assert shares_prefixes(model, 1)
    found = swept(model, [[]])[0]
    torch.testing.assert_close(found, expected, atol=0.3, rtol=0)


def test_logits_that_are_no_numbers_do_not_pass_the_probe() -> None:
    hf, tokenizer = build_tiny("tiny-random-llama")
    hf.get_parameter("model.layers.2.mlp.down_proj.weight").fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        shares_prefixes(load_model(hf, tokenizer=tokenizer), 1)


@pytest.mark.parametrize("name", ["mpt", "falcon, alibi"])
def test_masks_that_a_family_takes_otherwise_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="masks do not hold in"):
        plain_read(model_of(name), [], ReadOut())
