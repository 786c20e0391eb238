"""LanguageModel on every family, on wrapped models, and on families that nobody has listed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args

import pytest
import torch
import transformers
from conftest import loaded
from plain import TINY_SHAPE, plain_outputs, states
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import hopscope as hs
from hopscope.engine.edits import Cell, Edit, Knockout, Patch, PatchSite
from hopscope.engine.read_out import CellOutputs, ReadOut
from hopscope.engine.sublayers import writer_of
from hopscope.engine.support import shares_prefixes
from hopscope.engine.sweep import sweep
from hopscope.errors import ModelError, UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import TINY_FAMILIES, build_tiny

TEXT = "The capital of the country of the Eiffel Tower is"
READ = ReadOut((300, 41, 77), 6, top_k=2)
every_family = pytest.mark.parametrize("family", TINY_FAMILIES)


@torch.no_grad()
def logits(hf: PreTrainedModel, ids: Tensor) -> Tensor:
    return hf(input_ids=ids).logits  # type: ignore[no-any-return]


def tokens(model: LanguageModel) -> Tensor:
    return torch.tensor([model.encode(TEXT).ids])


def back_patches(model: LanguageModel, position: int = -3) -> list[Cell]:
    """The clean prompt, and all cells with source > target at one token."""
    ids = model.encode(TEXT).ids
    at, found = len(ids) + position, states(model.hf, ids)
    pairs = [(source, target) for source in range(model.n_layers) for target in range(source)]
    return [[], *([Patch(target, at, found[source, at])] for source, target in pairs)]


FINAL_NORMS = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}


def test_the_parts_of_every_family(tiny_model: LanguageModel) -> None:
    hf, kind = tiny_model.hf, tiny_model.hf.config.model_type
    assert (tiny_model.n_layers, tiny_model.d_model, tiny_model.n_heads) == (4, 48, 4)
    assert tiny_model.vocab_size == logits(hf, tokens(tiny_model)).shape[-1] == 512
    assert tiny_model.final_norm is hf.get_submodule(FINAL_NORMS.get(kind, "model.norm"))
    assert tiny_model.unembedding is hf.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert tiny_model.dtype == torch.float32
    assert tiny_model.device == torch.device("cpu")
    assert tiny_model.max_context == 256
    assert shares_prefixes(tiny_model, 1)
    for part in (tiny_model.name, kind, "4 layers", "d_model 48", "float32", "cpu"):
        assert part in repr(tiny_model)


def test_the_parts_of_every_block(tiny_model: LanguageModel) -> None:
    seen: set[nn.Module] = set()
    for layer, block in enumerate(tiny_model.layers):
        attention, mlp = tiny_model.attention(layer), tiny_model.mlp(layer)
        inside = set(block.modules())
        assert "attention" in type(attention).__name__.lower()
        assert "mlp" in type(mlp).__name__.lower()
        assert tiny_model.head_projection(layer) in set(attention.modules())
        parts = {attention, mlp}
        parts |= {writer_of(tiny_model, layer, site).module for site in ("attn_out", "mlp_out")}
        assert parts <= inside
        assert not parts & seen
        seen |= parts


def test_only_sublayers_write(llama: LanguageModel) -> None:
    with pytest.raises(UsageError, match=r"'resid_post': expected 'attn_out' or 'mlp_out'"):
        writer_of(llama, 0, "resid_post")


def fingerprint(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> str:
    hf, tokenizer = build_tiny(family, seed)
    nn.Module.to(hf, dtype)
    return LanguageModel(hf, tokenizer, "any name").fingerprint


@every_family
def test_the_same_weights_have_the_same_fingerprint(family: str) -> None:
    assert fingerprint(family) == loaded(family).fingerprint
    assert len(fingerprint(family)) == 64


def test_other_weights_have_another_fingerprint() -> None:
    prints = [fingerprint(family) for family in TINY_FAMILIES]
    prints += [fingerprint(TINY_FAMILIES[0], 1), fingerprint(TINY_FAMILIES[0], 0, torch.bfloat16)]
    assert len(set(prints)) == len(prints)


@every_family
def test_one_weight_changes_the_fingerprint(family: str) -> None:
    hf, tokenizer = build_tiny(family)
    parameter = list(hf.parameters())[-1].data.view(-1)
    parameter[-1] = torch.nextafter(parameter[-1], torch.tensor(9.0))
    assert LanguageModel(hf, tokenizer, family).fingerprint != loaded(family).fingerprint


def test_an_empty_prompt_is_refused(llama: LanguageModel) -> None:
    with pytest.raises(UsageError, match="'' has no token; give some text"):
        llama.encode("")


def test_a_prompt_must_fit_the_context(llama: LanguageModel) -> None:
    assert len(llama.encode(" the" * 256)) == 256
    assert len(llama.encode(" the" * 250, room=6)) == 250
    for text, room in [(" the" * 257, 0), (" the" * 250, 7)]:
        with pytest.raises(UsageError, match=r"context of tiny-random-llama is 256 tokens.*Use fe"):
            llama.encode(text, room)


def test_where_each_token_is_in_the_text(tiny_model: LanguageModel) -> None:
    encoded = tiny_model.encode(TEXT)
    assert "".join(TEXT[start:end] for start, end in encoded.offsets) == TEXT
    assert tiny_model.decode(encoded.ids) == TEXT
    assert encoded.text == TEXT


def test_the_first_tokens_of_names(tiny_model: LanguageModel) -> None:
    found = tiny_model.first_tokens(["Paris", " Paris ", "", "  ", "Tokyo", "Paris"])
    after = len(tiny_model.encode("The capital is"))
    expected = [tiny_model.encode(f"The capital is {name}").ids for name in ("Paris", "Tokyo")]
    assert list(found) == [ids[after] for ids in expected]
    assert tiny_model.first_tokens([]) == ()


def first_token(model: LanguageModel, text: str) -> int:
    return int(model.tokenizer(text, add_special_tokens=False)["input_ids"][0])


VARIANTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Paris", (" Paris", "Paris", " paris", "paris")),
    ("the Eiffel Tower", (" Eiffel", "Eiffel", " eiffel", "eiffel")),
    ("The Hague", (" Hague", "Hague", " hague", "hague")),
    ("A Coruna", (" Coruna", "Coruna", " coruna", "coruna")),
    ("an Egyptian", (" Egyptian", "Egyptian", " egyptian", "egyptian")),
    ("yen", (" yen", "yen")),
    ("  London ", (" London", "London", " london", "london")),
    # No article: nothing follows it, or it is the end or the beginning of another word.
    ("The", (" The", "The", " the", "the")),
    ("Thebes", (" Thebes", "Thebes", " thebes", "thebes")),
    ("Anna Lee", (" Anna", "Anna", " anna", "anna")),
    ("La Paz", (" La Paz", "La Paz", " la paz", "la paz")),
    ("Ha Long", (" Ha Long", "Ha Long", " ha long", "ha long")),
)


@pytest.mark.parametrize(("name", "spellings"), VARIANTS, ids=[name for name, _ in VARIANTS])
def test_the_first_tokens_of_a_names_variants(
    llama: LanguageModel, name: str, spellings: tuple[str, ...]
) -> None:
    expected = dict.fromkeys(first_token(llama, spelling) for spelling in spellings)
    telling = tuple(token for token in expected if llama.decode([token]).strip())
    assert llama.first_tokens([name], variants=True) == telling


def test_a_variants_article_is_left_out_at_the_beginning_alone(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    tokens = llama._tokens

    def reading(text: str) -> list[int]:
        asked.append(text)
        return tokens(text)

    monkeypatch.setattr(llama, "_tokens", reading)
    names = {
        "Costa Rica": "Costa Rica",
        "the Lord of the Rings": "Lord of the Rings",
        "The A Team": "A Team",
    }
    for name, plain in names.items():
        asked.clear()
        llama.first_tokens([name], variants=True)
        spellings = (plain, plain.lower())
        assert set(asked) == {
            *("is", "\n"),
            *(f"{before}{spelling}" for before in ("is ", "\n") for spelling in spellings),
        }


def test_variants_of_several_names(llama: LanguageModel) -> None:
    names = ["Paris", "", "the Tower", "Paris"]
    found = llama.first_tokens(names, variants=True)
    one, other = (llama.first_tokens([name], variants=True) for name in ("Paris", "the Tower"))
    assert found == tuple(dict.fromkeys([*one, *other]))
    assert llama.first_tokens(["the Tower"]) == (first_token(llama, " the"),)
    assert first_token(llama, " the") not in other
    assert llama.first_tokens([" "], variants=True) == ()


@pytest.mark.parametrize(
    ("configured", "tokenizers", "ends"),
    [(7, "<eos>", {7}), ([7, 9], "<eos>", {7, 9}), (None, "<eos>", {1}), (None, None, set())],
)
def test_what_ends_a_text(
    configured: int | list[int] | None, tokenizers: str | None, ends: set[int]
) -> None:
    hf, tokenizer = build_tiny("tiny-random-llama")
    hf.generation_config.eos_token_id = configured
    tokenizer.eos_token = tokenizers
    assert LanguageModel(hf, tokenizer, "llama").end_tokens == ends


def in_bridge(family: str) -> tuple[Any, PreTrainedModel]:
    from transformer_lens.model_bridge import TransformerBridge

    hf, tokenizer = build_tiny(family)
    bridge = TransformerBridge.boot_transformers(family, hf_model=hf, tokenizer=tokenizer)
    return bridge, hf


def in_nnsight(family: str) -> tuple[Any, PreTrainedModel]:
    from nnsight import TransformersModel  # type: ignore[import-untyped]

    hf, tokenizer = build_tiny(family)
    return TransformersModel(hf, tokenizer=tokenizer), hf


WRAPPERS = {"bridge": in_bridge, "nnsight": in_nnsight}
both_wrappers = pytest.mark.parametrize("wrapper", WRAPPERS)


@cache
def reference(family: str) -> tuple[list[Cell], CellOutputs]:
    model = loaded(family)
    cells = back_patches(model)
    return cells, sweep(model, model.encode(TEXT).ids, cells, READ)


@both_wrappers
@every_family
def test_a_wrapped_model_is_the_model(family: str, wrapper: str) -> None:
    wrapped, _ = WRAPPERS[wrapper](family)
    model, plain = load_model(wrapped), loaded(family)
    assert model.wrapped is wrapped
    assert model.fingerprint == plain.fingerprint
    ids = tokens(plain)
    assert torch.equal(tokens(model), ids)
    torch.testing.assert_close(logits(model.hf, ids), logits(plain.hf, ids), atol=1e-4, rtol=1e-4)
    cells, expected = reference(family)
    outputs = sweep(model, model.encode(TEXT).ids, cells, READ)
    assert outputs.tokens == expected.tokens
    torch.testing.assert_close(outputs.logprob, expected.logprob, atol=1e-4, rtol=0)
    assert torch.equal(outputs.top_tokens, expected.top_tokens)


@both_wrappers
@every_family
def test_a_wrapped_model_shares_its_parameters(family: str, wrapper: str) -> None:
    wrapped, hf = WRAPPERS[wrapper](family)
    model = load_model(wrapped)
    theirs = {parameter.data_ptr() for parameter in hf.parameters()}
    ours = [parameter.data_ptr() for parameter in model.hf.parameters()]
    assert len(ours) == len(list(loaded(family).hf.parameters()))
    assert set(ours) <= theirs
    before = logits(model.hf, tokens(model))
    with torch.no_grad():
        next(hf.parameters()).add_(1.0)
    assert not torch.allclose(logits(model.hf, tokens(model)), before)


@every_family
def test_a_bridge_works_as_before(family: str) -> None:
    bridge, _ = in_bridge(family)
    ids = torch.tensor([loaded(family).encode(TEXT).ids])
    with torch.no_grad():
        before, cached = bridge.run_with_cache(ids)
        model = load_model(bridge)
        sweep(model, model.encode(TEXT).ids, back_patches(model), READ)
        after, cached_after = bridge.run_with_cache(ids)
    assert torch.equal(before, after)
    assert set(cached.keys()) == set(cached_after.keys())


def every_edit(model: LanguageModel) -> list[Edit]:
    """An edit of every kind, at the last token, in the second block."""
    generator = torch.Generator().manual_seed(0)
    wide, narrow = (
        torch.randn(width, generator=generator) * 5 for width in (model.d_model, model.head_dim)
    )
    sites: tuple[PatchSite, ...] = get_args(PatchSite)[:-1]
    patches = [Patch(1, -1, wide, site) for site in sites]
    return [*patches, Patch(1, -1, narrow, "z", 2), Knockout([1, 2], [-1], [-2, -3, -4])]


@pytest.mark.parametrize("family", [f"tiny-random-{n}" for n in ("llama", "gemma2", "gpt2")])
@torch.no_grad()
def test_an_edit_leaves_the_bridge_alone_while_it_is_open(family: str) -> None:
    """The model shares the bridge's parameters, but not its hooks."""
    bridge, _ = in_bridge(family)
    model, ids = load_model(bridge), torch.tensor([loaded(family).encode(TEXT).ids])
    before, unedited = bridge(ids), logits(model.hf, ids)
    for one in every_edit(model):
        with hs.edit(model, [one], ids.shape[1]):
            assert torch.equal(bridge(ids), before), one
            assert not torch.allclose(logits(model.hf, ids), unedited, atol=1e-3), one
        assert torch.equal(logits(model.hf, ids), unedited)
    assert torch.equal(bridge(ids), before)


