"""capture() against transformers' own hidden states and attentions, and against its own sums."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from conftest import loaded
from plain import decoder_layers, site_states, states, writer
from quantised import quantised
from torch import Tensor, nn
from transformers import PreTrainedModel

from hopscope.engine.editing import edit
from hopscope.engine.edits import Patch
from hopscope.errors import ModelError, UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.models.tiny import build_tiny
from hopscope.prompting.capture import SITES, Activations, Site, capture
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.prompts import Prompt
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery

TEXT = "The capital of the country of the Colosseum is"
DEMONSTRATIONS = "The capital of Japan is Tokyo.\nThe author of Hamlet is Shakespeare.\n"
PROJECTIONS = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense"}
USUAL_PROJECTION = "self_attn.o_proj"


def query(number: int, e1: str) -> TwoHopQuery:
    return TwoHopQuery(
        id=f"q{number}",
        e1_label=e1,
        e2_label="France",
        e3_label="Paris",
        r1_template="The country where {} is located",
        r2_template="The capital of {}",
    )


NAMES = ("the Eiffel Tower", "Kyoto", "the Louvre", "the Magic Flute", "Nairobi", "Imagine")


def some_prompts(demonstrations: str = "") -> list[Prompt]:
    """Prompts of several lengths, in no order of length."""
    queries = [query(i, name) for i, name in enumerate(NAMES)]
    return [Prompt.of(each, demonstrations=demonstrations) for each in queries]


@cache
def by_transformers(name: str, text: str) -> Any:
    """Hidden states and attention weights of the same weights, with eager attention."""
    model = loaded(name)
    hf = copy.deepcopy(model.hf)
    hf.set_attn_implementation("eager")
    ids = torch.tensor([model.encode(text).ids])
    with torch.no_grad():
        return hf(input_ids=ids, output_hidden_states=True, output_attentions=True)


def every_position(model: LanguageModel, text: str) -> range:
    return range(len(model.encode(text).ids))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_the_residual_stream(tiny_model: LanguageModel) -> None:
    where = every_position(tiny_model, TEXT)
    found = capture(tiny_model, [TEXT], ["resid_pre", "resid_post"], where)
    hidden = by_transformers(tiny_model.name, TEXT).hidden_states
    # transformers has the state before each block, and at the end that after the final norm.
    for layer in range(tiny_model.n_layers):
        assert close(found["resid_pre"][0, :, layer], hidden[layer][0])
    for layer in range(tiny_model.n_layers - 1):
        assert close(found["resid_post"][0, :, layer], hidden[layer + 1][0])
    last = found["resid_post"][0, :, -1]
    assert not close(last, hidden[-1][0])
    assert close(tiny_model.final_norm(last), hidden[-1][0])


@pytest.mark.parametrize("demonstrations", ["", DEMONSTRATIONS], ids=["zero-shot", "few-shot"])
def test_a_block_adds_attention_and_mlp(tiny_model: LanguageModel, demonstrations: str) -> None:
    sites: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    prompts = some_prompts(demonstrations)
    found = capture(tiny_model, prompts, sites, ["e1", "t1", "t2"])
    total = found["resid_pre"] + found["attn_out"] + found["mlp_out"]
    assert close(total, found["resid_post"])
    for site in ("attn_out", "mlp_out"):
        assert not close(total - found[site], found["resid_post"])


def projection(model: LanguageModel, layer: int) -> nn.Module:
    name = PROJECTIONS.get(model.hf.config.model_type, USUAL_PROJECTION)
    return decoder_layers(model.hf)[layer].get_submodule(name)


def test_heads_add_up_to_attention(tiny_model: LanguageModel) -> None:
    found = capture(tiny_model, some_prompts(), ["attn_head_out", "attn_out"], ["e1", "t2"])
    assert found["attn_head_out"].shape[3] == tiny_model.n_heads
    for layer in range(tiny_model.n_layers):
        total = found["attn_head_out"][:, :, layer].sum(dim=2)
        bias = getattr(projection(tiny_model, layer), "bias", None)
        total = total if bias is None else total + bias
        adds = writer(tiny_model.hf, layer, "attn_out")
        if "norm" in type(adds).__name__.lower():
            total = adds(total)
        assert close(total, found["attn_out"][:, :, layer])


def test_each_head_is_what_the_projection_makes_of_it_alone(tiny_model: LanguageModel) -> None:
    """With the inputs of all other heads at zero."""
    layer, module, inputs = 1, projection(tiny_model, 1), list[Tensor]()
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    found = capture(tiny_model, [TEXT], ["attn_head_out"], every_position(tiny_model, TEXT))
    handle.remove()
    width = inputs[0].shape[-1] // tiny_model.n_heads
    nothing = module(torch.zeros_like(inputs[0]))
    for head in range(tiny_model.n_heads):
        alone = torch.zeros_like(inputs[0])
        own = slice(head * width, (head + 1) * width)
        alone[..., own] = inputs[0][..., own]
        expected = (module(alone) - nothing)[0]
        assert close(found["attn_head_out"][0, :, layer, head], expected)


def adapted(hf: PreTrainedModel) -> PreTrainedModel:
    """The model with LoRA on its output projections, which changes much."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["o_proj"], lora_dropout=0.5)
    peft.inject_adapter_in_model(config, hf)
    for name, each in hf.named_parameters():
        if "lora_" in name:
            nn.init.normal_(each, std=0.5)
    return hf.train()  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrapped", [quantised, adapted])
