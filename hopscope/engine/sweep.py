"""Provides the sweep engine: many edited versions of a prompt, one pass over a shared prefix.

A cell's row differs from the clean run only from the first block that an edit reaches, and only
from the first edited token on. So all cells of a prompt begin as one row over the tokens after
the shared prefix; a cell becomes a row of its own at the boundary where its first edit lies.
The same holds while decoding: below that boundary, cells that have generated the same tokens
are one row. Every block runs once a step, on the rows that exist there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from hopscope.engine.attention import Prefix, StreamCache, extend, forward_streams
from hopscope.engine.edits import RESIDUAL, Cell, Knockout, Patch
from hopscope.engine.hooks import edit, recording, rewriting, rewriting_residual, stacked
from hopscope.engine.rows import Histories, Layout
from hopscope.errors import UsageError
from hopscope.models.language_model import LanguageModel

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
        track: tokens whose log-probabilities as the next token are kept.
        draws: numbers in [0, 1), shape (cell, max_new_tokens): token `s` of a cell is not the
            likeliest one but drawn from the model's distribution, by inverting its cumulative
            sum at `draws[cell, s]`. So a draw does not depend on which cells run together.
        beside: first tokens of another entity, such as the bridge, read as those of the answer.
    """

    answer_tokens: tuple[int, ...] = ()
    max_new_tokens: int = 0
    stop: Stop | None = None
    top_k: int = 0
    track: tuple[int, ...] = ()
    draws: Tensor | None = None
    beside: tuple[int, ...] = ()


@dataclass(frozen=True)
class CellOutputs:
    """What was read, one entry a cell; tensors are on the CPU.

    Attributes:
        rank: 0-based rank of the best answer token among all next tokens.
        logprob: natural log of its probability.
        tokens: the generated tokens, without the one that ended the text.
        top_tokens: the `top_k` likeliest next tokens, the likeliest first.
        top_logprobs: their log-probabilities.
        tracked: the log-probabilities of the tokens in `track`.
        beside_rank, beside_logprob: as `rank` and `logprob`, of the tokens in `beside`.
    """

    rank: Int[Tensor, " cell"]
    logprob: Float[Tensor, " cell"]
    tokens: tuple[tuple[int, ...], ...]
    top_tokens: Int[Tensor, "cell k"]
    top_logprobs: Float[Tensor, "cell k"]
    tracked: Float[Tensor, "cell token"]
    beside_rank: Int[Tensor, " cell"]
    beside_logprob: Float[Tensor, " cell"]


@dataclass
class NextToken:
    """Collects the read-outs of the first generated position."""

    rank: Tensor
    logprob: Tensor
    top_tokens: Tensor
    top_logprobs: Tensor
    tracked: Tensor
    beside_rank: Tensor
    beside_logprob: Tensor

    @classmethod
    def empty(cls, cells: int, what: ReadOut) -> NextToken:
        return cls(
            torch.full((cells,), -1),
            torch.full((cells,), float("nan")),
            torch.full((cells, what.top_k), -1),
            torch.full((cells, what.top_k), float("nan")),
            torch.full((cells, len(what.track)), float("nan")),
            torch.full((cells,), -1),
            torch.full((cells,), float("nan")),
        )

    def read(self, logits: Tensor, rows: np.ndarray, cells: np.ndarray, what: ReadOut) -> None:
        """Read the logits (rows, vocabulary) into the places of the cells."""
        at, into = torch.as_tensor(rows), torch.as_tensor(cells)
        if not (what.answer_tokens or what.beside or what.top_k or what.track):
            return
        # A few rows at a time stay in a CPU's cache; a GPU is quicker with all at once.
        pieces = torch.split(logits, len(logits) if logits.is_cuda else 16)
        total = torch.cat([torch.logsumexp(piece.float(), dim=-1) for piece in pieces])
        for wanted, rank, logprob in (
            (what.answer_tokens, self.rank, self.logprob),
            (what.beside, self.beside_rank, self.beside_logprob),
        ):
            if wanted:
                best = logits[:, list(wanted)].amax(dim=-1)
                bests = torch.split(best[:, None], len(pieces[0]))
                higher = [(p > b).sum(dim=-1) for p, b in zip(pieces, bests, strict=True)]
                rank[into] = torch.cat(higher).cpu()[at]
                logprob[into] = (best.float() - total).cpu()[at]
        if what.top_k:
            values, tokens = logits.topk(what.top_k, dim=-1)
            self.top_tokens[into] = tokens.cpu()[at]
            self.top_logprobs[into] = (values.float() - total[:, None]).cpu()[at]
        if what.track:
            chosen = logits[:, list(what.track)].float()
            self.tracked[into] = (chosen - total[:, None]).cpu()[at]


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
    if not model.shares_prefixes:
        return plain_sweep(model, ids, [[*always[0], *cell] for cell in placed], what)
    first = min((each.first for cell in [*placed, *always] for each in cell), default=len(ids) - 1)
    whole = extend(model, Prefix(), ids) if clean is None else clean.prefix
    suffix = torch.tensor([list(ids[first:])], device=model.device)
    start = np.zeros(len(placed), dtype=np.int64)
    rows = _Rows(model, whole.crop(first), suffix, placed, start, base=always[0])
    return rows.run(what, max_memory)


