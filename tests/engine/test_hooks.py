"""edit() against raw hooks, recording against the states themselves, and what both leave behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import pytest
import torch
from conftest import loaded
from plain import decoder_layers, first_of, generated, plain_output, states, writer
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

from hopscope.engine.editing import edit, recording, stacked
from hopscope.engine.edits import Edit, Knockout, Patch, PatchSite
from hopscope.engine.hooks import (
    blocking_attention,
    rewriting_input,
    rewriting_output,
    rewriting_residual,
)
from hopscope.engine.logit_lens import logit_lens
from hopscope.engine.read_out import ReadOut
from hopscope.engine.support import shares_prefixes
from hopscope.engine.sweep import sweep
from hopscope.errors import ModelError, UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import SLIDING_WINDOW

TEXT = "The capital of the country of the Colosseum is"
SITES: tuple[PatchSite, ...] = get_args(PatchSite)[:-1]
"""All but `z`, which is a head's."""


def tokens(model: LanguageModel) -> Tensor:
    return torch.tensor([model.encode(TEXT).ids])


@torch.no_grad()
def logits(model: LanguageModel, ids: Tensor) -> Tensor:
    return model.hf(input_ids=ids).logits[:, -1]  # type: ignore[no-any-return]


def patches(model: LanguageModel, site: PatchSite) -> list[Patch]:
    """One at the first layer, one at the last, at different tokens."""
    vectors = states(model.hf, tokens(model)[0].tolist())[:, -1]
    return [Patch(0, -3, vectors[2], site), Patch(model.n_layers - 1, -1, vectors[0], site)]


@pytest.mark.parametrize("which", [slice(0, 1), slice(1, 2), slice(0, 2)], ids=["0", "3", "both"])
@pytest.mark.parametrize("site", SITES)
def test_edit_is_the_plain_way(tiny_model: LanguageModel, site: PatchSite, which: slice) -> None:
    ids, cell = tokens(tiny_model), patches(tiny_model, site)[which]
    clean = logits(tiny_model, ids)
    with edit(tiny_model, cell, ids.shape[1]):
        edited = logits(tiny_model, ids)
    expected = plain_output(tiny_model.hf, ids[0].tolist(), cell).logits[None]
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(edited, clean, atol=0.01)
    assert torch.equal(logits(tiny_model, ids), clean)


def test_edit_changes_every_row(llama: LanguageModel) -> None:
    ids, cell = tokens(llama), patches(llama, "resid_post")[:1]
    other = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
    with edit(llama, cell, ids.shape[1]):
        both = logits(llama, torch.cat([ids, other]))
    for row, alone in zip(both, (ids, other), strict=True):
        expected = plain_output(llama.hf, alone[0].tolist(), cell).logits
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("site", SITES)
def test_generate_runs_inside_an_edit(tiny_model: LanguageModel, site: PatchSite) -> None:
    """Decoding steps are left as they are."""
    ids, cell = tokens(tiny_model), patches(tiny_model, site)
    with edit(tiny_model, cell, ids.shape[1]):
        said = generated(tiny_model.hf, ids, torch.ones_like(ids), 8)
    expected = plain_output(tiny_model.hf, ids[0].tolist(), cell, max_new_tokens=8)
    assert said == [expected.tokens]


@pytest.mark.parametrize("site", SITES)
def test_generate_runs_inside_an_edit_of_one_token(
    tiny_model: LanguageModel, site: PatchSite
) -> None:
    """A decoding step has as many tokens as the prompt; it is left as it is."""
    ids, vector = tokens(tiny_model)[:, :1], states(tiny_model.hf, tokens(tiny_model)[0].tolist())
    cell = [Patch(1, 0, vector[2, -1], site)]
    with edit(tiny_model, cell, 1):
        said = generated(tiny_model.hf, ids, torch.ones_like(ids), 6, tiny_model.end_tokens)
    plain = plain_output(tiny_model.hf, ids[0].tolist(), cell, 6, tiny_model.end_tokens)
    swept = sweep(tiny_model, ids[0].tolist(), [cell], ReadOut((5,), max_new_tokens=6))
    assert said == [plain.tokens] == list(swept.tokens)


