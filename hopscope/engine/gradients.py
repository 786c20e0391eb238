"""Provides differentiate(): how a number that is read after a prompt depends on its states.

One forward and one backward pass give the gradient at every site, block and token. Nothing is
accumulated in the parameters of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hopscope.engine.attention import forward_streams
from hopscope.engine.cache import Prefix, StreamCache
from hopscope.engine.editing import SiteRewrite, rewriting, stacked, tried
from hopscope.engine.edits import PatchSite
from hopscope.engine.finite import check_states
from hopscope.engine.hooks import losing_gradients, probed, rewriting_residual
from hopscope.engine.memory import out_of_memory
from hopscope.engine.sublayers import check_site
from hopscope.engine.support import shares_prefixes
from hopscope.engine.work import count
from hopscope.errors import ModelError
from hopscope.interrupts import interrupt_safe
from hopscope.models.language_model import LanguageModel

Metric = Callable[[Float[Tensor, " vocabulary"]], Tensor]
"""A number of the logits after a prompt, such as the difference of two of them."""
RESIDUAL_SITES = ("resid_pre", "resid_post")


@dataclass(frozen=True)
class Gradients:
    """The unedited states of a prompt, and the gradient of a number by each of them.

    Attributes:
        value: the number.
        states: by site, shape (token, layer, width); the heads of `z` lie side by side.
        gradients: by site, of the same shape, in float32; in units of the number per unit of state.
    """

    value: float
    states: Mapping[str, Float[Tensor, "token layer _width"]]
    gradients: Mapping[str, Float[Tensor, "token layer _width"]]


def differentiate(
    model: LanguageModel,
    ids: Sequence[int],
    metric: Metric,
    sites: Sequence[PatchSite],
    tokens: Sequence[int],
    *,
    prefix: Prefix | None = None,
) -> Gradients:
    """The gradient of a number of the next token's logits, by the states of some tokens.

    Args:
        model: the model.
        ids: tokens of the prompt.
        metric: gives the number, a scalar tensor.
        sites: any of those of `Patch`.
        tokens: indices of tokens of the prompt.
        prefix: keys and values of the prompt or of its beginning, if they are there already. Only
            the tokens from the first of `tokens` on are run then.

    Raises:
        ModelError: if the model has no such site or no gradients, such as one whose quantised
            weights cannot be differentiated, or if they are not finite numbers.
    """
    check_gradients(model)
    for site, layer in product(sites, range(model.n_layers)):
        check_site(model, layer, site)  # found before any hook is set
    found = _differentiated(model, ids, metric, sites, tokens, prefix or Prefix())
    count(forwards=2)
    for each in found.gradients.values():
        check_states(model, each[None], [ids], "gradients")
    return found


def check_gradients(model: LanguageModel) -> None:
    """Refuse models through which nothing can be differentiated, tried once a model.

    Raises:
        ModelError: with the module that has no gradient, or what it raised.
    """
    why = probed(model, "why no gradients", _find_why_none)
    if why is not None:
        raise ModelError(
            f"{model.name} ({model.config.model_type}) cannot be differentiated: {why}; load it "
            "without quantization, or use an analysis that needs no gradient, such as "
            "activation_patch"
        )


def _find_why_none(model: LanguageModel) -> str | None:
    """Why a short prompt has no gradients; None if it has some."""
    ids = tried(model)[0][0].tolist()
    modules = [part for block in model.layers for part in block.modules() if _multiplies(part)]
    lost: list[nn.Module] = []
    try:
        with losing_gradients(modules, lost.append):
            _differentiated(model, ids, torch.Tensor.sum, ["resid_pre"], range(len(ids)), Prefix())
    except (LookupError, RuntimeError, TypeError) as error:
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return f"its {type(lost[0]).__name__} has no gradient" if lost else None


def _multiplies(module: nn.Module) -> bool:
    """Whether a module without children holds a matrix, packed or not."""
    held = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return not list(module.children()) and any(each.ndim > 1 for each in held)


def _differentiated(
    model: LanguageModel,
    ids: Sequence[int],
    metric: Metric,
    sites: Sequence[PatchSite],
    tokens: Sequence[int],
    prefix: Prefix,
) -> Gradients:
    shares = shares_prefixes(model, len(ids))
    first = min(*tokens, len(prefix)) if shares else 0
    rows = torch.tensor([list(ids[first:])], device=model.device)
    at = torch.tensor(tokens, device=model.device) - first
    shifts: dict[tuple[str, int], Tensor] = {}
    states: dict[tuple[str, int], Tensor] = {}
    scales: dict[tuple[str, int], float] = {}

    def shifted(site: str, layer: int) -> SiteRewrite:
        def add_nothing(hidden: Tensor, scale: float) -> Tensor:
            place, index = (site, layer), at.to(hidden.device)
            states[place] = hidden.detach()[0, index] * scale
            scales[place] = scale
            shifts[place] = torch.zeros_like(hidden[:, index], requires_grad=True)
            return hidden.index_add(1, index, shifts[place])

        return add_nothing

    with torch.enable_grad(), _shifting(model, sites, shifted):
        if shares:
            logits = forward_streams(model, StreamCache(prefix.crop(first), model.n_layers), rows)
        else:
            logits = model.forward(input_ids=rows, use_cache=False).logits[:, -1]
        value = metric(logits[0])
        found = torch.autograd.grad(
            value, list(shifts.values()), allow_unused=True, materialize_grads=True
        )
    # What is read is the state times its scale, so a unit of it is 1 / scale before.
    gradients = {
        place: each[0].float() / scales[place] for place, each in zip(shifts, found, strict=True)
    }

    def by_site(of: Mapping[tuple[str, int], Tensor]) -> dict[str, Tensor]:
        layers = range(model.n_layers)
        return {
            site: stacked([of[site, layer][None] for layer in layers], model.device)[0]
            for site in sites
        }

    return Gradients(float(value.detach()), by_site(states), by_site(gradients))


@interrupt_safe
def _shifting(
    model: LanguageModel,
    sites: Sequence[PatchSite],
    shifted: Callable[[str, int], SiteRewrite],
) -> Iterator[None]:
    """Pass the states of all sites and blocks through what `shifted` gives for each."""

    def residual(boundary: int, hidden: Tensor) -> Tensor | None:
        changed = None
        for site, layer in zip(RESIDUAL_SITES, (boundary, boundary - 1), strict=True):
            if site in sites and 0 <= layer < model.n_layers:
                changed = shifted(site, layer)(hidden if changed is None else changed, 1.0)
        return changed

    with ExitStack() as stack:
        stack.enter_context(rewriting_residual(model, residual))
        for site, layer in product(sites, range(model.n_layers)):
            if site not in RESIDUAL_SITES:
                stack.enter_context(rewriting(model, site, layer, shifted(site, layer)))
        yield