@torch.no_grad()
def test_hooks_of_the_bridge_and_of_the_model_do_not_meet() -> None:
    """Neither those that the bridge had before, nor those that come after."""
    family = "tiny-random-llama"
    bridge, _ = in_bridge(family)
    ids = torch.tensor([loaded(family).encode(TEXT).ids])
    model = load_model(bridge)
    unedited = logits(model.hf, ids)

    def nothing(value: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(value)

    before, edits = bridge(ids), every_edit(model)[:1]
    with bridge.hooks([("blocks.1.hook_resid_post", nothing)]):
        hooked = bridge(ids)
        assert not torch.allclose(hooked, before)
        assert torch.equal(logits(model.hf, ids), unedited)
        with hs.edit(model, edits, ids.shape[1]):
            changed = logits(model.hf, ids)
            assert torch.equal(bridge(ids), hooked)
    with hs.edit(model, edits, ids.shape[1]):
        assert torch.equal(logits(model.hf, ids), changed)


@every_family
def test_an_nnsight_model_works_as_before(family: str) -> None:
    wrapped, hf = in_nnsight(family)
    before = logits(hf, tokens(loaded(family)))
    model = load_model(wrapped)
    sweep(model, model.encode(TEXT).ids, back_patches(model), READ)
    with torch.no_grad(), wrapped.trace(TEXT):
        after = wrapped.output.logits.save()
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


SHAPE: Mapping[str, Any] = {
    **TINY_SHAPE,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 2,
    "moe_intermediate_size": 32,
}
CHUNKED = {
    "attention_chunk_size": 4,
    "moe_layers": [],
    "intermediate_size_mlp": 96,
    "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
}
AS_ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "phi": ("PhiConfig", {}),
    "phi3, windows": ("Phi3Config", {"sliding_window": 8}),
    "gpt-j": ("GPTJConfig", {"rotary_dim": 8}),
    "starcoder2, windows": ("Starcoder2Config", {"sliding_window": 8}),
    "cohere2, windows": ("Cohere2Config", {"sliding_window": 8}),
    "olmo3, windows": ("Olmo3Config", {"sliding_window": 8}),
    "gpt-oss, sinks": ("GptOssConfig", {"sliding_window": 8, **EXPERTS}),
    "mixtral, experts": ("MixtralConfig", EXPERTS),
    "gemma": ("GemmaConfig", {"head_dim": 16}),
    "granite, multipliers": ("GraniteConfig", {"attention_multiplier": 0.3}),
    "smollm3, no positions": ("SmolLM3Config", {}),
    "qwen2, windows": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    ),
    "llama4, chunks": ("Llama4TextConfig", {**EXPERTS, **CHUNKED}),
    "gpt2, scaled by layer": ("GPT2Config", {"scale_attn_by_inverse_layer_idx": True}),
}
ONE_BY_ONE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "falcon": ("FalconConfig", {}),
    "falcon, alibi": ("FalconConfig", {"alibi": True}),
    "bloom": ("BloomConfig", {}),
    "stablelm": ("StableLmConfig", {"partial_rotary_factor": 0.5}),
    "gpt-neo, windows": (
        "GPTNeoConfig",
        {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": 8},
    ),
}
OWN_ATTENTION: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "diffllama, values halved": ("DiffLlamaConfig", {}),
    "doge, masks of its own": ("DogeConfig", {}),
    "deepseek-v3, latents": ("DeepseekV3Config", LATENT),
    "gpt-bigcode, fixed rows": ("GPTBigCodeConfig", {}),
}
"""Attention can be replaced, says transformers, but it is not what the engine takes it for."""


