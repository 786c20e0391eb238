"""Families against transformers, on a prompt longer than every window: right, or refused by name.

Each model is random. What is expected is computed by raw hooks on its blocks and by what must not
depend on what, with nothing of hopscope's.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from families import FAMILIES, KNOCKOUTS, SHAPE, SITES, Family, model_of
from plain import first_of, generated
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

import hopscope.engine.attention
import hopscope.engine.editing
import hopscope.engine.sublayers
import hopscope.engine.support
from hopscope.engine.attention import ATTENTION_NAME, LayerMask, shared_prefix_attention
from hopscope.engine.cache import StreamCache
from hopscope.engine.clean_run import clean_run
from hopscope.engine.editing import edit, recording, rewriting
from hopscope.engine.edits import Cell, Knockout, Patch
from hopscope.engine.head_effects import check_head_effects, head_effects
from hopscope.engine.logit_lens import logit_lens
from hopscope.engine.plain import plain_read, plain_sweep
from hopscope.engine.prefix_store import PrefixStore
from hopscope.engine.read_out import ReadOut
from hopscope.engine.sublayers import (
    INPUTS,
    Writer,
    find_writers,
    input_of,
    writer_of,
    writing_layers,
)
from hopscope.engine.support import (
    compared_with_plain,
    position_limit,
    shares_prefixes,
    why_plain,
)
from hopscope.engine.sweep import sweep
from hopscope.errors import ModelError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import build_tiny
from hopscope.prompting.capture import Site, capture

N_TOKENS, N_SHARED = 103, 30
IDS = tuple(3 + (7 * i * i + i) % 500 for i in range(N_TOKENS))
ALL_TOKENS = tuple(range(512))
WITHOUT_PROJECTION = ("jetmoe", "gpt_neo")
"""Families whose heads are not projected by a module of their attention."""
PLAIN = [
    name
    for name, family in FAMILIES.items()
    if not family.shares and "residual" not in family.refused
]


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
    """Put a vector into the residual stream after a block, at the prompt's last token.

    It is done once, in the pass over the prompt. Of several streams the first is meant.
    """
    calls: list[None] = []

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        calls.append(None)
        if len(calls) > 1:
            return output
        changed = first_of(output).clone()
        changed.view(-1, *changed.shape[-2:])[0, -1] = vector
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def stream(model: LanguageModel, ids: Sequence[int] = IDS) -> Tensor:
    """The residual stream before each block and after the last one: (boundary, token, width)."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        found.append(hidden.reshape(-1, *hidden.shape[-2:])[0].clone())

    modules = (*model.layers, model.final_norm)
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    model.hf(input_ids=torch.tensor([list(ids)]))
    for handle in handles:
        handle.remove()
    return torch.stack(found)


def test_a_prompt_past_every_length(model: LanguageModel, family: Family) -> None:
    expected = logprobs(model)
    assert shares_prefixes(model, 1) == family.shares
    limit = position_limit(model)
    assert (limit is None) or not shares_prefixes(model, N_TOKENS)
    assert_close(swept(model, [[]])[0], expected)


def in_dtype(name: str, dtype: str) -> LanguageModel:
    model = model_of(name)
    return load_model(copy.deepcopy(model.hf), tokenizer=model.tokenizer, dtype=dtype, name=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.shares])
def test_rounding_makes_no_attention_wrong(name: str, dtype: str) -> None:
    assert why_plain(in_dtype(name, dtype)) is None


WRONG: Sequence[tuple[str, dict[str, Any]]] = [
    ("gemma2", {"softcap": None}),
    ("vaultgemma", {"softcap": None}),
    ("gpt_oss", {"s_aux": None}),
    ("granite", {"scaling": None}),
    ("mistral", {"mask": LayerMask(None)}),
    ("olmo3", {"mask": LayerMask(None)}),
    ("llama4_text", {"mask": LayerMask(None)}),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("name", "changed"), WRONG)
def test_wrong_attention_is_found_in_every_dtype(
    name: str, changed: dict[str, Any], dtype: str
) -> None:
    def wrong(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **given: Any) -> Any:
        given = {"mask": mask, **given, **changed}
        return shared_prefix_attention(module, q, k, v, given.pop("mask"), **given)

    AttentionInterface.register(ATTENTION_NAME, wrong)
    try:
        reason = why_plain(in_dtype(name, dtype))
    finally:
        AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
    assert reason is not None
    assert re.match(r"the attention of block \d is something else in the engine", reason)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2"])
