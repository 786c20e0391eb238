"""Provides read(): prompts under masks; what prompts have in common is computed once.

What is computed of a segment (the instruction, a document, the question) depends on its tokens, on
what they see, and on how far away that lies. Segments in which all of this is the same are
computed once: under a causal mask the documents with which several orders begin (a prefix tree),
under a block mask each document, wherever it stands, its keys turned to the new place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hopscope.engine.attention import forward_streams
from hopscope.engine.cache import MaskedCache, PassPlan
from hopscope.engine.masked.store import Openings, _Answer, _Batch, _passes, _Row, _Store
from hopscope.engine.masked.units import _Plan
from hopscope.engine.memory import free_memory
from hopscope.engine.plain import plain_read
from hopscope.engine.read_out import (
    NextToken,
    Readings,
    ReadOut,
    Version,
    grown,
    outputs_of,
)
from hopscope.engine.support import shares_prefixes
from hopscope.errors import ModelError, UsageError
from hopscope.models.language_model import LanguageModel


@torch.no_grad()
def read(
    model: LanguageModel,
    versions: Sequence[Version],
    what: ReadOut,
    *,
    attention: bool = False,
    openings: Openings | None = None,
    max_memory: int | None = None,
) -> Readings:
    """Read prompts under masks: prefill with the mask, and decode after it, causally.

    What is generated sees of the prompt what the prompt's last token sees. Equal to
    `plain_read`, a masked forward of its own for each version, to float error.

    Args:
        model: the model.
        versions: the prompts; those of one question share the most.
        what: what to read.
        attention: also read how much attention goes to each segment.
        openings: keeps what was computed of instructions and demonstrations from call to call.
        max_memory: bytes that the rows may take; measured if None.

    Raises:
        ModelError: if attention is asked of a family whose attention cannot be replaced.
        UsageError: if a mask lets a token see nothing, or names a layer or head that is not there;
            for drawn tokens.
    """
    _check(model, versions, what)
    if not shares_prefixes(model):
        if attention:
            raise ModelError(f"{model.name} does not let its attention be read here")
        return Readings(plain_read(model, versions, what))
    plans = [_Plan(model, version) for version in versions]
    same: dict[object, list[int]] = {}
    for index, plan in enumerate(plans):
        same.setdefault(index if attention else plan.last.key, []).append(index)
    rows = [_Answer(plans[indices[0]], indices) for indices in same.values()]
    store = _Store(model, free_memory(model.device) if max_memory is None else max_memory)
    if openings is not None:
        store.kept |= openings.kept
    store.fill(_passes(rows, store.kept, keep_tails=not attention))
    if openings is not None:
        openings.take(plans, store.kept)
    return _Decoding(model, store, rows, what, attention).run(len(versions))


def _check(model: LanguageModel, versions: Sequence[Version], what: ReadOut) -> None:
    if what.draws is not None:
        raise UsageError("prompts under masks are decoded greedily: leave draws out")
    for version in versions:
        if max(version.mask.layers, default=0) >= model.n_layers:
            raise UsageError(
                f"the mask {version.mask.name!r} names layer {max(version.mask.layers)}, but the "
                f"model has layers 0 to {model.n_layers - 1}"
            )


def unavoidable_tokens(model: LanguageModel, versions: Sequence[Version]) -> int:
    """How many tokens have to be computed for some prompts, each shared one once.

    Args:
        model: the model.
        versions: the prompts.
    """
    units = {
        unit.key: len(unit.tokens)
        for plan in (_Plan(model, version) for version in versions)
        for unit in (*plan.needed, plan.last)
    }
    return sum(units.values())


@dataclass
class _Decoding:
    """Reads next tokens and generations off rows whose units are there."""

    model: LanguageModel
    store: _Store
    rows: Sequence[_Answer]
    what: ReadOut
    attention: bool

    def run(self, n_versions: int) -> Readings:
        """Decode all rows, and give every version what its row says."""
        next_token = NextToken.empty(n_versions, self.what)
        tokens: list[tuple[int, ...]] = [()] * n_versions
        masses: list[Tensor] = [torch.empty(0)] * n_versions
        for chunk in self.store.chunks(self.rows, self.what.max_new_tokens):
            generated, read = self._decode(chunk, next_token)
            for index, row in enumerate(chunk):
                for version in row.versions:
                    tokens[version] = generated[index]
                    if self.attention:
                        masses[version] = read[index]
        outputs = outputs_of(next_token, tokens)
        return Readings(outputs, tuple(masses) if self.attention else None)

    def _decode(
        self, rows: Sequence[_Answer], next_token: NextToken
    ) -> tuple[list[tuple[int, ...]], list[Tensor]]:
        """Run the tail and last token of each row, and then what it generates."""
        model, what = self.model, self.what
        longest = max(len(row.tokens) for row in rows)
        cache = self.store.cache(
            [row.before for row in rows],
            longest + what.max_new_tokens,
            growing=True,
            record_patterns=self.attention,
        )
        n_before = cache.n_seen()
        cells = np.array([version for row in rows for version in row.versions])
        of_row = np.repeat(np.arange(len(rows)), [len(row.versions) for row in rows])
        batch = _Batch.of(model, rows, n_before)
        ids, plan = batch.ids, batch.plan
        member = _member(rows, n_before).to(model.device) if self.attention else None
        generated: list[list[int]] = [[] for _ in rows]
        open_rows = set(range(len(rows)))
        masses: list[Tensor] = []
        for step in range(max(1, what.max_new_tokens + self.attention)):
            if step:
                plan = _one_more(plan)
            logits = forward_streams(model, cache, ids, plan)
            if step == 0:
                next_token.read(logits, of_row, cells, what)
            if member is not None:
                masses.append(_masses(cache, member))
            if not open_rows or step == what.max_new_tokens:
                break
            ids = logits.argmax(dim=-1, keepdim=True)
            for row, token in enumerate(ids[:, 0].tolist()):
                if row in open_rows and not grown(model, generated[row], token, what):
                    open_rows.remove(row)
            if not open_rows and not self.attention:
                break
        tokens = [tuple(each) for each in generated]
        return tokens, _by_row(masses, tokens, rows)


def _one_more(plan: PassPlan) -> PassPlan:
    """The pass over the next generated token, which sees what the one before saw, and itself."""
    assert plan.positions is not None, "rows under masks have positions"
    positions = torch.cat([plan.positions, plan.positions[:, -1:] + 1], dim=1)
    grown: dict[int, Tensor | None] = {id(None): None}
    for each in plan.visible:
        if each is not None and id(each) not in grown:
            grown[id(each)] = functional.pad(each[:, :, -1:], (0, 1), value=True)
    return PassPlan(visible=[grown[id(each)] for each in plan.visible], positions=positions)


def _member(rows: Sequence[_Row], n_before: int) -> Tensor:
    """Which segment each key belongs to, as one-hot numbers of shape (row, key, segment)."""
    n_segments = max(len(row.plan.layout.segments) for row in rows)
    member = torch.zeros(len(rows), n_before + 1, n_segments + 1)
    for index, row in enumerate(rows):
        places = np.concatenate([row.places, row.tokens])
        segment = torch.as_tensor(row.plan.layout.segment_of[places])
        keys = torch.arange(n_before + 1 - len(places), n_before + 1)
        member[index, keys, segment] = 1
    return member


def _masses(cache: MaskedCache, member: Tensor) -> Tensor:
    """The attention of the last pass by segment, shape (layer, row, head, segment)."""
    assert cache.patterns is not None
    found = []
    for pattern in cache.patterns.values():
        weights, belongs = pattern[:, :, -1].float(), member.to(pattern.device)
        n_generated = weights.shape[-1] - belongs.shape[1]
        mass = weights[..., : belongs.shape[1]] @ belongs
        if n_generated:
            mass[..., -1] += weights[..., -n_generated:].sum(dim=-1)
        found.append(mass.to(member.device))
    return torch.stack(found)


def _by_row(
    masses: Sequence[Tensor], tokens: Sequence[tuple[int, ...]], rows: Sequence[_Answer]
) -> list[Tensor]:
    """For each row the masses of its last prompt token and of those that it generated."""
    if not masses:
        return []
    stacked = torch.stack(list(masses)).cpu()  # (step, layer, row, head, segment)
    found = []
    for index, row in enumerate(rows):
        n = len(row.plan.layout.segments)
        own = stacked[: 1 + len(tokens[index]), :, index]
        found.append(torch.cat([own[..., :n], own[..., -1:]], dim=-1))
    return found
