"""Provides the sweep engine: many edited versions of a prompt, one pass over a shared prefix.

A cell's row differs from the clean run only from the first block that an edit reaches, and only
from the first edited token on. So all cells of a prompt begin as one row over the tokens after
the shared prefix; a cell becomes a row of its own at the boundary where its first edit lies.
The same holds while decoding: below that boundary, cells that have generated the same tokens
are one row. Every block runs once a step, on the rows that exist there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hopscope.engine.attention import extend, forward_streams
from hopscope.engine.cache import PassPlan, Prefix, StreamCache
from hopscope.engine.clean_run import CleanRun
from hopscope.engine.edits import Cell
from hopscope.engine.memory import _out_of_memory, free_memory
from hopscope.engine.placed_edits import PlacedEdits, regathering
from hopscope.engine.plain import _plain_generate, plain_sweep
from hopscope.engine.read_out import (
    CellOutputs,
    NextToken,
    ReadOut,
    _check_draws,
    _chosen,
    outputs_of,
)
from hopscope.engine.rows import Histories, RowLayout
from hopscope.engine.support import shares_prefixes
from hopscope.models.language_model import LanguageModel

logger = logging.getLogger(__name__)


@torch.no_grad()
def sweep(
    model: LanguageModel,
    ids: Sequence[int],
    cells: Sequence[Cell],
    what: ReadOut,
    *,
    base: Cell = (),
    clean: CleanRun | None = None,
    max_memory: int | None = None,
) -> CellOutputs:
    """Run many edited versions of one prompt; each equals one hooked forward of its own.

    Args:
        model: the model.
        ids: tokens of the prompt.
        cells: for each cell its edits; an empty cell is the prompt with nothing but `base`.
        what: what to read.
        base: edits that are made in every cell, before its own: of two patches in one place the
            cell's counts. Cells share their work up to where their own edits begin.
        clean: the clean run of this prompt, without `base`, if it is there already.
        max_memory: bytes that the rows may take; measured if None.

    Returns:
        The outputs, in the order of the cells.

    Raises:
        UsageError: if an edit does not fit the model or the prompt, or the draws do not fit
            the cells.
    """
    placed, always = (
        [[each.placed(model, len(ids)) for each in cell] for cell in group]
        for group in (cells, [base])
    )
    _check_draws(what, len(cells))
    if not shares_prefixes(model):
        return plain_sweep(model, ids, [[*always[0], *cell] for cell in placed], what)
    first = min((each.first for cell in [*placed, *always] for each in cell), default=len(ids) - 1)
    whole = extend(model, Prefix(), ids) if clean is None else clean.prefix
    suffix = torch.tensor([list(ids[first:])], device=model.device)
    start = np.zeros(len(placed), dtype=np.int64)
    rows = _Rows(model, whole.crop(first), suffix, placed, start, base=always[0])
    return rows.run(what, max_memory)


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    what: ReadOut,
    *,
    shared: Prefix | None = None,
    max_memory: int | None = None,
) -> CellOutputs:
    """Read out unedited prompts that begin with the same prefix, as one padded batch.

    Args:
        model: the model.
        prompts: tokens of each prompt, the shared ones included.
        what: what to read.
        shared: the prefix that all begin with.
        max_memory: bytes that the rows may take; measured if None.
    """
    _check_draws(what, len(prompts))
    if not shares_prefixes(model):
        return _plain_generate(model, prompts, what)
    prefix = shared or Prefix()
    suffixes: dict[tuple[int, ...], int] = {}
    start = [suffixes.setdefault(tuple(ids[len(prefix) :]), len(suffixes)) for ids in prompts]
    longest = max(len(suffix) for suffix in suffixes)
    padding = np.array([longest - len(suffix) for suffix in suffixes])
    padded = [[*suffix[:1] * (longest - len(suffix)), *suffix] for suffix in suffixes]
    rows = torch.tensor(padded, device=model.device)
    no_edits: list[Cell] = [[] for _ in prompts]
    return _Rows(model, prefix, rows, no_edits, np.array(start), padding).run(what, max_memory)


@dataclass
class _Rows:
    """Cells over suffixes of one prefix, run in chunks that fit into memory."""

    model: LanguageModel
    prefix: Prefix
    suffixes: Tensor
    cells: Sequence[Cell]
    start: np.ndarray
    padding: np.ndarray | None = None
    base: Cell = ()

    def run(self, what: ReadOut, max_memory: int | None) -> CellOutputs:
        """Read out all cells; halve the chunk and go on when memory runs out."""
        n_layers = self.model.n_layers
        split = np.array(
            [min((each.boundary for each in cell), default=n_layers + 1) for cell in self.cells],
            dtype=np.int64,
        )
        order = np.lexsort((self.start, split))
        next_token = NextToken.empty(len(self.cells), what)
        tokens: list[tuple[int, ...]] = [()] * len(self.cells)
        size, done = self._chunk_size(what, max_memory), 0
        while done < len(order):
            chunk = order[done : done + size]
            try:
                generated = self._run_chunk(chunk, split[chunk], what, next_token)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if size == 1 or not _out_of_memory(error):
                    raise
                size = max(1, len(chunk) // 2)
                logger.warning("out of memory with %d rows; going on with %d", len(chunk), size)
                continue
            for cell, sequence in zip(chunk, generated, strict=True):
                tokens[cell] = sequence
            done += len(chunk)
        return outputs_of(next_token, tokens)

    def _chunk_size(self, what: ReadOut, max_memory: int | None) -> int:
        budget = free_memory(self.model.device) if max_memory is None else max_memory
        return max(1, budget // self._bytes_a_row(what))

    def _bytes_a_row(self, what: ReadOut) -> int:
        """What one row takes: keys and values, the widest block, two copies of its logits."""
        config, width = self.model.config, torch.finfo(self.model.dtype).bits // 8
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.model.n_heads
        n_tokens = self.suffixes.shape[1]
        states = 2 * self.model.n_layers * heads * head_dim * (n_tokens + what.max_new_tokens)
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        scores = self.model.n_heads * (len(self.prefix) + n_tokens)
        block = n_tokens * (4 * inner + 8 * config.hidden_size + 4 * scores)
        return int((states + block) * width + 2 * config.vocab_size * (width + 4))

    def _run_chunk(
        self, chunk: np.ndarray, split: np.ndarray, what: ReadOut, next_token: NextToken
    ) -> list[tuple[int, ...]]:
        """The generated tokens of some cells, sorted by the boundary where they split off."""
        cache = StreamCache(self.prefix, self.model.n_layers)
        histories = Histories.first(self.start[chunk], split)
        layout = histories.layout(self.model.n_layers, before=None)
        ids, seen = self.suffixes[torch.as_tensor(histories.suffixes)], len(self.prefix)
        cells = [self.cells[index] for index in chunk]
        edits = PlacedEdits.of(self.model, cells, self.base, layout, seen, ids.shape[1])
        logits = self._pass(cache, ids, histories, layout, edits)
        next_token.read(logits, layout.read, chunk, what)
        for step in range(what.max_new_tokens):
            chosen = _chosen(logits, layout.read, chunk[layout.alive], step, what)
            histories = histories.grown(chosen, self.model.end_tokens, what.stop)
            if not len(histories.alive) or step + 1 == what.max_new_tokens:
                break
            layout = histories.layout(self.model.n_layers, before=layout)
            ids = torch.tensor(histories.last, device=ids.device)[:, None]
            logits = self._pass(cache, ids, histories, layout, PlacedEdits())
        return histories.generated

    def _pass(
        self,
        cache: StreamCache,
        ids: Tensor,
        histories: Histories,
        layout: RowLayout,
        edits: PlacedEdits,
    ) -> Tensor:
        """The logits (row, vocabulary) after the next tokens of each row."""
        entries, parents = layout.on(self.model.device)
        padding = None  # only unedited cells, which never split, have any
        if self.padding is not None and self.padding.any():
            padding = torch.as_tensor(self.padding[histories.suffixes]).to(self.model.device)
        plan = PassPlan(parents, padding, edits.blocked)
        with regathering(self.model, layout, entries, edits):
            return forward_streams(self.model, cache, ids, plan)