def test_wrong_positions_are_found_in_every_dtype(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = StreamCache.positions

    def shifted(cache: StreamCache, *given: Any) -> Tensor:
        return positions(cache, *given) + (len(cache.prefix) > 0)

    monkeypatch.setattr(StreamCache, "positions", shifted)
    assert why_plain(in_dtype(name, dtype)) is not None


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


@pytest.mark.parametrize("family", PLAIN, indirect=True)
def test_generation_goes_on_from_a_patched_prompt(model: LanguageModel) -> None:
    """One pass over the prompt, and tokens that are those of transformers' own `generate`."""
    vector, length = torch.linspace(-1, 1, model.d_model), list[int]()
    read_out = ReadOut((5,), max_new_tokens=6)
    cells: list[Cell] = [[Patch(1, -1, vector)], [Patch(2, -1, vector)]]
    plain_sweep(model, IDS, cells, read_out)  # all is probed
    handle = model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: length.append((args or [kwargs["hidden_states"]])[0].shape[-2]),
        with_kwargs=True,
    )
    tokens = plain_sweep(model, IDS, cells, read_out).tokens
    handle.remove()
    row = torch.tensor([IDS])
    for (patch,), found in zip(cells, tokens, strict=True):
        with last_token_after(model.layers[patch.layer], vector):
            (expected,) = generated(
                model.hf, row, torch.ones_like(row), 6, end_tokens=model.end_tokens
            )
        assert found == expected
    assert length.count(N_TOKENS) == len(cells)


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


def test_experts_that_give_what_their_mlp_gives_are_no_writer_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit, order = hopscope.engine.sublayers._fit, count(1)

    def later_first(*given: Any) -> tuple[float, tuple[float, float]]:
        error, scales = fit(*given)
        return error - 1e-9 * next(order), scales

    monkeypatch.setattr(hopscope.engine.sublayers, "_fit", later_first)
    for name in ("granitemoe", "llama"):
        model = model_of(name)
        for layer, writer in enumerate(find_writers(model)):
            assert writer is not None
            assert writer["mlp_out"].module is model.mlp(layer)


def test_patches_of_sublayers(model: LanguageModel, family: Family) -> None:
    added = torch.randn(2, model.d_model, generator=torch.Generator().manual_seed(1))
    if family.refused & {*SITES}:
        with pytest.raises(ModelError, match="attn_out cannot be read or changed in"):
            swept(model, [[Patch(0, -1, added[0], "attn_out")]])
        return
    cell: Cell = [Patch(1, -1, added[0], "attn_out"), Patch(1, -1, added[1], "mlp_out")]
    with last_token_after(model.layers[1], stream(model)[1, -1] + added.sum(dim=0)):
        expected = logprobs(model)
    assert (expected - logprobs(model)).abs().max() > 0.1
    assert_close(swept(model, [cell])[0], expected)
    assert_close(one_by_one(model, [cell])[0], expected)


@contextmanager
def given_to(module: nn.Module, read: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `read` with what a module is given, and give it what that returns, if anything."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = read(args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        return (
            ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})
        )

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("site", INPUTS)
def test_patches_of_what_a_sublayer_reads(model: LanguageModel, family: Family, site: str) -> None:
    """The sublayer is given what it is given where the stream is another, and nothing else is."""
    layer, last = next(iter(model.attention_layers), 0), N_TOKENS - 1
    if family.refused & {*SITES} and layer not in writing_layers(model):
        with pytest.raises(ModelError, match="attn_in cannot be read or changed in"):
            swept(model, [[Patch(layer, -1, torch.zeros(model.d_model), "attn_in")]])
        return
    generator = torch.Generator().manual_seed(1)
    other = 2 * torch.randn(model.d_model, generator=generator)
    sublayer = model.attention(layer) if site == "attn_in" else model.mlp(layer)
    input_of(model, layer, site)  # found before any hook is set
    given, read = list[Tensor](), list[Tensor]()

    def elsewhere(hidden: Tensor) -> Tensor:
        return torch.cat([hidden[:, :last], other.expand(1, 1, -1)], dim=1)

    def put(hidden: Tensor) -> Tensor:
        return torch.cat([hidden[:, :last], given[0][:, last:]], dim=1)

    with (
        torch.no_grad(),
        given_to(model.layers[layer], elsewhere),
        given_to(sublayer, lambda hidden: given.append(hidden)),
        rewriting(model, site, layer, lambda hidden, _: read.append(hidden)),
    ):
        model.hf(input_ids=torch.tensor([IDS]))
    with given_to(sublayer, put):
        expected = logprobs(model)
    cell: Cell = [Patch(layer, -1, read[0][0, last], site)]  # type: ignore[arg-type]
    assert (expected - logprobs(model)).abs().max() > 1e-3
    assert_close(swept(model, [cell])[0], expected)
    assert_close(one_by_one(model, [cell])[0], expected)
    if site == "attn_in":
        torch.testing.assert_close(read[0][0, last], other)