@pytest.mark.parametrize("site", [*SITES, "knockout"])
def test_an_edit_holds_where_a_pass_reads_on(tiny_model: LanguageModel, site: Any) -> None:
    """Without a cache, each step reads the prompt again, and what was generated after it."""
    ids = tokens(tiny_model)
    n, cell = ids.shape[1], [Knockout([0, 2], [ids.shape[1] - 1], [0, 2])]
    if site != "knockout":
        cell = patches(tiny_model, site)
    whole = plain_output(tiny_model.hf, ids[0].tolist(), cell, max_new_tokens=5)
    longer = torch.cat([ids, torch.tensor([whole.tokens[:4]])], dim=1)
    with torch.no_grad(), edit(tiny_model, cell, n):
        said = tiny_model.hf(input_ids=longer, use_cache=False).logits[0, n - 1 :].argmax(-1)
    assert tuple(said.tolist()) == whole.tokens


def test_the_later_of_two_patches_at_one_place_holds(llama: LanguageModel) -> None:
    ids, (first, second) = tokens(llama), states(llama.hf, tokens(llama)[0].tolist())[2:, -1]
    for site in SITES:
        both = [Patch(1, 4, first, site), Patch(1, 4, second, site)]
        with edit(llama, both, ids.shape[1]):
            edited = logits(llama, ids)
        with edit(llama, both[1:], ids.shape[1]):
            assert torch.equal(logits(llama, ids), edited)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (Patch(4, 0, torch.zeros(48)), "no layer 4: the model has layers 0 to 3"),
        (Patch(0, 10, torch.zeros(48)), "no position 10: the prompt has 10 tokens"),
        (Patch(0, 0, torch.zeros(49)), "a vector of length 49 cannot replace one of d_model 48"),
    ],
)
def test_a_patch_that_does_not_fit_sets_no_hook(
    llama: LanguageModel, patch: Patch, message: str
) -> None:
    before = hooks(llama.hf)
    good = Patch(0, 0, torch.zeros(48))
    with pytest.raises(UsageError, match=message), edit(llama, [good, patch], 10):
        pass
    assert hooks(llama.hf) == before


LONGER = "The official language of the country of the city of the Colosseum is"
IMPLEMENTATIONS = ("sdpa", "eager")
FLASH_LIKE = "flash_like"