def test_heads_of_a_projection_that_is_no_plain_matrix(
    wrapped: Callable[[PreTrainedModel], PreTrainedModel],
) -> None:
    hf, tokenizer = build_tiny("tiny-random-mistral")
    model = LanguageModel(wrapped(hf), tokenizer, "wrapped")
    found = capture(model, [TEXT], ["attn_head_out", "attn_out"], [3, -1])
    assert close(found["attn_head_out"].sum(dim=3), found["attn_out"])
    plain = capture(loaded("tiny-random-mistral"), [TEXT], ["attn_head_out"], [3, -1])
    assert not torch.allclose(found["attn_head_out"], plain["attn_head_out"], atol=1e-3)


def test_heads_inside_an_edit(llama: LanguageModel) -> None:
    """The edit is made in the pass, and not again where the heads are read."""
    ids, vector = llama.encode(TEXT).ids, torch.linspace(-1, 1, llama.head_dim)
    with edit(llama, [Patch(1, -1, vector, "z", head=2)], len(ids)):
        found = capture(llama, [TEXT], ["attn_head_out", "attn_out"], range(len(ids)))
    assert close(found["attn_head_out"].sum(dim=3), found["attn_out"])


@pytest.mark.parametrize("demonstrations", ["", DEMONSTRATIONS], ids=["zero-shot", "few-shot"])
def test_what_the_heads_give_to_the_projection(
    tiny_model: LanguageModel, demonstrations: str
) -> None:
    prompts = some_prompts(demonstrations)
    positions: tuple[str | int, ...] = ("e1", "t2", 3)
    found = capture(tiny_model, prompts, ["z"], positions)["z"]
    width = tiny_model.head_dim
    assert found.shape == (len(prompts), 3, tiny_model.n_layers, tiny_model.n_heads, width)
    for row, prompt in enumerate(prompts):
        tokenized = TokenizedPrompt.of(tiny_model, prompt)
        raw = site_states(tiny_model.hf, tokenized.ids, "z")
        for column, position in enumerate(positions):
            given = raw[:, tokenized.position(position)]
            for head in range(tiny_model.n_heads):
                own = given[:, head * width : (head + 1) * width]
                assert close(found[row, column, :, head], own)


def test_z_through_the_projection_is_what_each_head_adds(tiny_model: LanguageModel) -> None:
    found = capture(tiny_model, some_prompts(), ["z", "attn_head_out"], ["t1", "t2"])
    for layer in range(tiny_model.n_layers):
        module = projection(tiny_model, layer)
        nothing = module(torch.zeros(found["z"][:, :, layer].flatten(-2).shape))
        for head in range(tiny_model.n_heads):
            alone = torch.zeros_like(found["z"][:, :, layer])
            alone[:, :, head] = found["z"][:, :, layer, head]
            added = module(alone.flatten(-2)) - nothing
            assert close(found["attn_head_out"][:, :, layer, head], added)


