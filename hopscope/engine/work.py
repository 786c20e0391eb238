"""Provides counting(): how much the engine computes while a context is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import nn

from hopscope.engine.hooks import reading_outputs
from hopscope.interrupts import interrupt_safe
from hopscope.models.token_model import TokenModel


@dataclass
class Work:
    """What was computed; the short runs that find out what a family can do are not counted.

    Attributes:
        cells: versions of prompts that were read out.
        forwards: passes that one hooked forward pass per version would have taken: one for each
            prompt whose states were read, and for each version one per generated token, at least
            one.
        layer_tokens: tokens times blocks that were run, over all rows.
        logit_rows: tokens whose logits were computed.
        row_bytes: bytes that the rows of the largest batch take, as `memory.row_bytes` has them.
    """

    cells: int = 0
    forwards: int = 0
    layer_tokens: int = 0
    logit_rows: int = 0
    row_bytes: int = 0


_counted: ContextVar[Work | None] = ContextVar("hopscope_work", default=None)


def count(*, cells: int = 0, forwards: int = 0, row_bytes: int = 0) -> None:
    """Count work, where it is counted; see `Work`."""
    work = _counted.get()
    if work is not None:
        work.cells += cells
        work.forwards += forwards
        work.row_bytes = max(work.row_bytes, row_bytes)


@interrupt_safe
def counting(model: TokenModel) -> Iterator[Work]:
    """Count what is computed with a model while the context is open."""
    work, unembedding = Work(), model.hf.get_output_embeddings()  # type: ignore[no-untyped-call]

    def read(module: nn.Module, output: Any) -> None:
        tokens = output.shape[-3:-1].numel()  # of Gemma 3n's streams, which stand in front, one
        if module is unembedding:
            work.logit_rows += tokens
        else:
            work.layer_tokens += tokens

    token = _counted.set(work)
    try:
        with reading_outputs([*model.blocks, unembedding], read):
            yield work
    finally:
        _counted.reset(token)