def test_effects_of_heads_are_those_of_patches(model: LanguageModel, family: Family) -> None:
    """What attention writes with one head's output replaced, less what it writes as it is."""
    if family.refused & {*SITES} or model.name in WITHOUT_PROJECTION:
        with pytest.raises(ModelError, match=r"attn_out cannot be read|find the attention output"):
            check_head_effects(model)
        return
    check_head_effects(model)
    shape, layer = (model.n_heads, model.head_dim), 1
    others = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def written(edits: Sequence[Patch]) -> dict[str, Tensor]:
        into: dict[str, list[Tensor | None]] = {
            site: [None] * model.n_layers for site in ("head_input", "attn_out")
        }
        with torch.no_grad(), edit(model, edits, N_TOKENS), recording(model, list(into), into):
            model.hf(input_ids=torch.tensor([IDS]))
        return {site: each[layer][0, -1] for site, each in into.items()}  # type: ignore[index]

    own = written([])
    found = head_effects(model, layer, own["head_input"].view(shape), others)
    for head, vector in enumerate(others):
        patched = written([Patch(layer, -1, vector, "z", head)])["attn_out"]
        assert_close(found[head], patched - own["attn_out"])
    assert found.abs().amax(dim=1).min() > 1e-3


def test_knockouts(model: LanguageModel, family: Family) -> None:
    """What all later tokens no longer see may be any token, and nothing else may."""
    at = N_TOKENS - 4
    if KNOCKOUTS in family.refused:
        with pytest.raises(ModelError, match=r"has no attention|takes a 4-D mask"):
            swept(model, [[Knockout([0], range(at + 1, N_TOKENS), [at])]])
        return
    cell: Cell = [Knockout(model.attention_layers, range(at + 1, N_TOKENS), [at])]
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


@pytest.mark.parametrize("family", PLAIN, indirect=True)
def test_captured_states(model: LanguageModel, family: Family) -> None:
    texts = ["The country of Uppsala is", "Its capital is again the capital of it", "One more"]
    sites: list[Site] = ["resid_pre", "resid_post"]
    sublayers: list[Site] = ["attn_out", "mlp_out"]
    if family.refused & {*SITES}:
        with pytest.raises(ModelError, match="attn_out cannot be read or changed in"):
            capture(model, texts, sublayers, [-1])
    else:
        sites += sublayers
    states = capture(model, texts, sites, [2, -1])
    for row, text in enumerate(texts):
        expected = stream(model, model.encode(text).ids)[:, [2, -1]].transpose(0, 1)
        assert_close(states["resid_pre"][row], expected[:, :-1])
        assert_close(states["resid_post"][row], expected[:, 1:])
        if "mlp_out" in sites:
            added = states["attn_out"][row] + states["mlp_out"][row]
            assert_close(states["resid_pre"][row] + added, states["resid_post"][row])
    with pytest.raises(ModelError, match="attn_pattern cannot be read in"):
        capture(model, texts, ["resid_post", "attn_pattern"], [-1])


def test_the_lens_of_the_last_block(model: LanguageModel, family: Family) -> None:
    if "lens" in family.refused:
        with pytest.raises(ModelError, match="the logit lens does not hold in"):
            logit_lens(model)
        return
    logits = logit_lens(model)(stream(model)[-1, -1])
    assert_close(torch.log_softmax(logits, dim=-1), logprobs(model))


def anew(name: str) -> LanguageModel:
    """The model of a family, on which nothing has been tried."""
    return load_model(model_of(name).hf, tokenizer=build_tiny("tiny-random-llama")[1], name=name)


def test_one_word_on_a_model_that_is_slow(caplog: pytest.LogCaptureFixture) -> None:
    model = anew("mamba2")
    for _ in range(2):
        swept(model, [[Patch(1, -1, torch.ones(model.d_model))]])
    (record,) = caplog.records
    assert record.getMessage() == (
        "mamba2 runs its cells one by one, which is slow: it has layers of the type "
        "linear_attention"
    )


