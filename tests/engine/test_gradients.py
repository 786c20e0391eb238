"""Tests of differentiate(): gradients against small steps of the plain way, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import loaded
from families import FAMILIES, SITES, model_of
from plain import plain_output
from torch import Tensor, nn

from hopscope.engine.clean_run import clean_run
from hopscope.engine.edits import Patch
from hopscope.engine.gradients import differentiate
from hopscope.engine.plain import plain_sweep
from hopscope.engine.prefix_store import PrefixStore
from hopscope.engine.read_out import ReadOut
from hopscope.engine.support import shares_prefixes
from hopscope.errors import ModelError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model

IDS = [3 + (7 * i * i + i) % 500 for i in range(24)]
PLACES = (9, 20)
STEP = 1e-3
OWN, OTHER = 17, 301
ALL_SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z")


def difference(logits: Tensor) -> Tensor:
    return logits[OWN].float() - logits[OTHER].float()


def slope(model: LanguageModel, site: str, layer: int, at: int, state: Tensor, to: Tensor) -> float:
    """How fast the difference changes as a state moves along `to`, by two small steps."""
    cells = [
        [Patch(layer, at, state + step * to, site)]  # type: ignore[arg-type]
        for step in (STEP, -STEP)
    ]
    found = plain_sweep(model, IDS, cells, ReadOut(track=(OWN, OTHER))).tracked.double()
    return float((found[0, 0] - found[0, 1]) - (found[1, 0] - found[1, 1])) / (2 * STEP)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gradient_is_the_slope_of_small_patches(name: str) -> None:
    """In every family, at every site that it has; what has no gradient is refused by name."""
    model, refused = model_of(name), FAMILIES[name].refused
    sites: list[Any] = [each for each in SITES if each not in refused]
    sites += ["resid_post"] if "residual" not in refused else []
    if not sites:
        return
    found = differentiate(model, IDS, difference, sites, PLACES)
    generator = torch.Generator().manual_seed(0)
    for site in sites:
        estimates, slopes = [], []
        for layer in (0, model.n_layers - 2):
            for place, at in enumerate(PLACES):
                state = found.states[site][place, layer]
                to = torch.randn(len(state), generator=generator) * state.norm() / len(state) ** 0.5
                estimates.append(float(found.gradients[site][place, layer] @ to))
                slopes.append(slope(model, site, layer, at, state, to))
        off = torch.tensor(estimates) - torch.tensor(slopes)
        assert off.norm() <= 0.05 * torch.tensor(slopes).norm() + 0.02, (site, estimates, slopes)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_prefix_changes_nothing(name: str) -> None:
    model = loaded(f"tiny-random-{name}")
    assert shares_prefixes(model, len(IDS))
    prefix = clean_run(model, IDS, PrefixStore(model).get(tuple(IDS[:5]))).prefix
    whole = differentiate(model, IDS, difference, ALL_SITES, PLACES)
    behind = differentiate(model, IDS, difference, ALL_SITES, PLACES, prefix=prefix)
    assert whole.value == pytest.approx(behind.value, abs=1e-4)
    expected = plain_output(model.hf, IDS, []).logits
    assert whole.value == pytest.approx(float(difference(expected)), abs=1e-4)
    for site in ALL_SITES:
        torch.testing.assert_close(whole.states[site], behind.states[site], atol=1e-4, rtol=1e-4)
        one, other = whole.gradients[site], behind.gradients[site]
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_what_comes_after_the_last_read_has_no_part() -> None:
    """The last block's states of an earlier token are read by nothing."""
    found = differentiate(loaded("tiny-random-llama"), IDS, difference, ["resid_post"], PLACES)
    assert (found.gradients["resid_post"][:, -1] == 0).all()
    assert (found.gradients["resid_post"][:, 0] != 0).any()


def test_a_token_may_be_read_twice() -> None:
    model = loaded("tiny-random-llama")
    twice = differentiate(model, IDS, difference, ["z"], (9, 9)).gradients["z"]
    once = differentiate(model, IDS, difference, ["z"], (9,)).gradients["z"]
    torch.testing.assert_close(twice, once.expand_as(twice))


@pytest.mark.parametrize("wanted", [False, True], ids=["frozen", "trained"])
def test_the_model_stays_as_it_is(wanted: bool) -> None:
    model = load_model("tiny-random-llama", device="cpu")
    model.hf.requires_grad_(wanted)
    before = {name: each.clone() for name, each in model.hf.state_dict().items()}
    with torch.no_grad():
        found = differentiate(model, IDS, difference, ["resid_post"], PLACES)
    assert found.gradients["resid_post"].abs().max() > 0
    assert not any(each.requires_grad for each in found.gradients.values())
    for each in model.hf.parameters():
        assert each.grad is None
        assert each.requires_grad is wanted
    for name, each in model.hf.state_dict().items():
        assert torch.equal(each, before[name])
    hooks = [m for m in model.hf.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_in_bfloat16_gradients_are_those_of_float32_to_rounding() -> None:
    one = loaded("tiny-random-llama")
    other = load_model("tiny-random-llama", device="cpu", dtype="bfloat16")
    exact, rounded = (
        differentiate(model, IDS, difference, ["attn_out", "resid_post"], PLACES).gradients
        for model in (one, other)
    )
    for site, gradient in rounded.items():
        assert gradient.dtype == torch.float32
        alike = torch.cosine_similarity(gradient.flatten(), exact[site].flatten(), dim=0)
        assert alike > 0.95


class Packed(nn.Module):
    """A matrix product as some libraries that quantise have it: nothing can be differentiated."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("packed", linear.weight.data)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            return hidden @ self.packed.T  # type: ignore[operator, union-attr]


class Raising(torch.autograd.Function):
    """An operation without a backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden * 1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError("no kernel for the backward pass")


class WithoutBackward(nn.Module):
    """An output projection that raises as it is differentiated."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = Raising.apply(self.linear(hidden))  # type: ignore[no-untyped-call]
        return result


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Packed, "cannot be differentiated: its Packed has no gradient"),
        (WithoutBackward, "NotImplementedError: no kernel for the backward pass"),
    ],
)
def test_a_model_without_gradients_is_refused(kind: Any, message: str) -> None:
    model = load_model("tiny-random-llama", device="cpu")
    attention: Any = model.attention(2)
    attention.o_proj = kind(attention.o_proj)
    with pytest.raises(ModelError, match=message):
        differentiate(model, IDS, difference, ["resid_post"], PLACES)


def test_what_is_not_finite_is_refused() -> None:
    model = loaded("tiny-random-llama")
    with pytest.raises(ModelError, match=r"the gradients of .* are not finite numbers"):
        differentiate(model, IDS, lambda logits: logits[0] * torch.inf, ["resid_post"], PLACES)
