"""Provides the sweep engine: many edited versions of a prompt, one pass over a shared prefix.

A cell's row differs from the clean run only from the first block that an edit reaches, and only
from the first edited token on. So all cells of a prompt begin as one row over the tokens after
the shared prefix; a cell becomes a row of its own at the boundary where its first edit lies.
The same holds while decoding: below that boundary, cells that have generated the same tokens
are one row. Every block runs once a step, on the rows that exist there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopscope.edits import RESIDUAL, Cell, Patch
from hopscope.errors import UsageError
from hopscope.hooks import edit, recording, rewriting_output, rewriting_residual, stacked
from hopscope.models.language_model import LanguageModel
from hopscope.rows import Histories, Layout
from hopscope.streams import Prefix, StreamCache, extend, forward_streams

logger = logging.getLogger(__name__)

Stop = Callable[[tuple[int, ...]], bool]


@dataclass(frozen=True)
class ReadOut:
    """What to read from each cell.

    Attributes:
        answer_tokens: first tokens of the answer's names; rank and log-probability are those of
            the best of them.
        max_new_tokens: how many tokens to generate greedily.
        stop: called with the tokens generated so far, says whether the cell is done.
        top_k: how many of the likeliest next tokens to keep.
    """

    answer_tokens: tuple[int, ...] = ()
    max_new_tokens: int = 0
    stop: Stop | None = None
    top_k: int = 0


@dataclass(frozen=True)
class CellOutputs:
    """What was read, one entry a cell; tensors are on the CPU.

    Attributes:
        rank: 0-based rank of the best answer token among all next tokens.
        logprob: natural log of its probability.
        tokens: the generated tokens, without the one that ended the text.
        top_tokens: the `top_k` likeliest next tokens, the likeliest first.
        top_logprobs: their log-probabilities.
    """

    rank: Int[Tensor, " cell"]
    logprob: Float[Tensor, " cell"]
    tokens: tuple[tuple[int, ...], ...]
    top_tokens: Int[Tensor, "cell k"]
    top_logprobs: Float[Tensor, "cell k"]


@dataclass
class _NextToken:
    """Collects the read-outs of the first generated position."""

    rank: Tensor
    logprob: Tensor
    top_tokens: Tensor
    top_logprobs: Tensor

    @classmethod
    def empty(cls, cells: int, top_k: int) -> _NextToken:
        return cls(
            torch.full((cells,), -1),
            torch.full((cells,), float("nan")),
            torch.full((cells, top_k), -1),
            torch.full((cells, top_k), float("nan")),
        )

    def read(self, logits: Tensor, rows: np.ndarray, cells: np.ndarray, what: ReadOut) -> None:
        """Read the logits (rows, vocabulary) into the places of the cells."""
        at, into = torch.as_tensor(rows), torch.as_tensor(cells)
        if not (what.answer_tokens or what.top_k):
            return
        # A few rows at a time stay in a CPU's cache; a GPU is quicker with all at once.
        pieces = torch.split(logits, len(logits) if logits.is_cuda else 16)
        total = torch.cat([torch.logsumexp(piece.float(), dim=-1) for piece in pieces])
        if what.answer_tokens:
            best = logits[:, list(what.answer_tokens)].amax(dim=-1)
            bests = torch.split(best[:, None], len(pieces[0]))
            higher = [(p > b).sum(dim=-1) for p, b in zip(pieces, bests, strict=True)]
            self.rank[into] = torch.cat(higher).cpu()[at]
            self.logprob[into] = (best.float() - total).cpu()[at]
        if what.top_k:
            values, tokens = logits.topk(what.top_k, dim=-1)
            self.top_tokens[into] = tokens.cpu()[at]
            self.top_logprobs[into] = (values.float() - total[:, None]).cpu()[at]


@dataclass(frozen=True)
class CleanRun:
    """The unedited pass over a prompt.

    Attributes:
        prefix: the whole prompt with its keys and values.
        resid_post: the residual stream after each block at the tokens from `first` on, shape
            (token, layer, d_model).
        first: index of the first token of `resid_post`.
    """

    prefix: Prefix
    resid_post: Float[Tensor, "token layer d_model"]
    first: int

    def state(self, position: int) -> Float[Tensor, "layer d_model"]:
        """The residual stream after each block at one token of the prompt.

        Raises:
            UsageError: if the token lies in the shared prefix, whose states are not kept.
        """
        if position < self.first:
            raise UsageError(
                f"token {position} lies in the few-shot part of the prompt ({self.first} tokens)"
            )
        return self.resid_post[position - self.first]


@torch.no_grad()
def clean_run(model: LanguageModel, ids: Sequence[int], shared: Prefix) -> CleanRun:
    """Run a prompt that begins with `shared`, and keep its states after that."""
    into: dict[str, list[Tensor | None]] = {"resid_post": [None] * model.n_layers}
    with recording(model, ["resid_post"], into):
        if not model.shares_prefixes:
            model.hf(input_ids=torch.tensor([list(ids)], device=model.device))
            return CleanRun(Prefix(), stacked(into["resid_post"], model.device)[0], 0)
        prefix = extend(model, shared, ids[len(shared) :])
    return CleanRun(prefix, stacked(into["resid_post"], model.device)[0], len(shared))


@torch.no_grad()
def sweep(
    model: LanguageModel,
    ids: Sequence[int],
    cells: Sequence[Cell],
    what: ReadOut,
    *,
    clean: CleanRun | None = None,
    max_memory: int | None = None,
) -> CellOutputs:
    """Run many edited versions of one prompt; each equals one hooked forward of its own.

    Args:
        model: the model.
        ids: tokens of the prompt.
        cells: for each cell its patches; an empty cell is the clean prompt.
        what: what to read.
        clean: the clean run of this prompt, if it is there already.
        max_memory: bytes that the rows may take; measured if None.

    Returns:
        The outputs, in the order of the cells.

    Raises:
        UsageError: if a patch does not fit the model or the prompt.
    """
    placed = [
        [patch.placed(model.n_layers, model.d_model, len(ids)) for patch in cell] for cell in cells
    ]
    if not model.shares_prefixes:
        return plain_sweep(model, ids, placed, what)
    first = min((patch.position for cell in placed for patch in cell), default=len(ids) - 1)
    whole = extend(model, Prefix(), ids) if clean is None else clean.prefix
    suffix = torch.tensor([list(ids[first:])], device=model.device)
    rows = _Rows(model, whole.crop(first), suffix, placed, np.zeros(len(placed), dtype=np.int64))
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
    if not model.shares_prefixes:
        return _joined([plain_sweep(model, ids, [[]], what) for ids in prompts])
    prefix = shared or Prefix()
    suffixes: dict[tuple[int, ...], int] = {}
    start = [suffixes.setdefault(tuple(ids[len(prefix) :]), len(suffixes)) for ids in prompts]
    longest = max(len(suffix) for suffix in suffixes)
    padding = np.array([longest - len(suffix) for suffix in suffixes])
    padded = [[*suffix[:1] * (longest - len(suffix)), *suffix] for suffix in suffixes]
    rows = torch.tensor(padded, device=model.device)
    no_edits: list[Cell] = [[] for _ in prompts]
    return _Rows(model, prefix, rows, no_edits, np.array(start), padding).run(what, max_memory)


def plain_sweep(
    model: LanguageModel, ids: Sequence[int], cells: Sequence[Cell], what: ReadOut
) -> CellOutputs:
    """The same as `sweep`, one hooked forward per cell over the full prompt.

    It is what the engine must equal, and what serves families whose attention cannot be replaced.
    """
    next_token = _NextToken.empty(len(cells), what.top_k)
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
            token = int(logits.argmax(dim=-1))
            if not what.max_new_tokens or token in model.end_tokens:
                break
            generated.append(token)
            if what.stop is not None and what.stop(tuple(generated)):
                break
            row = torch.tensor([[token]], device=model.device)
        tokens.append(tuple(generated))
    return _outputs(next_token, tokens)


@dataclass
class _Rows:
    """Cells over suffixes of one prefix, run in chunks that fit into memory."""

    model: LanguageModel
    prefix: Prefix
    suffixes: Tensor
    cells: Sequence[Cell]
    start: np.ndarray
    padding: np.ndarray | None = None

    def run(self, what: ReadOut, max_memory: int | None) -> CellOutputs:
        """Read out all cells; halve the chunk and go on when memory runs out."""
        n_layers = self.model.n_layers
        split = np.array(
            [min((p.boundary for p in cell), default=n_layers + 1) for cell in self.cells],
            dtype=np.int64,
        )
        order = np.lexsort((self.start, split))
        next_token = _NextToken.empty(len(self.cells), what.top_k)
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
        return _outputs(next_token, tokens)

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
        self, chunk: np.ndarray, split: np.ndarray, what: ReadOut, next_token: _NextToken
    ) -> list[tuple[int, ...]]:
        """The generated tokens of some cells, sorted by the boundary where they split off."""
        cells = [self.cells[i] for i in chunk]
        cache = StreamCache(self.prefix, self.model.n_layers)
        histories = Histories.first(self.start[chunk], split)
        layout = histories.layout(self.model.n_layers, before=None)
        ids, seen = self.suffixes[torch.as_tensor(histories.suffixes)], len(self.prefix)
        cache.padding = self._padding(histories)
        with _splitting(self.model, cache, layout, _Placed(cells, seen, ids.device)):
            logits = forward_streams(self.model, cache, ids, seen)
        next_token.read(logits, layout.read, chunk, what)
        for step in range(what.max_new_tokens):
            chosen = np.array(logits.argmax(dim=-1).tolist())[layout.read]
            histories = histories.grown(chosen, self.model.end_tokens, what.stop)
            if not len(histories.alive) or step + 1 == what.max_new_tokens:
                break
            layout = histories.layout(self.model.n_layers, before=layout)
            seen += ids.shape[1]
            ids = torch.tensor(histories.last, device=ids.device)[:, None]
            cache.padding = self._padding(histories)
            with _splitting(self.model, cache, layout, None):
                logits = forward_streams(self.model, cache, ids, seen)
        return histories.generated

    def _padding(self, histories: Histories) -> Tensor | None:
        """Padding before each input row; only unedited cells, which never split, have any."""
        if self.padding is None or not self.padding.any():
            return None
        return torch.as_tensor(self.padding[histories.suffixes]).to(self.model.device)


class _Placed:
    """The patches of a chunk's cells, gathered by where they are made."""

    def __init__(self, cells: Sequence[Cell], seen: int, device: torch.device) -> None:
        self.groups: dict[tuple[str, int], tuple[Tensor, Tensor, Tensor]] = {}
        gathered: dict[tuple[str, int], list[tuple[int, Patch]]] = {}
        for index, cell in enumerate(cells):
            for patch in cell:
                gathered.setdefault(patch.place, []).append((index, patch))
        for where, patches in gathered.items():
            self.groups[where] = (
                torch.tensor([index for index, _ in patches], device=device),
                torch.tensor([patch.position - seen for _, patch in patches], device=device),
                torch.stack([patch.vector.to(device) for _, patch in patches]),
            )

    def make(self, where: tuple[str, int], hidden: Tensor, first_own: int) -> Tensor:
        """`hidden` (rows, tokens, d_model) with the vectors put in; own rows begin at a row."""
        if where in self.groups:
            rows, tokens, vectors = (part.to(hidden.device) for part in self.groups[where])
            hidden[rows + first_own, tokens] = vectors.to(hidden.dtype)
        return hidden


