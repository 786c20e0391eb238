"""Provides writer_of() and input_of(): how a block's sublayers write and read the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from hopscope.engine.hooks import (
    probed,
    reading_calls,
    reading_outputs,
    rewriting_input,
    rewriting_output,
    rewriting_residual,
    run_short_prompt,
)
from hopscope.errors import ModelError, UsageError
from hopscope.models.language_model import LanguageModel

SITES = ("attn_out", "mlp_out")
INPUTS = ("attn_in", "mlp_in")
PROBE_TOKENS = 12


@dataclass(frozen=True, eq=False)
class Writer:
    """A module whose output, times a number, is what a block adds to the residual stream.

    Attributes:
        module: the sublayer itself, or the norm behind it.
        scale: the number, such as Granite's residual multiplier.
    """

    module: nn.Module
    scale: float


def writer_of(model: LanguageModel, layer: int, site: str) -> Writer:
    """What writes a sublayer's part to the residual stream.

    It is found once a model by a short probe: the two modules of a block whose outputs add up to
    what the block changes, such as the norms behind the sublayers of Gemma 2 and OLMo 2.

    Args:
        model: the model.
        layer: 0-based index of the block.
        site: `attn_out` or `mlp_out`.

    Raises:
        UsageError: for another site.
        ModelError: if no two modules of the block add up so.
    """
    if site not in SITES:
        raise UsageError(f"no module writes {site!r}: expected 'attn_out' or 'mlp_out'")
    found = probed(model, "writers", find_writers)[layer]
    if found is None:
        raise ModelError(
            f"{site} cannot be read or changed in {model.name} ({model.config.model_type}): what "
            f"block {layer} adds to the residual stream is not the sum of what its attention and "
            "its MLP give; use resid_pre and resid_post"
        )
    return found[site]


@dataclass(frozen=True, eq=False)
class SublayerInput:
    """How a sublayer reads the residual stream.

    Attributes:
        sublayer: the attention or the MLP.
        norm: what the stream passes on its way: a norm of the sublayer's own, or one that both
            sublayers share; None if the sublayer is given the stream itself.
        after_attention: whether the stream holds what the attention of the same block has written.
    """

    sublayer: nn.Module
    norm: nn.Module | None
    after_attention: bool


def input_of(model: LanguageModel, layer: int, site: str) -> SublayerInput:
    """How a block's attention (`attn_in`) or MLP (`mlp_in`) reads the residual stream.

    It is found once a model by a short probe: the module whose output the sublayer is given, if
    there is one, and what that is given.

    Raises:
        UsageError: for another site.
        ModelError: if the sublayers do not read the stream through one module at most.
    """
    if site not in INPUTS:
        raise UsageError(f"no sublayer reads {site!r}: expected 'attn_in' or 'mlp_in'")
    found = probed(model, "inputs", find_inputs)[layer]
    if found is None:
        raise ModelError(
            f"{site} cannot be read or changed in {model.name} ({model.config.model_type}): the "
            f"sublayers of block {layer} are not given the residual stream, or what one module "
            "makes of it; use resid_pre and resid_post"
        )
    return found[site]


def check_site(model: LanguageModel, layer: int, site: str) -> None:
    """Find how a sublayer reads or writes, which cannot be done once hooks are set.

    Raises:
        ModelError: if the block has no such site.
    """
    if site in SITES:
        writer_of(model, layer, site)
    elif site in INPUTS:
        input_of(model, layer, site)


@torch.no_grad()
def find_inputs(model: LanguageModel) -> list[dict[str, SublayerInput] | None]:
    """For each block how its sublayers read the residual stream, or None if that is not found.

    Attention is made to write something else on the way, so that the stream behind it is told from
    the one before it also where attention writes nothing. Blocks without writers (`writer_of`) have
    none: what else reads and writes there is not known.
    """
    layers = writing_layers(model)
    ids, stream, _ = run_short_prompt(model, PROBE_TOKENS)
    made: dict[int, list[tuple[nn.Module, Tensor, Tensor]]] = {layer: [] for layer in layers}
    given: dict[nn.Module, Tensor] = {}

    def note_in(layer: int) -> Callable[[nn.Module, Tensor, Tensor], None]:
        return lambda module, *states: made[layer].append(
            (module, *(each.clone() for each in states))
        )

    def keep(sublayer: nn.Module) -> Callable[[Tensor], None]:
        def read(hidden: Tensor) -> None:
            given[sublayer] = hidden.clone()

        return read

    def adding(layer: int) -> Callable[[Tensor], Tensor]:
        return lambda written: written + stream[layer].abs().max().to(written.device)

    with ExitStack() as stack:
        stack.enter_context(rewriting_residual(model, lambda boundary, _: stream[boundary]))
        for layer in layers:
            written_by = writer_of(model, layer, "attn_out").module
            stack.enter_context(rewriting_output(written_by, adding(layer)))
            stack.enter_context(reading_calls(model.layers[layer].modules(), note_in(layer)))
            for sublayer in (model.attention(layer), model.mlp(layer)):
                stack.enter_context(rewriting_input(sublayer, keep(sublayer)))
        model.forward(input_ids=ids)
    return [
        _reading(model, layer, stream[layer], made[layer], given) if layer in made else None
        for layer in range(model.n_layers)
    ]


def _reading(
    model: LanguageModel,
    layer: int,
    stream: Tensor,
    made: Sequence[tuple[nn.Module, Tensor, Tensor]],
    given: Mapping[nn.Module, Tensor],
) -> dict[str, SublayerInput] | None:
    """How the sublayers of one block read the stream before it, or what attention made of it."""
    found = dict[str, SublayerInput]()
    for site, sublayer in zip(INPUTS, (model.attention(layer), model.mlp(layer)), strict=True):
        read = given[sublayer]
        norms = ((norm, taken) for norm, taken, output in made if torch.equal(output, read))
        norm, state = next(norms, (None, read))
        after = not torch.equal(state.cpu(), stream.cpu())
        if state.shape != stream.shape or (after and site == "attn_in"):
            return None
        found[site] = SublayerInput(sublayer, norm, after)
    return found


def reading_layers(model: LanguageModel) -> list[int]:
    """The blocks of whose attention and MLP it is known how they read (`input_of`)."""
    return [i for i, found in enumerate(probed(model, "inputs", find_inputs)) if found]


def writing_layers(model: LanguageModel) -> list[int]:
    """The blocks whose attention and MLP have their writers (`writer_of`)."""
    return [i for i, found in enumerate(probed(model, "writers", find_writers)) if found]


@torch.no_grad()
def find_writers(model: LanguageModel) -> list[dict[str, Writer] | None]:
    """For each block the modules that write to the residual stream, or None if none add up."""
    calls: list[list[tuple[nn.Module, Tensor]]] = [[] for _ in model.layers]

    def note_in(layer: int) -> Callable[[nn.Module, Any], None]:
        def note(module: nn.Module, output: Any) -> None:
            if isinstance(output, Tensor) and output.shape[-1] == model.d_model:
                calls[layer].append((module, output.clone()))

        return note

    with ExitStack() as stack:
        for layer, block in enumerate(model.layers):
            parts = [part for part in block.modules() if part is not block]
            stack.enter_context(reading_outputs(parts, note_in(layer)))
        _, stream, _ = run_short_prompt(model, PROBE_TOKENS)
    if len(stream) != model.n_layers + 1:
        return [None] * model.n_layers
    whole = [[call for call in each if call[1].numel() == stream[0].numel()] for each in calls]
    return [
        _fitting(model, layer, stream[layer], stream[layer + 1], whole[layer])
        for layer in range(model.n_layers)
    ]


def _fitting(
    model: LanguageModel,
    layer: int,
    before: Tensor,
    after: Tensor,
    calls: Sequence[tuple[nn.Module, Tensor]],
) -> dict[str, Writer] | None:
    """The pair of a block's modules that add up best, if they do to rounding."""
    try:
        attention, mlp = model.attention(layer), model.mlp(layer)
    except ModelError:
        return None
    pairs = list(
        product(
            _candidates(model.layers[layer], attention, mlp, calls),
            _candidates(model.layers[layer], mlp, attention, calls),
        )
    )
    for scaled in (False, True):
        fits = [(_fit(before, after, a[1], m[1], scaled), a[0], m[0]) for a, m in pairs]
        for (error, scales), *modules in sorted(fits, key=lambda fit: fit[0][0])[:1]:
            if error <= 4 * torch.finfo(model.dtype).eps:
                written = zip(SITES, modules, scales, strict=True)
                return {site: Writer(module, scale) for site, module, scale in written}
    return None


