"""The table of families: a tiny random model of each, and what is expected of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from plain import TINY_SHAPE
from transformers import AutoConfig, AutoModelForCausalLM

from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import build_tiny

SITES = ("attn_out", "mlp_out")
WINDOW = 40
"""The window or chunk of the families that have one, in tokens."""

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
EVERY_SECOND = {"layer_types": ["linear_attention", "full_attention"] * 2}
CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * 2}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 12,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
GEMMA_E = {
    **ALTERNATING,
    "head_dim": 12,
    "global_head_dim": 12,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 512,
    "hidden_size_per_layer_input": 16,
    "laurel_rank": 8,
    "activation_sparsity_pattern": [0.0] * 4,
}
KNOCKOUTS = "knockouts"


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


def hybrid(settings: Mapping[str, Any]) -> Family:
    """A family only some blocks of which have attention."""
    return plain_way(settings, *SITES, leaks=True)


def without_attention(settings: Mapping[str, Any]) -> Family:
    """A family no block of which has attention."""
    return plain_way(settings, *SITES, KNOCKOUTS)


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "llama, yarn": Family({"rope_parameters": {**LONGROPE, "rope_type": "yarn", "factor": 4.0}}),
    "llama, dynamic": Family({"rope_parameters": DYNAMIC, "max_position_embeddings": 64}),
    "mistral": Family(WINDOWS),
    "ministral": Family({**ALTERNATING, "head_dim": 12}),
    "ministral3": Family({**WINDOWS, "head_dim": 12}),
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
    "vaultgemma": Family(
        {
            **ALTERNATING,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 5.0,
        }
    ),
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
    "exaone_moe": Family({**ALTERNATING, **EXPERTS, "head_dim": 12}),
    "starcoder2": Family(WINDOWS),
    "seed_oss": Family({"head_dim": 12}),
    "apertus": Family(),
    "arcee": Family(),
    "bitnet": Family(),
    "cwm": Family(ALTERNATING),
    "opt": Family({"ffn_dim": 96, "word_embed_proj_dim": 48}, refused=frozenset(SITES)),
    "hunyuan_v1_dense": Family({"head_dim": 12}),
    "hunyuan_v1_moe": Family({**EXPERTS, "head_dim": 12, "moe_topk": 2}),
    "ernie4_5": Family({"head_dim": 12}),
    "ernie4_5_moe": Family(
        {**EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1}
    ),
    "dots1": Family({**DEEPSEEK, "num_key_value_heads": 2, "head_dim": 12, "n_shared_experts": 1}),
    "glm4_moe": Family(
        {**DEEPSEEK, "num_key_value_heads": 2, "head_dim": 12, "n_shared_experts": 1}
    ),
    "minimax_m2": Family({**EXPERTS, "head_dim": 12}),
    "mimo_v2_flash": Family({**ALTERNATING, **EXPERTS, "head_dim": 12, "v_head_dim": 12}),
    "smollm3": Family({"no_rope_layers": [1, 1, 1, 0]}),
    "nemotron": Family({"initializer_range": 0.1}),
    "helium": Family({"head_dim": 12}),
    "stablelm": plain_way({"partial_rotary_factor": 0.5}),
    "minicpm3": plain_way({**LATENT, "scale_emb": 2.0, "scale_depth": 1.4, "dim_model_base": 24}),
    "youtu": plain_way(LATENT),
    "deepseek_v2": plain_way(DEEPSEEK),
    "deepseek_v3": plain_way({**DEEPSEEK, "n_shared_experts": 1}),
    "deepseek_v32": plain_way(
        {
            **DEEPSEEK,
            "n_shared_experts": 1,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_topk": 256,
        }
    ),
    "glm4_moe_lite": plain_way({**DEEPSEEK, "n_shared_experts": 1}),
    "gpt_bigcode": plain_way(GPT),
    "jetmoe": plain_way({**EXPERTS, "num_key_value_heads": 4, "kv_channels": 12}),
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
    "granitemoehybrid, mamba": hybrid(
        {**GRANITE, **EXPERTS, **MAMBA2, **EVERY_SECOND, "shared_intermediate_size": 32}
    ),
    "bamba": hybrid({**MAMBA2, "attn_layer_indices": [1, 3]}),
    "jamba": hybrid(
        {
            **EXPERTS,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        }
    ),
    "nemotron_h": hybrid(
        {
            "layers_block_type": ["linear_attention", "full_attention", "mlp", "full_attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 12,
            "n_groups": 1,
            "ssm_state_size": 8,
            "chunk_size": 16,
            "head_dim": 12,
        }
    ),
    "recurrent_gemma": hybrid(
        {
            "block_types": ["recurrent", "attention"],
            "attention_window_size": WINDOW,
            "lru_width": 48,
            "w_init_variance_scale": 10.0,
        }
    ),
    "lfm2": hybrid(CONVOLUTIONS),
    "lfm2_moe": hybrid({**CONVOLUTIONS, **EXPERTS, "num_dense_layers": 1}),
    "qwen3_next": hybrid(
        {
            **EVERY_SECOND,
            **EXPERTS,
            **DELTA,
            "head_dim": 12,
            "shared_expert_intermediate_size": 32,
        }
    ),
    "qwen3_5_text": hybrid({**EVERY_SECOND, **DELTA, "head_dim": 12}),
    "qwen3_5_moe_text": hybrid(
        {
            **EVERY_SECOND,
            **EXPERTS,
            **DELTA,
            "head_dim": 12,
            "shared_expert_intermediate_size": 32,
        }
    ),
    "olmo_hybrid": hybrid({**EVERY_SECOND, **DELTA}),
    "kimi_linear": hybrid(
        {
            **LATENT,
            **EXPERTS,
            **EVERY_SECOND,
            "linear_head_dim": 12,
            "linear_num_heads": 4,
            "mlp_layer_types": ["dense", "sparse"] * 2,
        }
    ),
    "minimax": hybrid({**EVERY_SECOND, **EXPERTS, "block_size": 16, "head_dim": 12}),
    "mamba": without_attention({"state_size": 8}),
    "falcon_mamba": without_attention({"state_size": 8}),
    "mamba2": without_attention(
        {"num_heads": 8, "head_dim": 12, "state_size": 8, "n_groups": 1, "chunk_size": 16}
    ),
    "zamba2": without_attention(
        {
            "layers_block_type": ["linear_attention", "hybrid"] * 2,
            "n_mamba_heads": 8,
            "mamba_d_state": 8,
            "chunk_size": 16,
            "num_key_value_heads": 4,
        }
    ),
    "zaya": plain_way({}, *SITES, KNOCKOUTS),
    "gemma3n_text": plain_way(GEMMA_E, *SITES),
    "gemma4_text": plain_way(GEMMA_E, *SITES),
    "nanochat": plain_way({}, *SITES, "residual", "lens"),
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
        for path, parameter in hf.named_parameters():
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
            if path.endswith("sinks"):
                parameter.data.add_(12.0)  # as large as the scores beside them
            parameter.data.nan_to_num_()  # some experts are left as they were in memory
    return load_model(hf, tokenizer=build_tiny("tiny-random-llama")[1], name=name)