def _check_draws(what: ReadOut, n_cells: int) -> None:
    shape = (n_cells, what.max_new_tokens)
    if what.draws is not None and tuple(what.draws.shape) != shape:
        raise UsageError(
            f"draws of shape {tuple(what.draws.shape)} do not fit {n_cells} cells of "
            f"{what.max_new_tokens} new tokens: give one number for each token, shape {shape}"
        )


def _chosen(logits: Tensor, rows: np.ndarray, cells: np.ndarray, step: int, what: ReadOut) -> Any:
    """The next token of each cell, shape (cell,), from the logits (row, vocabulary)."""
    if what.draws is None:
        return np.array(logits.argmax(dim=-1).tolist())[rows]
    cumulative = torch.softmax(logits.float(), dim=-1).cumsum(dim=-1)
    draws = what.draws[torch.as_tensor(cells), step].to(cumulative)[:, None]
    found = [
        torch.searchsorted(cumulative[row], draw, right=True)
        for row, draw in zip(
            torch.split(torch.as_tensor(rows, device=logits.device), 64),
            torch.split(draws, 64),
            strict=True,
        )
    ]
    return torch.cat(found)[:, 0].clamp(max=logits.shape[-1] - 1).cpu().numpy()


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
    if not model.shares_prefixes:
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
        cells = [self.cells[i] for i in chunk]
        cache = StreamCache(self.prefix, self.model.n_layers)
        histories = Histories.first(self.start[chunk], split)
        layout = histories.layout(self.model.n_layers, before=None)
        ids, seen = self.suffixes[torch.as_tensor(histories.suffixes)], len(self.prefix)
        cache.padding = self._padding(histories)
        made = _Placed.of(self.model, cells, self.base, layout, seen, ids.shape[1])
        with _splitting(self.model, cache, layout, made):
            logits = forward_streams(self.model, cache, ids, seen)
        next_token.read(logits, layout.read, chunk, what)
        for step in range(what.max_new_tokens):
            chosen = _chosen(logits, layout.read, chunk[layout.alive], step, what)
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


@dataclass(frozen=True)
class _Placed:
    """The edits of a chunk's cells, gathered by where they are made.

    Attributes:
        patches: by place: rows, tokens, heads and vectors; the rows are counted from the first
            own one, and those of `base`, which are made in every row, come first.
        blocked: by block, the edges that are blocked, of shape (row, head or 1, query, key).
    """

    patches: Mapping[tuple[str, int], list[_Gathered]]
    blocked: Mapping[int, Tensor]

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        cells: Sequence[Cell],
        base: Cell,
        layout: Layout,
        seen: int,
        n_tokens: int,
    ) -> _Placed:
        """Gather the edits of cells whose rows hold `n_tokens` tokens after `seen` ones."""
        everywhere = [(None, each) for each in base]
        own = [(index, each) for index, cell in enumerate(cells) for each in cell]
        patches: dict[tuple[str, int], list[_Gathered]] = {}
        for group in (everywhere, own):
            places: dict[tuple[str, int], dict[Any, tuple[int | None, Patch]]] = {}
            for index, each in group:
                if isinstance(each, Patch):
                    one = (index, each.position, each.head)
                    places.setdefault(each.place, {})[one] = (index, each)
            for place, found in places.items():
                gathered = _Gathered.of(list(found.values()), seen, model.device)
                patches.setdefault(place, []).append(gathered)
        knockouts = [(i, each) for i, each in [*everywhere, *own] if isinstance(each, Knockout)]
        blocked = {
            layer: _blocked(model, layer, knockouts, layout, seen, n_tokens)
            for layer in sorted({layer for _, each in knockouts for layer in each.layers})
        }
        return cls(patches, blocked)

    def make(self, place: tuple[str, int], hidden: Tensor, first_own: int) -> Tensor:
        """Put the vectors of one place into `hidden` (row, token, width); own rows come last."""
        for gathered in self.patches[place]:
            gathered.put(hidden, first_own)
        return hidden


