"""edit() against raw hooks, recording against the states themselves, and what both leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from conftest import loaded
from plain import decoder_layers, first_of, generated, plain_output, states, writer
from torch import Tensor, nn

from hopscope.edits import Patch, PatchSite
from hopscope.errors import UsageError
from hopscope.hooks import (
    edit,
    reading_input,
    recording,
    rewriting_output,
    rewriting_residual,
    stacked,
)
from hopscope.models import LanguageModel

TEXT = "The capital of the country of the Colosseum is"
SITES: tuple[PatchSite, ...] = ("resid_pre", "resid_post", "attn_out", "mlp_out")


def tokens(model: LanguageModel) -> Tensor:
    return torch.tensor([model.encode(TEXT).ids])


@torch.no_grad()
def logits(model: LanguageModel, ids: Tensor) -> Tensor:
    return model.hf(input_ids=ids).logits[:, -1]  # type: ignore[no-any-return]


def patches(model: LanguageModel, site: PatchSite) -> list[Patch]:
    """One at the first layer, one at the last, at different tokens."""
    vectors = states(model.hf, tokens(model)[0].tolist())[:, -1]
    return [Patch(0, -3, vectors[2], site), Patch(model.n_layers - 1, -1, vectors[0], site)]


# --- edit ----------------------------------------------------------------------------------------


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


# --- recording -----------------------------------------------------------------------------------


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


# --- what is left behind -------------------------------------------------------------------------


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
    "recording": lambda m: recording(m, ["resid_pre", "attn_out", "mlp_out", "head_input"], {}),
    "rewriting_residual": rewriting,
    "rewriting_output": lambda m: rewriting_output(m.mlp(0), lambda hidden: None),
    "reading_input": lambda m: reading_input(m.head_projection(0), lambda hidden: None),
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


@pytest.mark.parametrize("name", ["rewriting_residual", "rewriting_output", "reading_input"])
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