def _candidates(
    block: nn.Module,
    sublayer: nn.Module,
    other: nn.Module,
    calls: Sequence[tuple[nn.Module, Tensor]],
) -> Iterator[tuple[nn.Module, Tensor]]:
    """A sublayer, what runs behind it in its block, and what lies within it; with their outputs.

    Of modules that give the same numbers, in whatever shape, only the first, such as an MLP before
    its last projection or its experts.
    """
    children, within = set(block.children()) - {other}, set(sublayer.modules())
    called = [module for module, _ in calls]
    last = max((i for i, module in enumerate(called) if module in within), default=len(called))
    ordered = [
        *(call for call in calls if call[0] is sublayer),
        *(call for call in calls[last + 1 :] if call[0] in children - {sublayer}),
        *(call for call in calls if call[0] in within - {sublayer}),
    ]
    for index, (module, output) in enumerate(ordered):
        earlier = (each.flatten() for _, each in ordered[:index])
        if not any(torch.equal(output.flatten(), each) for each in earlier):
            yield module, output


def _fit(
    before: Tensor, after: Tensor, attention: Tensor, mlp: Tensor, scaled: bool
) -> tuple[float, tuple[float, float]]:
    """How far two outputs are from adding up, as a share of what is added, and their scales."""
    pre, post, a, m = (each.double().cpu().flatten() for each in (before, after, attention, mlp))
    scales = torch.ones(2, dtype=torch.double)
    if scaled:
        scales = torch.linalg.lstsq(torch.stack([a, m], dim=1), (post - pre)[:, None]).solution[
            :, 0
        ]
    a, m = scales[0] * a, scales[1] * m
    size = pre.abs() + post.abs() + a.abs() + m.abs()
    error = float(((post - pre - a - m).abs() / size.clamp(min=1e-30)).max())
    usable = error == error and bool((scales.abs() > 1e-3).all())
    return (error if usable else float("inf")), (float(scales[0]), float(scales[1]))