@dataclass(frozen=True)
class _Gathered:
    """Patches that are made in one place; `rows` is None if each is made in every row."""

    rows: Tensor | None
    tokens: Tensor
    heads: Tensor | None
    vectors: Tensor

    @classmethod
    def of(
        cls, found: Sequence[tuple[int | None, Patch]], seen: int, device: torch.device
    ) -> _Gathered:
        rows = [index for index, _ in found if index is not None]
        heads = [patch.head for _, patch in found if patch.head is not None]
        return cls(
            torch.tensor(rows, device=device) if rows else None,
            torch.tensor([patch.position - seen for _, patch in found], device=device),
            torch.tensor(heads, device=device) if heads else None,
            torch.stack([patch.vector.to(device) for _, patch in found]),
        )

    def put(self, hidden: Tensor, first_own: int) -> None:
        tokens, vectors = self.tokens.to(hidden.device), self.vectors.to(hidden)
        rows: Tensor | slice = slice(None)
        if self.rows is not None:
            rows = self.rows.to(hidden.device) + first_own
        if self.heads is None:
            hidden[rows, tokens] = vectors
        else:
            width = vectors.shape[-1]
            by_head = rearrange(hidden, "row token (head d) -> row token head d", d=width)
            by_head[rows, tokens, self.heads.to(hidden.device)] = vectors


def _blocked(
    model: LanguageModel,
    layer: int,
    knockouts: Sequence[tuple[int | None, Knockout]],
    layout: Layout,
    seen: int,
    n_tokens: int,
) -> Tensor:
    """The edges that are blocked in one block, of shape (row, head or 1, query, key)."""
    here = [(index, each) for index, each in knockouts if layer in each.layers]
    n_heads = model.n_heads if any(each.heads is not None for _, each in here) else 1
    n_rows = layout.shared[layer] + layout.own[layer]
    blocked = np.zeros((n_rows, n_heads, n_tokens, seen + n_tokens), dtype=bool)
    for index, each in here:
        rows = slice(None) if index is None else layout.shared[layer] + index
        heads = slice(None) if each.heads is None or n_heads == 1 else list(each.heads)
        edges = np.zeros(blocked.shape[2:], dtype=bool)
        edges[np.ix_(np.array(each.queries) - seen, np.array(each.keys))] = True
        earlier = np.tri(n_tokens, seen + n_tokens, k=seen - 1, dtype=bool)
        blocked[rows, heads] |= edges & earlier
    return torch.as_tensor(blocked).to(model.device)


@contextmanager
def _splitting(
    model: LanguageModel, cache: StreamCache, layout: Layout, made: _Placed | None
) -> Iterator[None]:
    """Regather the rows at each boundary of the next pass, and make the edits."""
    entries, parents = layout.on(model.device)
    cache.parents[:] = parents
    cache.blocked = {} if made is None else made.blocked

    def at_boundary(boundary: int, hidden: Tensor) -> Tensor | None:
        entry = entries[boundary]
        if entry is not None:
            hidden = hidden.index_select(0, entry.to(hidden.device))
        if made is None or (RESIDUAL, boundary) not in made.patches:
            return None if entry is None else hidden
        hidden = hidden if entry is not None else hidden.clone()
        return made.make((RESIDUAL, boundary), hidden, layout.shared[boundary])

    def in_sublayer(place: tuple[str, int], made: _Placed) -> Callable[[Tensor], Tensor]:
        return lambda hidden: made.make(place, hidden.clone(), layout.shared[place[1]])

    with ExitStack() as stack:
        stack.enter_context(rewriting_residual(model, at_boundary))
        for site, layer in () if made is None else made.patches:
            if made is not None and site != RESIDUAL:
                rewrite = in_sublayer((site, layer), made)
                stack.enter_context(rewriting(model, site, layer, rewrite))
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


def outputs_of(next_token: NextToken, tokens: Sequence[tuple[int, ...]]) -> CellOutputs:
    """Next tokens and generations, cell by cell, as outputs."""
    return CellOutputs(
        next_token.rank,
        next_token.logprob,
        tuple(tokens),
        next_token.top_tokens,
        next_token.top_logprobs,
        next_token.tracked,
        next_token.beside_rank,
        next_token.beside_logprob,
    )


def _joined(parts: Sequence[CellOutputs]) -> CellOutputs:
    return CellOutputs(
        torch.cat([part.rank for part in parts]),
        torch.cat([part.logprob for part in parts]),
        tuple(sequence for part in parts for sequence in part.tokens),
        torch.cat([part.top_tokens for part in parts]),
        torch.cat([part.top_logprobs for part in parts]),
        torch.cat([part.tracked for part in parts]),
        torch.cat([part.beside_rank for part in parts]),
        torch.cat([part.beside_logprob for part in parts]),
    )
