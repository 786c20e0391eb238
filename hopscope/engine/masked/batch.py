"""Provides batches of rows that run parts of prompts under masks, padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hopscope.engine.cache import PassPlan
from hopscope.engine.finite import check_finite
from hopscope.engine.masked.prompt import DecodedRow, PromptRow, by_layer
from hopscope.engine.memory import in_chunks, row_bytes
from hopscope.engine.read_out import CellOutputs, Readings, ReadOut
from hopscope.engine.work import count
from hopscope.models.token_model import TokenModel

MIN_LENGTH_RATIO = 0.85
"""Rows of a batch are padded to the longest; shorter ones than this share of it wait."""

Row = TypeVar("Row", bound=PromptRow)
Decoded = TypeVar("Decoded", bound=DecodedRow)


@dataclass(frozen=True)
class PaddedBatch:
    """Rows as tensors, padded on the left: what came before, and the rows' own tokens.

    Attributes:
        ids: shape (row, own token).
        positions: position ids, shape (row, key), of what came before and of the own tokens.
        visible: for each block the keys that each own token sees: booleans of shape (row, head
            or 1, own token, key), or None where it is causal. Padding sees itself.
    """

    ids: Tensor
    positions: Tensor
    visible: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, model: TokenModel, rows: Sequence[PromptRow], n_before: int = 0) -> PaddedBatch:
        """Some rows, before whose own tokens there is room for `n_before`, padding included."""
        n_own = max(len(row.tokens) for row in rows)
        positions = torch.zeros(len(rows), n_before + n_own, dtype=torch.long)
        for index, row in enumerate(rows):
            for end, places in ((n_before, row.places), (n_before + n_own, row.tokens)):
                at = torch.as_tensor(row.prompt.positions[places])
                positions[index, end - len(places) : end] = at

        def join(keeps: Sequence[Tensor]) -> Tensor | None:
            seen = padded_masks(keeps, rows, n_before)
            return None if _is_causal(seen) else seen.to(model.device)

        visible = by_layer([row.prompt.masks for row in rows], join)
        ids = padded_ids(rows).to(model.device)
        return cls(ids, positions.to(model.device), visible)

    @property
    def plan(self) -> PassPlan:
        """The pass over the own tokens."""
        return PassPlan(visible=self.visible, positions=self.positions)


def padded_ids(rows: Sequence[PromptRow]) -> Tensor:
    """The ids of each row's own tokens, shape (row, token), its first one in place of padding.

    A pad token would let transformers warn of a missing attention mask.
    """
    n_own = max(len(row.tokens) for row in rows)
    ids = torch.zeros(len(rows), n_own, dtype=torch.long)
    for index, row in enumerate(rows):
        own = torch.as_tensor(row.prompt.ids[row.tokens])
        ids[index] = own[0]
        ids[index, n_own - len(own) :] = own
    return ids


def padded_masks(keeps: Sequence[Tensor], rows: Sequence[PromptRow], n_before: int = 0) -> Tensor:
    """Who sees whom in a batch: booleans of shape (row, head or 1, own token, key)."""
    n_heads, n_own = max(len(keep) for keep in keeps), max(len(row.tokens) for row in rows)
    seen = torch.zeros(len(rows), n_heads, n_own, n_before + n_own, dtype=torch.bool)
    seen[..., n_before:] = torch.eye(n_own, dtype=torch.bool)
    for index, (keep, row) in enumerate(zip(keeps, rows, strict=True)):
        before, own = torch.as_tensor(row.places), torch.as_tensor(row.tokens)
        here = seen[index, :, n_own - len(own) :]
        here[..., n_before - len(before) : n_before] = keep[:, own][:, :, before]
        here[..., n_before + n_own - len(own) :] = keep[:, own][:, :, own]
    return seen


def _is_causal(seen: Tensor) -> bool:
    n_queries, n_keys = seen.shape[-2:]
    causal = torch.ones(n_queries, n_keys, dtype=torch.bool).tril()
    return 1 < n_queries == n_keys and bool((seen == causal).all())


def in_batches(
    model: TokenModel,
    rows: Sequence[Row],
    run: Callable[[Sequence[Row]], None],
    budget: int,
    *,
    n_new: int = 0,
    fused: bool = True,
) -> None:
    """Run rows in batches of about the same length, as many at once as memory allows.

    Args:
        model: the model.
        rows: what is to run, in any order.
        run: runs some of them.
        budget: bytes that a batch may take.
        n_new: how many tokens are to come after each row.
        fused: see `row_bytes`.
    """

    def n_fitting(left: Sequence[Row]) -> int:
        longest, n_before, n, taken = len(left[0].tokens), 0, 0, 0
        for row in left:
            n_before = max(n_before, len(row.places))
            n_keys = n_before + longest + n_new
            needed = (n + 1) * row_bytes(model, longest, n_keys, n_keys, fused=fused)
            if n and (needed > budget or len(row.tokens) < MIN_LENGTH_RATIO * longest):
                break
            n, taken = n + 1, needed
        count(row_bytes=taken)
        return n

    longest_first = sorted(rows, key=lambda row: (-len(row.tokens), -len(row.places)))
    in_chunks(longest_first, run, n_fitting)


Decode = Callable[[Sequence[Decoded], CellOutputs], tuple[list[tuple[int, ...]], list[Tensor]]]
"""Decodes a batch: reads its next tokens; returns generations and attention masses of the rows."""


def decode_in_batches(
    model: TokenModel,
    rows: Sequence[Decoded],
    read_out: ReadOut,
    decode: Decode[Decoded],
    budget: int,
    *,
    attention: bool,
    fused: bool,
) -> Readings:
    """Decode all rows, and give every version what its row says.

    Args:
        model: the model.
        rows: one for all versions that cannot differ.
        read_out: what to read.
        decode: decodes a batch.
        budget: bytes that a batch may take.
        attention: whether it also reads attention masses.
        fused: see `row_bytes`.

    Raises:
        ModelError: if the logits of a version are not finite numbers.
    """
    n_versions = sum(len(row.versions) for row in rows)
    outputs = CellOutputs.empty(n_versions, read_out)
    prompts: list[Sequence[int]] = [()] * n_versions
    tokens: list[tuple[int, ...]] = [()] * n_versions
    masses: list[Tensor] = [torch.empty(0)] * n_versions

    def run(batch: Sequence[Decoded]) -> None:
        for row, generated, read in zip(batch, *decode(batch, outputs), strict=True):
            for version in row.versions:
                tokens[version], masses[version] = generated, read
                prompts[version] = row.prompt.layout.ids

    in_batches(model, rows, run, budget, n_new=read_out.max_new_tokens, fused=fused)
    outputs = check_finite(model, outputs.completed(tokens), prompts)
    return Readings(outputs, tuple(masses) if attention else None)


def segment_membership(rows: Sequence[PromptRow], n_keys: int) -> Tensor:
    """Which segment each of the last keys belongs to, of rows padded on the left.

    Returns:
        One-hot numbers of shape (row, key, segment); the last segment is that of generated tokens.
    """
    n_segments = max(len(row.prompt.layout.segments) for row in rows)
    member = torch.zeros(len(rows), n_keys, n_segments + 1)
    for index, row in enumerate(rows):
        places = np.concatenate([row.places, row.tokens])
        segment = torch.as_tensor(row.prompt.layout.segment_of[places])
        member[index, torch.arange(n_keys - len(places), n_keys), segment] = 1
    return member


def segment_masses(weights: Tensor, member: Tensor) -> Tensor:
    """The attention of each row's newest token by segment, shape (row, head, segment).

    Args:
        weights: of one block, shape (row, head, query, key).
        member: of the keys of the prompt, shape (row, key, segment); those behind are generated.
    """
    newest, belongs = weights[:, :, -1].float(), member.to(weights.device)
    n_prompt = belongs.shape[1]
    mass = newest[..., :n_prompt] @ belongs
    mass[..., -1] += newest[..., n_prompt:].sum(dim=-1)
    return mass.to(member.device)


def masses_by_row(
    steps: Sequence[Tensor], tokens: Sequence[tuple[int, ...]], rows: Sequence[PromptRow]
) -> list[Tensor]:
    """For each row the masses of its first token read and of those that it generated.

    Args:
        steps: for each pass the masses, shape (layer, row, head, segment).
        tokens: what each row generated.
        rows: the rows.

    Returns:
        For each row numbers of shape (token, layer, head, segment), with its own segments and that
        of generated tokens; empty where there is no pass.
    """
    if not steps:
        return [torch.empty(0)] * len(rows)
    stacked = torch.stack(list(steps)).cpu()
    found = []
    for index, (row, generated) in enumerate(zip(rows, tokens, strict=True)):
        n = len(row.prompt.layout.segments)
        own = stacked[: 1 + len(generated), :, index]
        found.append(torch.cat([own[..., :n], own[..., -1:]], dim=-1))
    return found