@pytest.mark.parametrize(
    ("name", "more"), [("zamba2", True), ("gemma4_text", True), ("jamba", False)]
)
def test_blocks_that_read_more_than_the_stream_are_told(
    name: str, more: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = anew(name)
    for layer in (1, 2):
        with edit(model, [Patch(layer, -1, torch.ones(model.d_model))], 3):
            pass
    assert caplog.text.count(f"blocks of {name} read more than the residual stream") == more


@pytest.mark.parametrize("name", ["lfm2", "nemotron_h"])
def test_blocks_without_attention_are_named(name: str) -> None:
    model = model_of(name)
    assert model.attention_layers == (1, 3)
    message = r"block 2 of .* has no attention .*blocks with attention: 1, 3\. .*resid_post"
    vector = torch.zeros(model.head_dim)
    cells: list[Cell] = [[Knockout([1, 2], [-1], [0])], [Patch(2, -1, vector, "z", head=0)]]
    for cell in cells:
        with pytest.raises(ModelError, match=message):
            swept(model, [cell])


def test_sublayers_of_the_blocks_that_have_both() -> None:
    """In a hybrid, what attention and MLP write is changed where there is attention."""
    model, added = model_of("lfm2"), torch.tensor([[1.0], [-2.0]]) * torch.linspace(-1, 1, 48)
    cell: Cell = [Patch(1, -1, added[0], "attn_out"), Patch(1, -1, added[1], "mlp_out")]
    with last_token_after(model.layers[1], stream(model)[1, -1] + added.sum(dim=0)):
        expected = logprobs(model)
    assert_close(swept(model, [cell])[0], expected)


@pytest.mark.parametrize("name", ["mamba2", "minimax", "bamba", "llama"])
def test_a_prompt_of_one_token_is_edited_once(name: str) -> None:
    """The passes that go on from a cache are of one token, too."""
    model, row = model_of(name), torch.tensor([IDS[:1]])
    vector = torch.linspace(-1, 1, model.d_model)
    with last_token_after(model.layers[1], vector):
        expected = generated(model.hf, row, torch.ones_like(row), 6)
    with edit(model, [Patch(1, 0, vector)], n_tokens=1):
        assert generated(model.hf, row, torch.ones_like(row), 6) == expected


def test_a_cache_that_loses_the_place_is_not_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bamba counts from 0 again unless it is told the place; then each token costs a whole pass."""
    read_out = ReadOut((5,), max_new_tokens=6)
    expected = plain_sweep(model_of("bamba"), IDS, [[]], read_out).tokens
    model = anew("bamba")
    monkeypatch.setattr(model, "takes_positions", False)
    assert plain_sweep(model, IDS, [[]], read_out).tokens == expected


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
def test_a_component_that_is_large_for_every_token_forbids_no_patch(dtype: torch.dtype) -> None:
    """As in Qwen2.5 1.5B, where all states are the same to a few thousandths of it."""
    hf, tokenizer = build_tiny("tiny-random-llama")
    hf.get_input_embeddings().weight.data[:, 3] = 1e5
    model = load_model(hf.to(dtype), tokenizer=tokenizer)
    with edit(model, [Patch(1, -1, torch.zeros(model.d_model))], 3):
        pass
    assert model.probed["patches of the residual stream"]


@pytest.mark.parametrize("n_words", [14, 27, 40, 79, 80])
def test_a_small_vocabulary_forbids_no_patch(n_words: int) -> None:
    """The two prompts on which patches are tried must not be the same."""
    config = LlamaConfig(**{**SHAPE, "vocab_size": n_words})
    model = load_model(LlamaForCausalLM(config), tokenizer=build_tiny("tiny-random-llama")[1])
    with edit(model, [Patch(1, -1, torch.zeros(model.d_model))], 3):
        pass
    assert model.probed["patches of the residual stream"]


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


@pytest.mark.parametrize("name", ["llama", "phi", "gpt_neox", "olmo2"])
def test_a_wrong_reading_of_the_stream_is_refused(name: str) -> None:
    """A norm of another block, or a module that is given something else than the stream."""
    for part in ("norm", "sublayer"):
        model = anew(name)
        vector = torch.zeros(model.d_model)
        with edit(model, [Patch(1, -1, vector, "attn_in")], 3):
            pass
        for key in [key for key in model.probed if "attn_in" in key]:
            del model.probed[key]
        right = model.probed["inputs"][1]["attn_in"]
        wrong = model.mlp(1) if part == "sublayer" else model.final_norm
        model.probed["inputs"][1]["attn_in"] = replace(right, **{part: wrong})
        refused = pytest.raises(ModelError, match="patches of attn_in do not hold in")
        with refused, edit(model, [Patch(1, -1, vector, "attn_in")], 3):
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


def test_large_scores_are_not_rounded() -> None:
    """As in the first blocks of Qwen 2.5, whose scores are in the hundreds."""
    hf, tokenizer = build_tiny("tiny-random-qwen2")
    for name, parameter in hf.named_parameters():
        if name.endswith(("q_proj.bias", "k_proj.bias")):
            parameter.add_(10.0)
    model = load_model(hf, tokenizer=tokenizer, dtype="bfloat16")
    for part, off, _ in compared_with_plain(model):
        assert off <= 2 * torch.finfo(torch.bfloat16).eps, part


def test_logits_that_are_no_numbers_do_not_pass_the_probe() -> None:
    hf, tokenizer = build_tiny("tiny-random-llama")
    hf.get_parameter("model.layers.2.mlp.down_proj.weight").fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        shares_prefixes(load_model(hf, tokenizer=tokenizer), 1)


@pytest.mark.parametrize("name", ["mpt", "falcon, alibi"])
def test_masks_that_a_family_takes_otherwise_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="masks do not hold in"):
        plain_read(model_of(name), [], ReadOut())
