"""Provides the sweep engine: many edited versions of a prompt, one pass over a shared prefix.

A cell's row differs from the clean run only from the first block that an edit reaches, and only
from the first edited token on. So all cells of a prompt begin as one row over the tokens after
the shared prefix; a cell becomes a row of its own at the boundary where its first edit lies.
The same holds while decoding: below that boundary, cells that have generated the same tokens
are one row. Every block runs once a step, on the rows that exist there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from hopscope.display.progress import share
from hopscope.engine.attention import extend, forward_streams
from hopscope.engine.cache import PassPlan, Prefix, StreamCache
from hopscope.engine.clean_run import CleanRun
from hopscope.engine.decoding import NO_TOKEN, check_draws, next_tokens
from hopscope.engine.editing import check_edits
from hopscope.engine.edits import Cell, Edit, cells_of, edits_of
from hopscope.engine.finite import check_finite
from hopscope.engine.memory import in_chunks, memory_budget, row_bytes
from hopscope.engine.placed_edits import PlacedEdits, regathering
from hopscope.engine.plain import plain_generate, plain_sweep
from hopscope.engine.read_out import CellOutputs, ReadOut
from hopscope.engine.rows import Histories, RowLayout
from hopscope.engine.support import shares_prefixes
from hopscope.engine.work import count
from hopscope.errors import QueryError, as_list, of_type, whole_number
from hopscope.models.language_model import LanguageModel


@torch.no_grad()
def sweep(
    model: LanguageModel,
    ids: Sequence[int],
    cells: Sequence[Cell | Edit] | Edit,
    read_out: ReadOut,
    *,
    base: Cell | Edit = (),
    clean: CleanRun | None = None,
    max_memory: int | None = None,
) -> CellOutputs:
    """Run many edited versions of one prompt; each equals one hooked forward of its own.

    Args:
        model: the model.
        ids: tokens of the prompt, such as `model.encode(text).ids`.
        cells: for each cell its edits, or one alone; an empty cell is the prompt with nothing but
            `base`.
        read_out: what to read.
        base: edits that are made in every cell, before its own: of two patches in one place the
            cell's counts. Cells share their work up to where their own edits begin.
        clean: the clean run of this prompt, without `base`, if it is there already.
        max_memory: bytes that the rows may take; measured if None.

    Returns:
        The outputs, in the order of the cells.

    Raises:
        QueryError: for a prompt without tokens, or with one that the model does not know.
        UsageError: if an edit does not fit the model or the prompt, or the draws do not fit
            the cells.
        ModelError: if the logits of an unedited cell, or of all cells, are not finite numbers.

    Example:
        >>> ids = model.encode("The capital of France is").ids       # doctest: +SKIP
        >>> cells = [[], [hs.Patch(3, -1, vector)]]                  # doctest: +SKIP
        >>> hs.sweep(model, ids, cells, hs.ReadOut(top_k=5))         # doctest: +SKIP
    """
    of_type("model", model, LanguageModel, "load one with hs.load_model")
    of_type("read_out", read_out, ReadOut, "such as hs.ReadOut(max_new_tokens=5)")
    whole_number("top_k", read_out.top_k, most=model.vocab_size)
    ids = check_ids(model, ids)
    check_tokens(model, (*read_out.answer_tokens, *read_out.track, *read_out.also_rank))
    placed, always = (
        [[each.placed(model, len(ids)) for each in cell] for cell in group]
        for group in (cells_of(cells), [edits_of(base, "base")])
    )
    check_draws(read_out, len(placed))
    edited, prompts = [[*always[0], *cell] for cell in placed], [ids] * len(placed)
    check_edits(model, [each for cell in [*placed, *always] for each in cell])
    if not shares_prefixes(model, len(ids) + read_out.max_new_tokens):
        return check_finite(model, plain_sweep(model, ids, edited, read_out), prompts, edited)
    first = min((each.first for cell in [*placed, *always] for each in cell), default=len(ids) - 1)
    whole = extend(model, Prefix(), ids) if clean is None else clean.prefix
    suffix = torch.tensor([list(ids[first:])], device=model.device)
    start = np.zeros(len(placed), dtype=np.int64)
    swept = SweptCells(model, whole.crop(first), suffix, placed, start, base=always[0])
    return check_finite(model, swept.run(read_out, max_memory), prompts, edited)


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    read_out: ReadOut,
    *,
    shared: Prefix | None = None,
    max_memory: int | None = None,
) -> CellOutputs:
    """Read out unedited prompts that begin with the same prefix, as one padded batch.

    Args:
        model: the model.
        prompts: tokens of each prompt, the shared ones included.
        read_out: what to read.
        shared: the prefix that all begin with.
        max_memory: bytes that the rows may take; measured if None.

    Raises:
        ModelError: if the logits of a prompt are not finite numbers.
    """
    check_draws(read_out, len(prompts))
    longest = max(map(len, prompts), default=0) + read_out.max_new_tokens
    if not shares_prefixes(model, longest):
        return check_finite(model, plain_generate(model, prompts, read_out), prompts)
    prefix = shared or Prefix()
    suffixes: dict[tuple[int, ...], int] = {}
    start = [suffixes.setdefault(tuple(ids[len(prefix) :]), len(suffixes)) for ids in prompts]
    longest = max(len(suffix) for suffix in suffixes)
    padding = np.array([longest - len(suffix) for suffix in suffixes])
    padded = [[*suffix[:1] * (longest - len(suffix)), *suffix] for suffix in suffixes]
    rows = torch.tensor(padded, device=model.device)
    no_edits: list[Cell] = [[] for _ in prompts]
    swept = SweptCells(model, prefix, rows, no_edits, np.array(start), padding)
    return check_finite(model, swept.run(read_out, max_memory), prompts)


def check_ids(model: LanguageModel, ids: object) -> tuple[int, ...]:
    """The tokens of a prompt.

    Raises:
        QueryError: if there is none, or one that the model does not know.
    """
    given = ids.tolist() if isinstance(ids, Tensor) else ids
    tokens = as_list(given, Integral, "ids", "model.encode(text).ids gives them", QueryError)
    if not tokens:
        raise QueryError("the prompt has no token; give some text")
    return check_tokens(
        model, [whole_number("each of ids", each, error=QueryError) for each in tokens]
    )


def check_tokens(model: LanguageModel, tokens: Sequence[int]) -> tuple[int, ...]:
    """Some tokens.

    Raises:
        QueryError: if there is one that the model does not know.
    """
    if not all(0 <= each < model.vocab_size for each in tokens):
        raise QueryError(
            f"tokens are numbers from 0 to {model.vocab_size - 1}, as {model.name} has"
        )
    return tuple(tokens)


@dataclass
class SweptCells:
    """Cells over suffixes of one prefix, run in chunks that fit into memory."""

    model: LanguageModel
    prefix: Prefix
    suffixes: Tensor
    cells: Sequence[Cell]
    start: np.ndarray
    padding: np.ndarray | None = None
    base: Cell = ()

    def run(self, read_out: ReadOut, max_memory: int | None) -> CellOutputs:
        """Read out all cells, those that split off at about the same boundary together."""
        n_layers, n_tokens = self.model.n_layers, self.suffixes.shape[1]
        split = np.array(
            [min((each.boundary for each in cell), default=n_layers + 1) for cell in self.cells],
            dtype=np.int64,
        )
        outputs = CellOutputs.empty(len(self.cells), read_out)
        tokens: list[tuple[int, ...]] = [()] * len(self.cells)

        def run(chosen: Sequence[int]) -> None:
            chunk = np.array(chosen)
            generated = self._run_chunk(chunk, split[chunk], read_out, outputs)
            for cell, sequence in zip(chunk, generated, strict=True):
                tokens[cell] = sequence

        kept, keys = n_tokens + read_out.max_new_tokens, len(self.prefix) + n_tokens
        of_row = row_bytes(self.model, n_tokens, kept, keys)
        fitting = memory_budget(self.model, max_memory) // of_row
        count(row_bytes=of_row * max(1, min(fitting, len(self.cells))))
        order: list[int] = np.lexsort((self.start, split)).tolist()
        in_chunks(order, run, lambda _: fitting)
        return outputs.completed(tokens)

    def _run_chunk(
        self, chunk: np.ndarray, split: np.ndarray, read_out: ReadOut, outputs: CellOutputs
    ) -> list[tuple[int, ...]]:
        """The generated tokens of some cells, sorted by the boundary where they split off."""
        cache = StreamCache(self.prefix, self.model.n_layers)
        histories = Histories.first(self.start[chunk], split)
        layout = histories.layout(self.model.n_layers, before=None)
        ids, seen = self.suffixes[torch.as_tensor(histories.suffixes)], len(self.prefix)
        edited = [self.cells[index] for index in chunk]
        edits = PlacedEdits.of(self.model, edited, self.base, layout, seen, ids.shape[1])
        n_tokens, n_new = ids.shape[1], read_out.max_new_tokens
        of_whole = 1 / (n_tokens + n_new)  # a pass takes about as long as it has tokens
        with share(0, n_tokens * of_whole):
            logits = self._pass(cache, ids, histories, layout, edits)
        outputs.read(logits, layout.read, chunk, read_out)
        for step in range(n_new):
            cells = chunk[layout.alive]
            chosen = next_tokens(logits, layout.read, cells, step, read_out)
            outputs.finite[cells[chosen == NO_TOKEN]] = False
            histories = histories.grown(chosen, self.model.end_tokens, read_out.stop)
            if not len(histories.alive) or step + 1 == n_new:
                break
            layout = histories.layout(self.model.n_layers, before=layout)
            ids = torch.tensor(histories.last, device=ids.device)[:, None]
            with share((n_tokens + step) * of_whole, (n_tokens + step + 1) * of_whole):
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
