"""Provides the plain way: one hooked forward pass for each version of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import DynamicCache

from hopscope.engine.edits import Cell
from hopscope.engine.hooks import edit, masking
from hopscope.engine.read_out import (
    CellOutputs,
    NextToken,
    ReadOut,
    Version,
    _chosen,
    _joined,
    grown,
    outputs_of,
)
from hopscope.models.language_model import LanguageModel


@torch.no_grad()
def plain_read(model: LanguageModel, versions: Sequence[Version], what: ReadOut) -> CellOutputs:
    """The same as `read`, one masked forward of the whole prompt for each version.

    It is what the engine must equal, and what serves families whose attention cannot be replaced.
    """
    next_token = NextToken.empty(len(versions), what)
    tokens = []
    for index, version in enumerate(versions):
        layout = version.layout
        keeps = [version.mask.keep(layout, layer, model.n_heads) for layer in range(model.n_layers)]
        ids = torch.tensor([layout.ids], device=model.device)
        positions = torch.tensor([layout.positions], device=model.device)
        cache, generated = DynamicCache(), list[int]()  # without a configuration: all keys stay
        for step in range(max(1, what.max_new_tokens)):
            with masking(model, keeps, positions):
                output = model.hf(
                    input_ids=ids,
                    position_ids=positions[:, -ids.shape[1] :],
                    use_cache=True,
                    **{model.cache_argument: cache},
                )
            logits = output.logits[:, -1]
            if step == 0:
                next_token.read(logits, np.array([0]), np.array([index]), what)
            if not what.max_new_tokens:
                break
            token = int(logits.argmax(dim=-1))
            if not grown(model, generated, token, what):
                break
            ids = torch.tensor([[token]], device=model.device)
            positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
            keeps = [functional.pad(keep[:, -1:], (0, 1), value=True) for keep in keeps]
        tokens.append(tuple(generated))
    return outputs_of(next_token, tokens)


def _plain_generate(
    model: LanguageModel, prompts: Sequence[Sequence[int]], what: ReadOut
) -> CellOutputs:
    own = [None] * len(prompts) if what.draws is None else [row[None] for row in what.draws]
    return _joined(
        [
            plain_sweep(model, ids, [[]], replace(what, draws=draws))
            for ids, draws in zip(prompts, own, strict=True)
        ]
    )


def plain_sweep(
    model: LanguageModel, ids: Sequence[int], cells: Sequence[Cell], what: ReadOut
) -> CellOutputs:
    """The same as `sweep`, one hooked forward per cell over the full prompt.

    It is what the engine must equal, and what serves families whose attention cannot be replaced.
    """
    next_token = NextToken.empty(len(cells), what)
    tokens = []
    for index, cell in enumerate(cells):
        cache, generated = None, list[int]()
        row = torch.tensor([list(ids)], device=model.device)
        for step in range(max(1, what.max_new_tokens)):
            with edit(model, cell, len(ids)) if step == 0 else ExitStack():
                past: dict[str, Any] = {} if cache is None else {model.cache_argument: cache}
                output = model.hf(input_ids=row, use_cache=True, **past)
            cache, logits = getattr(output, model.cache_argument), output.logits[:, -1]
            if step == 0:
                next_token.read(logits, np.array([0]), np.array([index]), what)
            if not what.max_new_tokens:
                break
            token = int(_chosen(logits, np.array([0]), np.array([index]), step, what)[0])
            if token in model.end_tokens:
                break
            generated.append(token)
            if what.stop is not None and what.stop(tuple(generated)):
                break
            row = torch.tensor([[token]], device=model.device)
        tokens.append(tuple(generated))
    return outputs_of(next_token, tokens)