def flash_like_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Takes the mask that flash attention takes: none, or which tokens are no padding."""
    mask = args[4] if len(args) > 4 else kwargs.pop("attention_mask")
    assert mask is None or mask.ndim == 2
    return sdpa_attention_forward(*args[:4], attention_mask=None, **kwargs)


AttentionInterface.register(FLASH_LIKE, flash_like_attention)
AttentionMaskInterface.register(FLASH_LIKE, flash_attention_mask)


@cache
def attending_by(name: str, implementation: str) -> LanguageModel:
    """The same weights, with another attention function (and its form of mask)."""
    model = loaded(name)
    if model.config.model_type == "gemma2" and implementation == "sdpa":
        pytest.skip("sdpa knows no soft cap of the scores")
    hf = copy.deepcopy(model.hf)
    hf.config.get_text_config()._attn_implementation = implementation
    return LanguageModel(hf, model.tokenizer, model.name)


def knockouts(n_tokens: int) -> list[list[Edit]]:
    """Near and far edges, one and many, in all heads and in some, alone and beside a patch."""
    last = n_tokens - 1
    near, far = range(last - 3, last), range(1, last - 7)
    vector = torch.linspace(-2, 2, 48)
    return [
        [Knockout([0, 1, 2, 3], [last], [last - 2])],
        [Knockout([1, 2], [last - 1, last], [*far, *near])],
        [Knockout([0, 3], range(last - 4, last + 1), near, heads=[0, 3])],
        [Knockout([2], [last], near, heads=[1]), Knockout([2, 3], [last], [last - 2])],
        [Knockout([1], [last], near), Patch(0, last - 1, vector)],
    ]


def shifted(cell: Sequence[Edit], by: int) -> list[Edit]:
    """The same edits of a prompt with `by` tokens more before it."""
    moved: list[Edit] = []
    for each in cell:
        if isinstance(each, Patch):
            moved.append(replace(each, position=each.position + by))
        else:
            queries, keys = ([token + by for token in part] for part in (each.queries, each.keys))
            moved.append(replace(each, queries=queries, keys=keys))
    return moved


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_knockout_is_the_plain_way(tiny_model: LanguageModel, implementation: str) -> None:
    model, ids = attending_by(tiny_model.name, implementation), tokens(tiny_model)
    clean = logits(model, ids)
    for cell in knockouts(ids.shape[1]):
        with edit(model, cell, ids.shape[1]):
            edited = logits(model, ids)
        expected = plain_output(tiny_model.hf, ids[0].tolist(), cell).logits[None]
        torch.testing.assert_close(edited, expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(edited, clean, atol=0.01)
    assert torch.equal(logits(model, ids), clean)


def left_padded(model: LanguageModel) -> tuple[list[list[int]], Tensor, Tensor, Tensor]:
    """Two prompts of different lengths, as a batch: ids, attention mask, position ids."""
    rows = [list(model.encode(text).ids) for text in (TEXT, LONGER)]
    longest = max(map(len, rows)) + 2
    ids = torch.tensor([[7] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return rows, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_knockout_in_a_left_padded_batch(tiny_model: LanguageModel, implementation: str) -> None:
    """Tokens are counted in the padded rows; each row is what its prompt gives alone."""
    model = attending_by(tiny_model.name, implementation)
    rows, ids, mask, positions = left_padded(model)
    n_tokens = ids.shape[1]
    for cell in knockouts(len(rows[0])):
        padded = shifted(cell, n_tokens - len(rows[0]))
        with torch.no_grad(), edit(model, padded, n_tokens):
            output = model.hf(input_ids=ids, attention_mask=mask, position_ids=positions)
        for edited, row in zip(output.logits[:, -1], rows, strict=True):
            own = shifted(padded, len(row) - n_tokens)
            expected = plain_output(tiny_model.hf, row, own).logits
            torch.testing.assert_close(edited, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_decoding_sees_what_is_blocked(tiny_model: LanguageModel, implementation: str) -> None:
    """Only the pass over the prompt is edited, also in a padded batch."""
    model = attending_by(tiny_model.name, implementation)
    rows, ids, mask, _ = left_padded(model)
    last = len(rows[0]) - 1
    nearly_blind = Knockout(range(4), [last - 1, last], range(1, last))
    cell = shifted([nearly_blind], ids.shape[1] - len(rows[0]))
    with edit(model, cell, ids.shape[1]):
        said = generated(model.hf, ids, mask, 6)
    own = [shifted(cell, len(row) - ids.shape[1]) for row in rows]
    alone = zip(rows, own, strict=True)
    assert said == [plain_output(tiny_model.hf, *each, max_new_tokens=6).tokens for each in alone]
    assert said != generated(model.hf, ids, mask, 6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_lies_outside_a_window_is_blocked_already(implementation: str) -> None:
    model = attending_by("tiny-random-mistral", implementation)
    ids = torch.tensor([model.encode(LONGER).ids])
    last, clean = ids.shape[1] - 1, logits(model, ids)
    for key, same in ((last - SLIDING_WINDOW, True), (last - SLIDING_WINDOW + 1, False)):
        with edit(model, [Knockout(range(4), [last], [key])], last + 1):
            assert torch.allclose(logits(model, ids), clean, atol=1e-5) == same


def test_a_knockout_of_one_head_is_not_that_of_another(llama: LanguageModel) -> None:
    ids, found = tokens(llama), list[Tensor]()
    for heads in ([0], [1], [2], [3], [0, 1, 2, 3], None):
        with edit(llama, [Knockout([1], [-1], [3, 4], heads)], ids.shape[1]):
            found.append(logits(llama, ids))
    torch.testing.assert_close(found[4], found[5], atol=1e-5, rtol=1e-5)
    for index, one in enumerate(found[:5]):
        for other in found[index + 1 : 5]:
            assert not torch.allclose(one, other, atol=1e-3)


def test_what_follows_a_token_alone_is_blocked(llama: LanguageModel) -> None:
    """A key at or after the token that attends is no edge, and a token sees itself."""
    ids = tokens(llama)
    whole = Knockout([2], [4, 9], range(10))
    only = [Knockout([2], [4], range(4)), Knockout([2], [9], range(9))]
    found = []
    for cell in ([whole], only):
        with edit(llama, cell, ids.shape[1]):
            found.append(logits(llama, ids))
    assert torch.equal(*found)
    assert found[0].isfinite().all()


def test_a_mask_of_another_form_is_refused(llama: LanguageModel) -> None:
    """As flash attention has it: which tokens are padding, shape (row, token)."""
    model = attending_by(llama.name, FLASH_LIKE)
    _, ids, mask, positions = left_padded(model)
    asked = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    cell = [Knockout([1], [-1], [-2])]
    message = r"takes a 4-D mask; load the model with attn_implementation='sdpa' or 'eager'"
    with pytest.raises(ModelError, match=message), edit(model, cell, ids.shape[1]):
        model.hf(**asked)
    with edit(model, [Patch(1, -1, torch.zeros(48))], ids.shape[1]):
        assert model.hf(**asked).logits.isfinite().all()
    assert hooks(model.hf) == []


def test_attention_without_a_mask_is_refused(llama: LanguageModel) -> None:
    attention = nn.Linear(4, 4)
    with (
        pytest.raises(ModelError, match="Linear is given no attention mask"),
        blocking_attention(attention, [Knockout([0], [1], [0])], 4, 3),
    ):
        attention(torch.zeros(1, 3, 4))


@pytest.mark.parametrize(
    ("knockout", "message"),
    [
        (Knockout([4], [-1], [0]), "no layer 4: the model has layers 0 to 3"),
        (Knockout([0], [10], [0]), "no position 10: the prompt has 10 tokens"),
        (Knockout([0], [-1], [0], heads=[4]), "no head 4: the model has heads 0 to 3"),
        (Knockout([0], [2], [2, 5]), "attention looks back only"),
    ],
)
def test_a_knockout_that_does_not_fit_sets_no_hook(
    llama: LanguageModel, knockout: Knockout, message: str
) -> None:
    before = hooks(llama.hf)
    good = Knockout([0], [-1], [0])
    with pytest.raises(UsageError, match=message), edit(llama, [good, knockout], 10):
        pass
    assert hooks(llama.hf) == before


def head_patches(model: LanguageModel) -> list[list[Edit]]:
    """One head, two heads of one token, and the last of two patches of the same head."""
    vector = torch.linspace(-1, 1, model.head_dim)
    first, last = Patch(0, -3, vector, "z", 2), Patch(3, -1, -vector, "z", 0)
    beside = replace(last, head=3, vector=3 * vector)
    return [[first], [last, beside], [first, last], [beside, replace(beside, vector=vector)]]


def test_a_patched_head_is_the_plain_way(tiny_model: LanguageModel) -> None:
    ids = tokens(tiny_model)
    clean = logits(tiny_model, ids)
    for cell in head_patches(tiny_model):
        with edit(tiny_model, cell, ids.shape[1]):
            edited = logits(tiny_model, ids)
            said = generated(tiny_model.hf, ids, torch.ones_like(ids), 4)
        expected = plain_output(tiny_model.hf, ids[0].tolist(), cell, max_new_tokens=4)
        torch.testing.assert_close(edited[0], expected.logits, atol=1e-4, rtol=1e-4)
        assert said == [expected.tokens]
        assert not torch.allclose(edited, clean, atol=1e-3)


def test_the_later_patch_of_a_head_holds(llama: LanguageModel) -> None:
    ids, cell = tokens(llama), head_patches(llama)[3]
    found = []
    for made in (cell, cell[1:], cell[:1]):
        with edit(llama, made, ids.shape[1]):
            found.append(logits(llama, ids))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What some modules return, by raw hooks."""
    found: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _, __, out: found.append(first_of(out)))
        for module in modules
    ]
    yield found
    for handle in handles:
        handle.remove()


