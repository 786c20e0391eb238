"""Provides what is read of each version of a prompt, and how it is chosen from the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopscope.documents.layout import Layout
from hopscope.errors import UsageError
from hopscope.masks.algebra import Mask
from hopscope.models.token_model import TokenModel


@dataclass(frozen=True)
class Version:
    """A prompt, and who sees whom in it."""

    layout: Layout
    mask: Mask


@dataclass(frozen=True)
class Readings:
    """What was read of each version.

    Attributes:
        outputs: next tokens and generations.
        masses: for each version, if asked for, the attention of single tokens to whole segments,
            shape (token, layer, head, segment). Token 0 is the prompt's last, the others are those
            that were generated; the segments are those of the layout, and what was generated.
    """

    outputs: CellOutputs
    masses: tuple[Float[Tensor, "token layer head segment"], ...] | None = None


def grown(model: TokenModel, generated: list[int], token: int, what: ReadOut) -> bool:
    """Add a token to a generation; whether it goes on."""
    if token in model.end_tokens:
        return False
    generated.append(token)
    return what.stop is None or not what.stop(tuple(generated))


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