def build(config: str, settings: Mapping[str, Any]) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, config)(**{**SHAPE, **settings})
        from_config: Any = AutoModelForCausalLM.from_config
        hf = from_config(made, dtype=torch.float32).eval()
        for parameter in hf.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return load_model(hf, tokenizer=build_tiny("tiny-random-llama")[1], name=config)


def assert_plain(model: LanguageModel) -> None:
    """A sweep of its cells is the plain way."""
    ids = (*model.encode(TEXT).ids, 40, 50)
    at = len(ids) - 4
    found = states(model.hf, ids)[:, at]
    pairs = [(source, target) for source in range(model.n_layers) for target in range(source)]
    cells: list[Cell] = [[], *([Patch(target, at, found[source])] for source, target in pairs)]
    expected = plain_outputs(model.hf, ids, cells, 6, model.end_tokens)
    outputs = sweep(model, ids, cells, READ)
    assert outputs.tokens == tuple(cell.tokens for cell in expected)
    logprobs = torch.tensor([cell.logprob(READ.answer_tokens) for cell in expected])
    torch.testing.assert_close(outputs.logprob, logprobs, atol=1e-4, rtol=0)
    assert logprobs.std() > 0.01, "the patches do nothing"


@pytest.mark.parametrize("family", AS_ROWS)
def test_another_family_as_rows(family: str) -> None:
    model = build(*AS_ROWS[family])
    assert shares_prefixes(model, 1)
    assert_plain(model)