def test_patterns_are_those_of_eager_attention(tiny_model: LanguageModel) -> None:
    where = every_position(tiny_model, TEXT)
    found = capture(tiny_model, [TEXT], ["attn_pattern"], where)["attn_pattern"]
    attentions = by_transformers(tiny_model.name, TEXT).attentions
    expected = torch.stack(attentions, dim=0)[:, 0].permute(2, 0, 1, 3)
    assert close(found[0], expected)
    assert close(found.sum(-1), torch.ones(found.shape[:-1]))


@pytest.mark.parametrize("demonstrations", ["", DEMONSTRATIONS], ids=["zero-shot", "few-shot"])
def test_patterns_are_padded_with_zeros(tiny_model: LanguageModel, demonstrations: str) -> None:
    prompts = some_prompts(demonstrations)
    tokenized = [TokenizedPrompt.of(tiny_model, prompt) for prompt in prompts]
    lengths = [len(prompt.ids) for prompt in tokenized]
    assert len(set(lengths)) > 1
    found = capture(tiny_model, prompts, ["attn_pattern"], ["e1", "t2"])
    pattern = found["attn_pattern"]
    assert pattern.shape[-1] == max(lengths)
    assert close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
    for row, tokens in enumerate(found.tokens.tolist()):
        for column, token in enumerate(tokens):
            assert (pattern[row, column, ..., token + 1 :] == 0).all()
            expected = by_transformers(tiny_model.name, prompts[row].text).attentions
            for layer, weights in enumerate(expected):
                part = pattern[row, column, layer, :, : lengths[row]]
                assert close(part, weights[0, :, token])


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("demonstrations", ["", DEMONSTRATIONS], ids=["zero-shot", "few-shot"])
def test_prompts_of_all_lengths_in_their_order(
    tiny_model: LanguageModel, demonstrations: str, batch_size: int
) -> None:
    prompts = some_prompts(demonstrations)
    positions: tuple[str | int, ...] = ("t2", "e1", -2, "t1")
    found = capture(tiny_model, prompts, positions=positions, batch_size=batch_size)
    assert found.query_ids == tuple(prompt.query_id for prompt in prompts)
    assert found.positions == positions
    assert_states(tiny_model, prompts, found)


def assert_states(model: LanguageModel, prompts: Sequence[Prompt], found: Activations) -> None:
    """`resid_post` is what each prompt alone has at the tokens that are said."""
    for row, prompt in enumerate(prompts):
        tokenized = TokenizedPrompt.of(model, prompt)
        expected = states(model.hf, tokenized.ids)
        for column, position in enumerate(found.positions):
            token = tokenized.position(position)
            assert found.tokens[row, column] == token
            assert close(found["resid_post"][row, column], expected[:, token])


@pytest.mark.parametrize("positions", [(0,), (-1, 0, 3), (1, "t2")], ids=str)
def test_tokens_of_the_demonstrations_can_be_asked_for(
    tiny_model: LanguageModel, positions: tuple[str | int, ...]
) -> None:
    prompts = some_prompts(DEMONSTRATIONS)
    assert_states(tiny_model, prompts, capture(tiny_model, prompts, positions=positions))


def test_a_query_set_and_its_few_shot_prompts(llama: LanguageModel) -> None:
    queries = QuerySet(tuple(query(i, name) for i, name in enumerate(NAMES)))
    found = capture(llama, queries.prompts(), positions=["t1", "t2"])
    assert found.query_ids == tuple(each.id for each in queries)
    assert_states(llama, queries.prompts(), found)


def test_texts_are_read_at_their_last_token(tiny_model: LanguageModel) -> None:
    texts = ["The capital of Japan is", "The author of the novel Hamlet is", "Kyoto"]
    found = capture(tiny_model, texts)
    for row, text in enumerate(texts):
        expected = states(tiny_model.hf, tiny_model.encode(text).ids)[:, -1]
        assert close(found["resid_post"][row, 0], expected)
    assert found.query_ids == ("", "", "")