@contextmanager
def _splitting(
    model: LanguageModel, cache: StreamCache, layout: Layout, placed: _Placed | None
) -> Iterator[None]:
    """Regather the rows at each boundary of the next pass, and make the patches."""
    entries, parents = layout.on(model.device)
    cache.parents[:] = parents

    def at_boundary(boundary: int, hidden: Tensor) -> Tensor | None:
        entry = entries[boundary]
        if entry is not None:
            hidden = hidden.index_select(0, entry.to(hidden.device))
        if placed is None or (RESIDUAL, boundary) not in placed.groups:
            return None if entry is None else hidden
        hidden = hidden if entry is not None else hidden.clone()
        return placed.make((RESIDUAL, boundary), hidden, layout.shared[boundary])

    def in_sublayer(place: tuple[str, int], made: _Placed) -> Callable[[Tensor], Tensor]:
        return lambda hidden: made.make(place, hidden.clone(), layout.shared[place[1]])

    with ExitStack() as stack:
        stack.enter_context(rewriting_residual(model, at_boundary))
        for site, layer in () if placed is None else placed.groups:
            if placed is not None and site != RESIDUAL:
                module = model.writer(layer, site)
                stack.enter_context(rewriting_output(module, in_sublayer((site, layer), placed)))
        yield


def free_memory(device: torch.device) -> int:
    """Bytes that a sweep may take: half of what a GPU has free, or 1 GiB of a CPU's memory."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + unused) // 2
    return 2**30


def _out_of_memory(error: RuntimeError) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return True
    return "can't allocate memory" in str(error)


def _outputs(next_token: _NextToken, tokens: Sequence[tuple[int, ...]]) -> CellOutputs:
    return CellOutputs(
        next_token.rank,
        next_token.logprob,
        tuple(tokens),
        next_token.top_tokens,
        next_token.top_logprobs,
    )


def _joined(parts: Sequence[CellOutputs]) -> CellOutputs:
    return CellOutputs(
        torch.cat([part.rank for part in parts]),
        torch.cat([part.logprob for part in parts]),
        tuple(sequence for part in parts for sequence in part.tokens),
        torch.cat([part.top_tokens for part in parts]),
        torch.cat([part.top_logprobs for part in parts]),
    )