def record(model: LanguageModel, *sites: str) -> dict[str, Tensor]:
    into: dict[str, list[Tensor | None]] = {site: [None] * model.n_layers for site in sites}
    with recording(model, sites, into):
        logits(model, tokens(model))
    return {site: stacked(found) for site, found in into.items()}


def test_recording_the_residual_stream(tiny_model: LanguageModel) -> None:
    found = record(tiny_model, "resid_pre", "resid_post")
    expected = states(tiny_model.hf, tokens(tiny_model)[0].tolist()).transpose(0, 1)
    assert torch.equal(found["resid_post"][0], expected)
    assert torch.equal(found["resid_pre"][0, :, 1:], expected[:, :-1])
    assert found["resid_pre"].shape == found["resid_post"].shape


@pytest.mark.parametrize("site", ["attn_out", "mlp_out"])
def test_recording_what_is_added_to_it(tiny_model: LanguageModel, site: str) -> None:
    writers = [writer(tiny_model.hf, layer, site) for layer in range(tiny_model.n_layers)]
    with outputs_of(writers) as expected:
        found = record(tiny_model, site)
    assert torch.equal(found[site], torch.stack(expected, dim=2))


def test_recording_the_inputs_of_the_heads(tiny_model: LanguageModel) -> None:
    found = record(tiny_model, "head_input", "attn_out")
    assert found["head_input"].shape[:3] == found["attn_out"].shape[:3]
    assert found["head_input"].shape[3] % tiny_model.n_heads == 0