@pytest.mark.parametrize("family", ONE_BY_ONE)
def test_another_family_one_cell_at_a_time(family: str) -> None:
    model = build(*ONE_BY_ONE[family])
    assert not shares_prefixes(model, 1)
    assert_plain(model)


@pytest.mark.parametrize("family", OWN_ATTENTION)
def test_attention_of_its_own_is_left_alone(family: str) -> None:
    assert_plain(build(*OWN_ATTENTION[family]))


def test_a_missing_part_is_named() -> None:
    with pytest.raises(ModelError, match=r"the final norm in CTRLModel: looked for norm.*found w"):
        build("CTRLConfig", {})
    model = build("OPTConfig", {"ffn_dim": 96, "word_embed_proj_dim": 48})
    with pytest.raises(ModelError, match=r"cannot find the MLP in OPTDecoder.*found.*fc1"):
        model.mlp(0)
    mamba = build("MambaConfig", {})
    with pytest.raises(ModelError, match=r"no attention .* but MambaRMSNorm, MambaMixer; .*none"):
        mamba.attention(0)
    del mamba.config.num_attention_heads  # which `build` gives to all
    with pytest.raises(ModelError, match="has no attention heads"):
        mamba.n_heads  # noqa: B018


def test_missing_blocks_are_named() -> None:
    hf, tokenizer = build_tiny("tiny-random-llama")
    hf.config.num_hidden_layers = 5
    with pytest.raises(ModelError, match=r"the 5 blocks of LlamaForCausalLM.*'model', 'lm_head'"):
        LanguageModel(hf, tokenizer, "llama")