def test_one_shared_prefix_is_computed_once(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hopscope.engine import prefix_store

    computed: list[int] = []
    extend = prefix_store.extend

    def counting(model: LanguageModel, prefix: cache.Prefix, ids: Sequence[int]) -> Any:
        computed.append(len(ids))
        return extend(model, prefix, ids)

    monkeypatch.setattr(prefix_store, "extend", counting)
    prompts = some_prompts(DEMONSTRATIONS)
    capture(llama, prompts, positions=["e1"], batch_size=1)
    assert computed == [TokenizedPrompt.of(llama, prompts[0]).n_shared]


@pytest.mark.parametrize("site", SITES)
def test_shapes(llama: LanguageModel, site: Site) -> None:
    prompts = some_prompts()
    longest = max(len(llama.encode(prompt.text)) for prompt in prompts)
    found = capture(llama, prompts, [site], ["t1", "t2"])
    sizes = {
        "query": len(prompts),
        "position": 2,
        "layer": llama.n_layers,
        "d_model": llama.d_model,
        "head": llama.n_heads,
        "head_dim": llama.head_dim,
        "key": longest,
    }
    assert found[site].shape == tuple(sizes[dim] for dim in Activations.dims(site))
    assert found[site].dtype == torch.float32
    assert not found[site].requires_grad


def test_activations_are_a_mapping(llama: LanguageModel) -> None:
    found = capture(llama, [TEXT], ["mlp_out", "resid_pre"], [0, "t2"])
    assert list(found) == ["mlp_out", "resid_pre"]
    assert len(found) == 2
    assert "(1, 2, 4, 48)" in repr(found)
    with pytest.raises(UsageError, match=r"'resid_post' was not captured.*mlp_out, resid_pre"):
        found["resid_post"]


@pytest.mark.parametrize("device", [None, "cpu", torch.device("meta")])
def test_where_the_tensors_go(llama: LanguageModel, device: str | torch.device | None) -> None:
    found = capture(llama, [TEXT], SITES, device=device)
    for site in SITES:
        assert found[site].device == torch.device(device or "cpu")


def test_bfloat16() -> None:
    from hopscope.models.load import load_model

    model = load_model("tiny-random-llama", device="cpu", dtype="bfloat16")
    found = capture(model, some_prompts(), SITES, ["e1", "t2"])
    for site in SITES:
        assert found[site].dtype == torch.bfloat16
        assert found[site].isfinite().all()


def test_captured_states_can_be_used_in_training(llama: LanguageModel) -> None:
    state = capture(llama, [TEXT])["resid_post"]
    probe = nn.Linear(llama.d_model, 1)
    probe(state).sum().backward()
    assert probe.weight.grad is not None


@pytest.mark.parametrize(
    ("prompts", "sites", "positions", "message"),
    [
        ([TEXT], ["resid_mid"], ["t2"], "unknown site 'resid_mid'.*resid_pre, resid_post"),
        ([TEXT], [], ["t2"], "at least one site"),
        ([], ["resid_post"], ["t2"], "site, prompt"),
        ([TEXT], ["resid_post"], [], "prompt and position"),
        ([TEXT], ["resid_post"], ["t1"], "t1"),
        ([TEXT], ["resid_post"], [99], "no token 99"),
        (["Kyoto", ""], ["resid_post"], ["t2"], "no token"),
        ([" the" * 300], ["resid_post"], ["t2"], "context.*256"),
    ],
)
def test_what_cannot_be_captured(
    llama: LanguageModel,
    prompts: list[str],
    sites: list[Site],
    positions: list[str | int],
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        capture(llama, prompts, sites, positions)


def test_a_family_without_replaceable_attention(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites: list[Site] = [site for site in SITES if site != "attn_pattern"]
    texts = [TEXT, f"The {TEXT}", TEXT[::-1]]
    expected = capture(llama, texts, sites, [1, -1])
    monkeypatch.setitem(llama.probed, "why plain", "a test says so")
    found = capture(llama, texts, sites, [1, -1])
    for site in sites:
        torch.testing.assert_close(found[site], expected[site], atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match=r"attn_pattern cannot be read in tiny-random-llama"):
        capture(llama, [TEXT], ["attn_pattern"])
