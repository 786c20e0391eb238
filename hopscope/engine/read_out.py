"""Provides what is read of each version of a prompt, and how it is chosen from the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopscope.documents.layout import Layout
from hopscope.engine.sampling import Sampling
from hopscope.engine.work import count
from hopscope.errors import as_list, of_type, whole_number
from hopscope.masks.algebra import Mask
from hopscope.probes.logit_lens import rank_among


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
    masses: tuple[Float[Tensor, "_token layer head _segment"], ...] | None = None


AS_IT_IS = Sampling()
"""Tokens are drawn from all that the model says."""
Stop = Callable[[tuple[int, ...]], bool]


@dataclass(frozen=True)
class ReadOut:
    """What to read from each cell.

    One token alone is a list of one.

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
        sampling: from which tokens, and how sharply, is drawn where there are `draws`.
        also_rank: first tokens of another entity, such as the bridge, that are ranked as those of
            the answer are.
    """

    answer_tokens: tuple[int, ...] = ()
    max_new_tokens: int = 0
    stop: Stop | None = None
    top_k: int = 0
    track: tuple[int, ...] = ()
    draws: Tensor | None = None
    also_rank: tuple[int, ...] = ()
    sampling: Sampling = AS_IT_IS

    def __post_init__(self) -> None:
        whole_number("max_new_tokens", self.max_new_tokens, least=0)
        whole_number("top_k", self.top_k, least=0)
        for name in ("answer_tokens", "track", "also_rank"):
            given = as_list(
                getattr(self, name), Integral, name, "model.encode(text).ids gives them"
            )
            tokens = (whole_number(f"each of {name}", each, least=0) for each in given)
            object.__setattr__(self, name, tuple(tokens))
        if self.stop is not None:
            of_type("stop", self.stop, Callable, "a function of the tokens generated so far")  # type: ignore[arg-type]
        if self.draws is not None:
            of_type("draws", self.draws, Tensor, "such as torch.rand(n_cells, max_new_tokens)")
        of_type("sampling", self.sampling, Sampling)

    @property
    def beside(self) -> tuple[int, ...]:
        """What `also_rank` was called in version 0.1."""
        return self.also_rank


def _taking_beside(init: Callable[..., None]) -> Callable[..., None]:
    """The `__init__` of `ReadOut`, which also takes the keyword of version 0.1."""

    @wraps(init)
    def with_old_keyword(self: ReadOut, *args: Any, **given: Any) -> None:
        if "beside" in given:
            given["also_rank"] = given.pop("beside")
        init(self, *args, **given)

    return with_old_keyword


ReadOut.__init__ = _taking_beside(ReadOut.__init__)  # type: ignore[method-assign]


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
        also_rank, also_logprob: as `rank` and `logprob`, of the tokens in `ReadOut.also_rank`.
        finite: whether all logits that were read were finite numbers, up to one that may be -inf.
            If not, the ranks are the size of the vocabulary, which is no token's rank.
    """

    rank: Int[Tensor, " cell"]
    logprob: Float[Tensor, " cell"]
    tokens: tuple[tuple[int, ...], ...]
    top_tokens: Int[Tensor, "cell k"]
    top_logprobs: Float[Tensor, "cell k"]
    tracked: Float[Tensor, "cell token"]
    also_rank: Int[Tensor, " cell"]
    also_logprob: Float[Tensor, " cell"]
    finite: Bool[Tensor, " cell"]

    @property
    def beside_rank(self) -> Tensor:
        """What `also_rank` was called in version 0.1."""
        return self.also_rank

    @property
    def beside_logprob(self) -> Tensor:
        """What `also_logprob` was called in version 0.1."""
        return self.also_logprob

    @classmethod
    def empty(cls, n_cells: int, read_out: ReadOut) -> CellOutputs:
        """Places for what will be read: ranks and tokens of -1, log-probabilities that are NaN."""

        def numbers(*shape: int) -> Tensor:
            return torch.full((n_cells, *shape), float("nan"))

        def indices(*shape: int) -> Tensor:
            return torch.full((n_cells, *shape), -1)

        k, tokens = read_out.top_k, ((),) * n_cells
        tracked = numbers(len(read_out.track))
        return cls(
            indices(),
            numbers(),
            tokens,
            indices(k),
            numbers(k),
            tracked,
            indices(),
            numbers(),
            torch.ones(n_cells, dtype=torch.bool),
        )

    def completed(self, tokens: Sequence[tuple[int, ...]]) -> CellOutputs:
        """The outputs with what each cell has generated, when all is read."""
        forwards = sum(max(1, len(each)) for each in tokens)
        count(cells=len(tokens), forwards=forwards)
        return replace(self, tokens=tuple(tokens))

    def read(self, logits: Tensor, rows: np.ndarray, cells: np.ndarray, read_out: ReadOut) -> None:
        """Read the logits (rows, vocabulary) into the places of the cells."""
        at, into = torch.as_tensor(rows), torch.as_tensor(cells)
        if not (read_out.answer_tokens or read_out.also_rank or read_out.top_k or read_out.track):
            self.finite[into] &= is_finite(logits).cpu()[at]
            return
        # A few rows at a time stay in a CPU's cache; a GPU is quicker with all at once.
        pieces = torch.split(logits, len(logits) if logits.is_cuda else 16)
        total = torch.cat([torch.logsumexp(piece.float(), dim=-1) for piece in pieces])
        finite = total.isfinite()  # just where `is_finite` says so
        self.finite[into] &= finite.cpu()[at]
        total = total.where(finite, torch.nan)
        for wanted, rank, logprob in (
            (read_out.answer_tokens, self.rank, self.logprob),
            (read_out.also_rank, self.also_rank, self.also_logprob),
        ):
            if wanted:
                best = logits[:, list(wanted)].amax(dim=-1)
                bests = torch.split(best, len(pieces[0]))
                ranks = torch.cat([rank_among(p, b) for p, b in zip(pieces, bests, strict=True)])
                rank[into] = ranks.where(finite, logits.shape[-1]).cpu()[at]
                logprob[into] = (best.float() - total).cpu()[at]
        if read_out.top_k:
            values, tokens = logits.topk(read_out.top_k, dim=-1)
            self.top_tokens[into] = tokens.cpu()[at]
            self.top_logprobs[into] = (values.float() - total[:, None]).cpu()[at]
        if read_out.track:
            chosen = logits[:, list(read_out.track)].float()
            self.tracked[into] = (chosen - total[:, None]).cpu()[at]


def is_finite(logits: Tensor) -> Tensor:
    """Whether the logits (row, vocabulary) of each row are numbers; -inf may bar some tokens."""
    return logits.amax(dim=-1).isfinite()
