"""Provides read(): prompts under masks; what prompts have in common is computed once.

What is computed of a segment (the instruction, a document, the question) depends on its tokens, on
what they see, and on how far away that lies. Segments in which all of this is the same are
computed once: under a causal mask the documents with which several orders begin (a prefix tree),
under a block mask each document, wherever it stands, its keys turned to the new place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from hopscope.display.progress import share
from hopscope.engine.attention import forward_streams
from hopscope.engine.cache import PassPlan
from hopscope.engine.decoding import greedy
from hopscope.engine.masked.batch import (
    PaddedBatch,
    decode_in_batches,
    masses_by_row,
    segment_masses,
    segment_membership,
)
from hopscope.engine.masked.store import AnswerRow, PrefixCache, UnitStore, unit_passes
from hopscope.engine.masked.units import DividedPrompt
from hopscope.engine.memory import memory_budget
from hopscope.engine.plain import plain_read
from hopscope.engine.read_out import CellOutputs, Readings, ReadOut, Version
from hopscope.engine.support import shares_prefixes
from hopscope.errors import ModelError, UsageError
from hopscope.models.language_model import LanguageModel


@torch.no_grad()
def read(
    model: LanguageModel,
    versions: Sequence[Version],
    read_out: ReadOut,
    *,
    attention: bool = False,
    prefixes: PrefixCache | None = None,
    max_memory: int | None = None,
) -> Readings:
    """Read prompts under masks: prefill with the mask, and decode after it, causally.

    What is generated sees of the prompt what the prompt's last token sees. Equal to
    `plain_read`, a masked forward of its own for each version, to float error.

    Args:
        model: the model.
        versions: the prompts; those of one question share the most.
        read_out: what to read.
        attention: also read how much attention goes to each segment.
        prefixes: keeps what was computed of instructions and demonstrations from call to call.
        max_memory: bytes that the rows may take; measured if None.

    Raises:
        ModelError: if attention is asked of a family whose attention cannot be replaced.
        UsageError: if a mask lets a token see nothing, or names a layer or head that is not there;
            for drawn tokens.
    """
    _check(model, versions, read_out)
    longest = 1 + max((max(version.layout.positions) for version in versions), default=0)
    if not shares_prefixes(model, longest + read_out.max_new_tokens):
        if attention:
            raise ModelError(f"{model.name} does not let its attention be read here")
        return Readings(plain_read(model, versions, read_out))
    prompts = [DividedPrompt(model, version) for version in versions]
    same: dict[object, list[int]] = {}
    for index, prompt in enumerate(prompts):
        same.setdefault(index if attention else prompt.last.key, []).append(index)
    rows = [AnswerRow(prompts[indices[0]], indices) for indices in same.values()]
    store = UnitStore(model, memory_budget(model, max_memory))
    if prefixes is not None:
        prefixes.give(store, prompts)
    with share(0, 0.5):
        store.fill(unit_passes(rows, store.kept, keep_tails=not attention))
    with share(0.5, 1):
        return decode_in_batches(
            model,
            rows,
            read_out,
            partial(_decode, store, read_out, attention),
            store.budget,
            attention=attention,
            fused=not attention,
        )


def _check(model: LanguageModel, versions: Sequence[Version], read_out: ReadOut) -> None:
    if read_out.draws is not None:
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
        for prompt in (DividedPrompt(model, version) for version in versions)
        for unit in (*prompt.needed, prompt.last)
    }
    return sum(units.values())


def _decode(
    store: UnitStore,
    read_out: ReadOut,
    attention: bool,
    rows: Sequence[AnswerRow],
    outputs: CellOutputs,
) -> tuple[list[tuple[int, ...]], list[Tensor]]:
    """Run the tail and last token of each row, and then what it generates."""
    model, longest = store.model, max(len(row.tokens) for row in rows)
    n_more = longest + read_out.max_new_tokens
    cache = store.cache(rows, n_more, growing=True, record_patterns=attention)
    batch = PaddedBatch.of(model, rows, cache.n_seen())
    n_prompt = cache.n_seen() + longest
    member = segment_membership(rows, n_prompt).to(model.device) if attention else None
    plan, masses = batch.plan, list[Tensor]()

    def run(newest: Tensor | None) -> Tensor:
        nonlocal plan
        plan = plan if newest is None else _one_more(plan)
        logits = forward_streams(model, cache, batch.ids if newest is None else newest, plan)
        if member is not None and cache.patterns is not None:
            found = [segment_masses(weights, member) for weights in cache.patterns.values()]
            masses.append(torch.stack(found))
        return logits

    versions = [row.versions for row in rows]
    tokens = greedy(model, read_out, outputs, versions, run, run_last=attention)
    return tokens, masses_by_row(masses, tokens, rows)


def _one_more(plan: PassPlan) -> PassPlan:
    """The pass over the next generated token, which sees what the one before saw, and itself."""
    assert plan.positions is not None, "rows under masks have positions"
    positions = torch.cat([plan.positions, plan.positions[:, -1:] + 1], dim=1)
    grown: dict[int, Tensor | None] = {id(None): None}
    for each in plan.visible:
        if each is not None and id(each) not in grown:
            grown[id(each)] = functional.pad(each[:, :, -1:], (0, 1), value=True)
    return PassPlan(visible=[grown[id(each)] for each in plan.visible], positions=positions)
