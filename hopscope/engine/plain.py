"""Provides the plain way: one hooked forward pass for each version of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from hopscope.display.progress import share, tell_done
from hopscope.engine.decoding import Run, greedy
from hopscope.engine.editing import edit, require, same, tried
from hopscope.engine.edits import Cell
from hopscope.engine.finite import check_finite
from hopscope.engine.hooks import masking, probed
from hopscope.engine.read_out import CellOutputs, ReadOut, Version
from hopscope.models.language_model import LanguageModel


@torch.no_grad()
def plain_read(model: LanguageModel, versions: Sequence[Version], read_out: ReadOut) -> CellOutputs:
    """The same as `read`, one masked forward of the whole prompt for each version.

    It is what the engine must equal, and what serves families whose attention cannot be replaced.

    Raises:
        ModelError: if the family does not take its masks as others do.
    """
    check_masks(model)
    runs = (_masked(model, version) for version in versions)
    outputs = _one_by_one(model, read_out, runs, len(versions))
    return check_finite(model, outputs, [version.layout.ids for version in versions])


@torch.no_grad()
def plain_generate(
    model: LanguageModel, prompts: Sequence[Sequence[int]], read_out: ReadOut
) -> CellOutputs:
    """The same as `generate`, one forward pass for each prompt."""
    runs = (_edited(model, ids, []) for ids in prompts)
    return _one_by_one(model, read_out, runs, len(prompts))


@torch.no_grad()
def plain_sweep(
    model: LanguageModel, ids: Sequence[int], cells: Sequence[Cell], read_out: ReadOut
) -> CellOutputs:
    """The same as `sweep`, one hooked forward per cell over the full prompt.

    It is what the engine must equal, and what serves families whose attention cannot be replaced.
    """
    runs = (_edited(model, ids, cell) for cell in cells)
    return _one_by_one(model, read_out, runs, len(cells))


def _one_by_one(
    model: LanguageModel, read_out: ReadOut, runs: Iterable[Run], n_cells: int
) -> CellOutputs:
    """Decode cells, each with passes of its own."""
    outputs = CellOutputs.empty(n_cells, read_out)
    tokens = []
    for i, run in enumerate(runs):
        with share(i / n_cells, (i + 1) / n_cells, in_chunk=n_cells > 1):
            tokens += greedy(model, read_out, outputs, [[i]], run)
            tell_done(1.0)
    return outputs.completed(tokens)


def check_masks(model: LanguageModel) -> None:
    """Refuse masks in families that do not take them as others do, tried once a model.

    Raises:
        ModelError: names the family.
    """
    require(model, "masks", _masks_hold)


def _masks_hold(model: LanguageModel) -> bool:
    """Whether a causal mask of ours changes nothing, and one that hides all else changes it."""
    ids, _, logits = tried(model)
    positions = torch.arange(ids.shape[1], device=model.device)[None]
    seen = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool)

    def under(keep: Tensor) -> Tensor:
        with masking(model, [keep] * model.n_layers, positions):
            output = model.forward(input_ids=ids, position_ids=positions)
        return output.logits  # type: ignore[no-any-return]

    causal, alone = under(seen.tril()), under(seen.tril().triu())
    return same(causal, logits, model.dtype) and not same(alone, logits, model.dtype)


def _masked(model: LanguageModel, version: Version) -> Run:
    """The passes over a prompt under a mask."""
    layout = version.layout
    keeps = [version.mask.keep(layout, layer, model.n_heads) for layer in range(model.n_layers)]
    positions = torch.tensor([layout.positions], device=model.device)
    cache = DynamicCache()  # without a configuration: all keys stay

    def run(newest: Tensor | None) -> Tensor:
        nonlocal keeps, positions
        ids = torch.tensor([layout.ids], device=model.device) if newest is None else newest
        if newest is not None:
            positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
            keeps = [functional.pad(keep[:, -1:], (0, 1), value=True) for keep in keeps]
        at = positions[:, -ids.shape[1] :]
        past = {model.cache_argument: cache}
        with masking(model, keeps, positions):
            output = model.forward(input_ids=ids, position_ids=at, use_cache=True, **past)
        return output.logits[:, -1]  # type: ignore[no-any-return]

    return run


def _edited(model: LanguageModel, ids: Sequence[int], cell: Cell) -> Run:
    """The passes over a prompt with edits, and over what is generated behind it.

    Later passes go on from the model's own cache. Where that does not give what whole passes give
    (`_goes_on`), they are whole, with the edits.
    """
    text = torch.tensor([list(ids)], device=model.device)
    cache: Any = None

    def run(newest: Tensor | None) -> Tensor:
        nonlocal text, cache
        text = text if newest is None else torch.cat([text, newest], dim=1)
        if newest is None or not probed(model, "cached decoding", _goes_on):
            with edit(model, cell, len(ids)):
                output = model.forward(input_ids=text, use_cache=True)
        else:
            output = _step(model, cache, text)
        cache = getattr(output, model.cache_argument, None)
        return output.logits[:, -1]  # type: ignore[no-any-return]

    return run


def _step(model: LanguageModel, cache: Any, text: Tensor) -> Any:
    """The output for the last token of a text, the others of which are in the model's own cache.

    Its position is told: some hybrids do not find it in their cache.
    """
    place = torch.tensor([[text.shape[1] - 1]], device=model.device)
    position = {"position_ids": place} if model.takes_positions else {}
    past = {model.cache_argument: cache}
    return model.forward(input_ids=text[:, -1:], use_cache=True, **position, **past)


def _goes_on(model: LanguageModel) -> bool:
    """Whether a pass over the last token alone, from the model's own cache, gives its logits."""
    ids, _, logits = tried(model)
    output = model.forward(input_ids=ids[:, :-1], use_cache=True)
    cache = getattr(output, model.cache_argument, None)
    return cache is not None and same(_step(model, cache, ids).logits, logits[:, -1:], model.dtype)