def test_a_model_without_a_head_is_refused() -> None:
    hf, tokenizer = build_tiny("tiny-random-llama")
    with pytest.raises(ModelError, match=r"LlamaModel has no unembedding.*AutoModelForCausalLM"):
        LanguageModel(hf.model, tokenizer, "llama")


def other_kinds() -> Iterator[Any]:
    small: Any = {"vocab_size": 512, "hidden_size": 48, "num_hidden_layers": 2}
    bert = transformers.BertConfig(**small, num_attention_heads=4, intermediate_size=96)
    t5 = transformers.T5Config(vocab_size=512, d_model=48, d_kv=12, d_ff=96, num_layers=2)
    yield pytest.param(transformers.BertForMaskedLM, bert, "bert", id="encoder")
    yield pytest.param(transformers.T5ForConditionalGeneration, t5, "t5", id="encoder-decoder")


@pytest.mark.parametrize(("kind", "config", "name"), list(other_kinds()))
def test_a_model_that_is_not_causal_is_refused(kind: Any, config: Any, name: str) -> None:
    tokenizer = build_tiny("tiny-random-llama")[1]
    with pytest.raises(ModelError, match=f"'{name}'.*not a causal language model.*decoder-only"):
        load_model(kind(copy.deepcopy(config)), tokenizer=tokenizer)


def test_answers_are_told_by_names_without_an_article(llama: LanguageModel) -> None:
    assert llama.answer_tokens(["the Paris", "Rome"]) == llama.first_tokens(["Rome"])
    assert llama.answer_tokens(["the yen"], required=False) == ()
    with pytest.raises(UsageError, match="cannot identify 'the yen' by its first token"):
        llama.answer_tokens(["the yen"])
    assert llama.answer_tokens(["Theodore", "A Coruña"]) == llama.first_tokens(["Theodore"])
