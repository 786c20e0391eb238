"""Ways to TransformerLens and nnsight and back: the same numbers, and nothing else touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from conftest import loaded
from plain import states
from torch import Tensor, nn

import hopscope as hs
from hopscope.engine.edits import Knockout, Patch
from hopscope.engine.read_out import ReadOut
from hopscope.engine.sweep import sweep
from hopscope.errors import ModelError, UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import TINY_FAMILIES, build_tiny
from hopscope.models.transformer_lens import copy_of_modules
from hopscope.prompting.capture import DIMS, SITES, Activations, capture
from hopscope.prompting.transformer_lens_cache import TRANSFORMER_LENS_NAMES
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery

TEXT = "The capital of the country of the Colosseum is"
SHORT = "The currency of Japan is"
SOME_FAMILIES = ("tiny-random-llama", "tiny-random-gemma2", "tiny-random-gpt2")
every_family = pytest.mark.parametrize("family", TINY_FAMILIES)
some_families = pytest.mark.parametrize("family", SOME_FAMILIES)


def tokens(model: LanguageModel, text: str = TEXT) -> Tensor:
    return torch.tensor([model.encode(text).ids])


@torch.no_grad()
def logits(model: LanguageModel, ids: Tensor) -> Tensor:
    return model.hf(input_ids=ids).logits  # type: ignore[no-any-return]


def close(found: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)


@cache
def bridge_of(family: str) -> Any:
    bridge = loaded(family).to_transformer_lens()
    bridge.set_use_attn_result(True)
    return bridge


@cache
@torch.no_grad()
def bridge_run(family: str, text: str) -> tuple[Tensor, Mapping[str, Tensor]]:
    return bridge_of(family).run_with_cache(tokens(loaded(family), text))  # type: ignore[no-any-return]


@every_family
def test_a_bridge_has_the_logits_of_the_model(family: str) -> None:
    model = loaded(family)
    found, _ = bridge_run(family, TEXT)
    close(found, logits(model, tokens(model)))


@every_family
def test_a_bridge_reads_a_text_as_the_model_does(family: str) -> None:
    """TransformerLens would put a BOS token before it, also where the model never saw one."""
    assert bridge_of(family).to_tokens(TEXT).tolist() == tokens(loaded(family)).tolist()


def state_of(model: LanguageModel) -> list[object]:
    """All that wrapping in place could change."""
    parts = [
        (id(module), sorted(vars(module)), sorted(module._modules), len(module._forward_hooks))
        for module in model.hf.modules()
    ]
    special = model.tokenizer.special_tokens_map, dict(model.tokenizer.init_kwargs)
    return [parts, special, model.hf.config.to_dict(), model.hf.config._attn_implementation]


@every_family
def test_the_model_stays_as_it_is(family: str) -> None:
    model, ids = loaded(family), tokens(loaded(family))
    before, out = state_of(model), logits(model, ids)
    model.to_transformer_lens().run_with_cache(ids)
    assert state_of(model) == before
    assert torch.equal(logits(model, ids), out)


@some_families
def test_the_model_still_works(family: str) -> None:
    """Also after the bridge has folded norms into weights, which are then its own."""
    model = loaded(family)
    ids = model.encode(TEXT).ids
    cells = [[], [Patch(0, -1, states(model.hf, ids)[2, -1])]]
    expected = sweep(model, ids, cells, ReadOut((300, 41), 4))
    bridge = model.to_transformer_lens()
    bridge.enable_compatibility_mode()
    bridge.run_with_cache(tokens(model))
    found = sweep(model, ids, cells, ReadOut((300, 41), 4))
    assert found.tokens == expected.tokens
    assert torch.equal(found.logprob, expected.logprob)


@every_family
def test_the_parameters_are_shared(family: str) -> None:
    model = load_model(family, device="cpu")
    bridge = model.to_transformer_lens()
    theirs = {p.data_ptr() for p in bridge.original_model.parameters()}
    assert {p.data_ptr() for p in model.hf.parameters()} <= theirs
    ids = tokens(model)
    with torch.no_grad():
        before = bridge(ids)
        next(model.mlp(1).parameters()).add_(0.5)
        close(bridge(ids), logits(model, ids))
        assert not torch.allclose(bridge(ids), before, atol=1e-2)


def test_a_model_from_a_bridge_gives_that_bridge_back(llama: LanguageModel) -> None:
    bridge = llama.to_transformer_lens()
    assert llama.to_transformer_lens() is not bridge
    assert load_model(bridge).to_transformer_lens() is bridge


@some_families
def test_a_model_from_nnsight_in_a_bridge(family: str) -> None:
    nn_model, model = in_nnsight(family)
    bridge, ids = model.to_transformer_lens(), tokens(model)
    with torch.no_grad():
        close(bridge(ids), logits(loaded(family), ids))
        with nn_model.trace(ids):
            traced = nn_model.output.logits.save()
    assert torch.equal(traced, logits(model, ids))


def test_a_family_that_transformer_lens_does_not_know() -> None:
    config = transformers.HeliumConfig(
        vocab_size=512,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        pad_token_id=0,
    )
    hf = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model = load_model(hf, tokenizer=build_tiny(TINY_FAMILIES[0])[1])
    before = state_of(model)
    with pytest.raises(
        ModelError, match=r"TransformerLens 4\S* does not support HeliumForCausalLM"
    ):
        model.to_transformer_lens()
    assert state_of(model) == before


def test_a_copy_of_modules_has_hooks_of_its_own() -> None:
    one = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    other = copy_of_modules(one)
    other.register_forward_hook(lambda *_: torch.zeros(1))
    other[0] = nn.Identity()
    assert one(torch.ones(2, 2)).shape == (2, 2)
    assert isinstance(one[0], nn.Linear)
    assert other[1].weight is one[1].weight
    assert other[1].running_mean is one[1].running_mean


@every_family
def test_a_cache_is_what_the_bridge_has(family: str) -> None:
    """Of two prompts of unequal length, at chosen positions."""
    model, texts, positions = loaded(family), [TEXT, SHORT], [2, -1, 1]
    sites = [site for site in SITES if site in TRANSFORMER_LENS_NAMES]
    found = capture(model, texts, sites, positions).to_activation_cache()
    assert len(found) == len(sites) * model.n_layers
    for row, text in enumerate(texts):
        _, expected = bridge_run(family, text)
        for name, tensor in found.cache_dict.items():
            here = expected[name][0]
            if name.endswith("hook_pattern"):
                length = here.shape[-1]
                close(tensor[row, ..., :length], here[:, positions])
                assert not tensor[row, ..., length:].any()
            else:
                close(tensor[row], here[positions], atol=5e-4)


def made(site: str, n_layers: int = 3) -> Activations:
    """Random states of a site, whether `capture` knows it or not."""
    width = {"query": 2, "position": 3, "layer": n_layers, "head": 4, "key": 6}
    dims = DIMS.get(site, ("query", "position", "layer", "head", "head_dim"))
    tensor = torch.randn(*(width.get(dim, 5) for dim in dims))
    return Activations({site: tensor}, (0, 1, 2), torch.zeros(2, 3), ("a", "b"))


SHAPES = {
    **dict.fromkeys(("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out"), (5,)),
    **dict.fromkeys(("attn.hook_z", "attn.hook_result"), (4, 5)),
}


@pytest.mark.parametrize("site", TRANSFORMER_LENS_NAMES)
def test_names_and_shapes(site: str) -> None:
    acts, name = made(site), TRANSFORMER_LENS_NAMES[site]
    found = acts.to_activation_cache()
    assert list(found.cache_dict) == [f"blocks.{layer}.{name}" for layer in range(3)]
    short = name.removeprefix("attn.").removeprefix("hook_")
    for layer in (0, 2, -1):
        assert found[short, layer].shape == (
            (2, 4, 3, 6) if site == "attn_pattern" else (2, 3, *SHAPES[name])
        )
    last = acts[site][:, :, -1]
    assert torch.equal(found[short, -1], last.transpose(1, 2) if site == "attn_pattern" else last)


def test_a_cache_holds_views(llama: LanguageModel) -> None:
    acts = capture(llama, [TEXT])
    found = acts.to_activation_cache()
    assert found["resid_post", 0].untyped_storage().data_ptr() == (
        acts["resid_post"].untyped_storage().data_ptr()
    )


@torch.no_grad()
def test_the_methods_of_a_cache(llama: LanguageModel) -> None:
    acts = capture(llama, [TEXT], ["resid_pre", "resid_post"], ["t2"])
    streams: Any = acts.to_activation_cache().accumulated_resid()
    assert torch.equal(streams[:-1, 0, 0], acts["resid_pre"][0, 0])
    assert torch.equal(streams[-1, 0, 0], acts["resid_post"][0, 0, -1])
    found = acts.to_activation_cache(bridge_of(llama.name))
    normed: Any = found.accumulated_resid(apply_ln=True)
    close(llama.unembedding(normed[-1, 0, 0]), logits(llama, tokens(llama))[0, -1])


def test_a_site_without_a_name() -> None:
    with pytest.raises(UsageError, match=r"no name for the site 'loss'.*resid_pre"):
        made("loss").to_activation_cache()


def in_nnsight(family: str) -> tuple[Any, LanguageModel]:
    from nnsight import TransformersModel  # type: ignore[import-untyped]

    hf, tokenizer = build_tiny(family)
    nn_model = TransformersModel(hf, tokenizer=tokenizer)
    return nn_model, load_model(nn_model)


def edits_of(model: LanguageModel) -> list[Patch | Knockout]:
    """A patch at each site of the residual stream and its writers, and blocked edges."""
    vectors = states(model.hf, tokens(model)[0].tolist())[:, -1]
    sites: Sequence[Any] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    patches = [Patch(layer, -1 - layer, vectors[-1], site) for layer, site in enumerate(sites)]
    return [*patches, Knockout([1, 2], queries=[-1], keys=[2, 3])]


# In one `with`, a trace must come last: nnsight skips what follows it, without a word.


def around(nn_model: Any, model: LanguageModel, ids: Tensor) -> Tensor:
    with hs.edit(model, edits_of(model), ids.shape[1]), nn_model.trace(ids):
        found: Tensor = nn_model.output.logits.save()
    return found


def inside(nn_model: Any, model: LanguageModel, ids: Tensor) -> Tensor:
    edits = edits_of(model)
    with nn_model.trace(ids):  # noqa: SIM117
        with hs.edit(model, edits, ids.shape[1]):
            found: Tensor = nn_model.output.logits.save()
    return found


def inside_an_invoke(nn_model: Any, model: LanguageModel, ids: Tensor) -> Tensor:
    edits = edits_of(model)
    with nn_model.trace() as tracer:  # noqa: SIM117
        with tracer.invoke(ids):
            with hs.edit(model, edits, ids.shape[1]):
                found: Tensor = nn_model.output.logits.save()
    return found


Traced = Callable[[Any, LanguageModel, Tensor], Tensor]


@pytest.mark.parametrize(
    ("family", "traced"),
    [
        *((family, around) for family in TINY_FAMILIES),
        *((family, how) for family in SOME_FAMILIES for how in (inside, inside_an_invoke)),
    ],
)
@torch.no_grad()
def test_edits_hold_in_a_trace(family: str, traced: Traced) -> None:
    nn_model, model = in_nnsight(family)
    plain = loaded(family)
    ids = tokens(plain)
    clean = logits(plain, ids)
    with hs.edit(plain, edits_of(plain), ids.shape[1]):
        expected = logits(plain, ids)
    close(traced(nn_model, model, ids), expected)
    assert not torch.allclose(expected[:, -1], clean[:, -1], atol=0.01)
    with nn_model.trace(ids):
        after = nn_model.output.logits.save()
    assert torch.equal(after, clean)


@torch.no_grad()
def test_what_a_trace_shows_of_an_edit() -> None:
    nn_model, model = in_nnsight("tiny-random-llama")
    ids, blocks = tokens(model), nn_model.model.layers
    patch = Patch(1, -1, torch.ones(model.d_model))
    with hs.edit(model, [patch], ids.shape[1]), nn_model.trace(ids):
        output = blocks[1].output.clone().save()
        following = blocks[2].input.clone().save()
    assert torch.equal(following[0, -1], patch.vector)
    assert torch.equal(following[0, :-1], output[0, :-1])
    assert not torch.equal(output[0, -1], patch.vector)


@torch.no_grad()
def test_an_edit_and_an_intervention_together() -> None:
    nn_model, model = in_nnsight("tiny-random-llama")
    ids, blocks = tokens(model), nn_model.model.layers
    first, second = (Patch(layer, -1, torch.full((model.d_model,), 2.0)) for layer in (0, 2))
    with hs.edit(model, [first, second], ids.shape[1]):
        expected = logits(model, ids)
    with hs.edit(model, [first], ids.shape[1]), nn_model.trace(ids):
        blocks[2].output[:, -1] = second.vector
        found = nn_model.output.logits.save()
    close(found, expected)


def test_generating_in_a_trace() -> None:
    nn_model, model = in_nnsight("tiny-random-llama")
    ids, edits = tokens(model), edits_of(model)
    with hs.edit(model, edits, ids.shape[1]):
        expected = model.hf.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False
        )
        with nn_model.generate(ids, max_new_tokens=5, do_sample=False) as tracer:
            found = tracer.result.save()
    assert found.tolist() == expected.tolist()


def failing(nn_model: Any, model: LanguageModel, ids: Tensor) -> None:
    edits = edits_of(model)
    with nn_model.trace(ids):  # noqa: SIM117
        with hs.edit(model, edits, ids.shape[1]):
            nn_model.model.layers[1].output.save()
            raise RuntimeError("stopped here")


def test_an_error_in_a_trace_leaves_no_hook() -> None:
    nn_model, model = in_nnsight("tiny-random-llama")
    ids = tokens(model)
    clean = logits(model, ids)
    with pytest.raises(Exception, match="stopped here"):
        failing(nn_model, model, ids)
    assert torch.equal(logits(model, ids), clean)


WRAPPERS: Mapping[str, Callable[[str], LanguageModel]] = {
    "bridge": lambda family: load_model(bridge_of(family)),
    "nnsight": lambda family: in_nnsight(family)[1],
}
both_wrappers = pytest.mark.parametrize("wrapper", WRAPPERS)


def some_queries() -> QuerySet:
    places = {"Kyoto": "Japan", "the Eiffel Tower": "France"}
    queries = tuple(
        TwoHopQuery(
            id=f"q{number}",
            e1_label=place,
            e2_label=country,
            e3_label="Rome",
            r1_template="The country of {}",
            r2_template="The capital of {}",
        )
        for number, (place, country) in enumerate(places.items())
    )
    return QuerySet(queries, "places")


def graded(model: LanguageModel) -> pd.DataFrame:
    return hs.grade(model, some_queries(), progress=False).frame


def back_patched(model: LanguageModel) -> pd.DataFrame:
    return hs.back_patch(
        model, some_queries(), ("t1",), controls=("random",), max_new_tokens=3, progress=False
    ).frame


EXPERIMENTS = {"grade": graded, "back_patch": back_patched}


@cache
def on_hugging_face(experiment: str, family: str) -> pd.DataFrame:
    return EXPERIMENTS[experiment](loaded(family))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize(
    ("family", "wrapper"),
    [*((family, "bridge") for family in SOME_FAMILIES), (SOME_FAMILIES[0], "nnsight")],
)
def test_an_experiment_on_a_wrapped_model(family: str, wrapper: str, experiment: str) -> None:
    found = EXPERIMENTS[experiment](WRAPPERS[wrapper](family))
    expected = on_hugging_face(experiment, family)
    assert len(expected) >= 10
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-3)


@both_wrappers
@some_families
def test_capture_on_a_wrapped_model(family: str, wrapper: str) -> None:
    prompts = some_queries().prompts()
    found = capture(WRAPPERS[wrapper](family), prompts, SITES, ["t1", "t2"])
    expected = capture(loaded(family), prompts, SITES, ["t1", "t2"])
    assert torch.equal(found.tokens, expected.tokens)
    for site in SITES:
        close(found[site], expected[site], atol=5e-4)