def test_only_what_is_asked_for_is_recorded(llama: LanguageModel) -> None:
    into: dict[str, list[Tensor | None]] = {"mlp_out": [None] * 4, "resid_post": [None] * 4}
    with recording(llama, ["mlp_out"], into):
        logits(llama, tokens(llama))
    assert into["resid_post"] == [None] * 4
    with pytest.raises(AssertionError, match="did not run"):
        stacked(into["resid_post"])


def hooks(hf: nn.Module) -> list[object]:
    return [
        hook
        for module in hf.modules()
        for kind in (module._forward_pre_hooks, module._forward_hooks)
        for hook in kind.values()
    ]


def rewriting(model: LanguageModel) -> AbstractContextManager[None]:
    return rewriting_residual(model, lambda _, __: None)


OPEN: dict[str, Callable[[LanguageModel], AbstractContextManager[None]]] = {
    "edit": lambda m: edit(m, [p for site in SITES for p in patches(m, site)], 10),
    "knockout": lambda m: edit(m, knockouts(10)[3], 10),
    "patched head": lambda m: edit(m, head_patches(m)[1], 10),
    "recording": lambda m: recording(m, ["resid_pre", "attn_out", "mlp_out", "head_input"], {}),
    "rewriting_residual": rewriting,
    "rewriting_output": lambda m: rewriting_output(m.mlp(0), lambda hidden: None),
    "rewriting_input": lambda m: rewriting_input(m.head_projection(0), lambda hidden: None),
}


@pytest.mark.parametrize("name", OPEN)
def test_hooks_are_removed_also_after_an_error(name: str) -> None:
    model = loaded("tiny-random-llama")
    before = hooks(model.hf)
    with OPEN[name](model):
        assert len(hooks(model.hf)) > len(before)
    assert hooks(model.hf) == before
    with pytest.raises(KeyError), OPEN[name](model):
        raise KeyError
    assert hooks(model.hf) == before


@pytest.mark.parametrize("name", ["rewriting_residual", "rewriting_output", "rewriting_input"])
def test_looking_changes_nothing(tiny_model: LanguageModel, name: str) -> None:
    ids = tokens(tiny_model)
    clean = logits(tiny_model, ids)
    with OPEN[name](tiny_model):
        assert torch.equal(logits(tiny_model, ids), clean)


def test_boundaries_are_passed_in_order(tiny_model: LanguageModel) -> None:
    seen: list[int] = []
    with rewriting_residual(tiny_model, lambda boundary, _: seen.append(boundary)):
        logits(tiny_model, tokens(tiny_model))
    assert seen == list(range(tiny_model.n_layers + 1))
    assert len(decoder_layers(tiny_model.hf)) == tiny_model.n_layers


def test_a_probe_within_an_edit_sees_the_model_as_it_is() -> None:
    model = load_model("tiny-random-llama", device="cpu")
    ids = torch.tensor([model.encode("The capital of the country of Nauru is").ids])
    patch = Patch(0, 1, torch.full((model.d_model,), 3.0))
    own = model.hf(ids).logits
    with edit(model, [patch], ids.shape[1]):
        edited = model.hf(ids).logits
        assert shares_prefixes(model, 1)
        assert logit_lens(model).scale == 1
        assert torch.equal(model.hf(ids).logits, edited)
    assert torch.equal(model.hf(ids).logits, own)
    assert not torch.equal(edited, own)
