"""Provides greedy decoding: which token comes next, and when a generation ends."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from hopscope.engine.read_out import CellOutputs, ReadOut, Stop
from hopscope.errors import UsageError
from hopscope.models.token_model import TokenModel

Tokens = tuple[int, ...]
NO_TOKEN = -1
"""What is chosen from logits that are not finite: the text ends."""
Run = Callable[[Tensor | None], Tensor]
"""A pass over the prompts (None) or each row's newest token, shape (row, 1); its logits."""


def greedy(
    model: TokenModel,
    read_out: ReadOut,
    outputs: CellOutputs,
    cells: Sequence[Sequence[int]],
    run: Run,
    *,
    run_last: bool = False,
) -> list[Tokens]:
    """Read the next token of each row, and generate until its text ends.

    Args:
        model: the model.
        read_out: what to read.
        outputs: what is read of the first pass.
        cells: for each row the numbers of the cells that it stands for.
        run: runs a pass; returns the logits of each row's last token, shape (row, vocabulary).
        run_last: also run the last generated token.

    Returns:
        The generated tokens of each row, without the one that ended the text.
    """
    numbers = np.array([cell for each in cells for cell in each])
    of_cell = np.repeat(np.arange(len(cells)), [len(each) for each in cells])
    firsts = np.array([each[0] for each in cells])
    generated: list[Tokens] = [()] * len(cells)
    going, newest = list(range(len(cells))), None
    for step in range(max(1, read_out.max_new_tokens + run_last)):
        logits = run(newest)
        if step == 0:
            outputs.read(logits, of_cell, numbers, read_out)
        if not going or step == read_out.max_new_tokens:
            break
        chosen = next_tokens(logits, np.arange(len(cells)), firsts, step, read_out)
        newest = torch.as_tensor(chosen.clip(min=0), device=model.device)[:, None]
        tokens = chosen[going].tolist()
        outputs.finite[numbers[np.isin(of_cell, going) & (chosen[of_cell] == NO_TOKEN)]] = False
        goes_on = grow(generated, going, tokens, model.end_tokens, read_out.stop)
        going = [row for row, goes in zip(going, goes_on, strict=True) if goes]
        if not going and not run_last:
            break
    return generated


def grow(
    generated: list[Tokens],
    cells: Iterable[int],
    chosen: Iterable[int],
    end: Container[int],
    stop: Stop | None,
) -> list[bool]:
    """Add a token to the generation of each cell.

    Args:
        generated: what all cells generated so far; it is changed.
        cells: those that still go on.
        chosen: for each of them the next token.
        end: tokens that end a text, and are not added.
        stop: whether tokens are enough; asked once for the same ones.

    Returns:
        For each of `cells`, whether it goes on.
    """
    goes_on, enough = [], dict[Tokens, bool]()
    for cell, token in zip(cells, chosen, strict=True):
        if token == NO_TOKEN or token in end:
            goes_on.append(False)
            continue
        tokens = generated[cell] = (*generated[cell], token)
        if stop is not None and tokens not in enough:
            enough[tokens] = stop(tokens)
        goes_on.append(not enough.get(tokens, False))
    return goes_on


def check_draws(read_out: ReadOut, n_cells: int) -> None:
    """Refuse draws that do not fit.

    Raises:
        UsageError: if there is not one draw for each token of each cell.
    """
    shape = (n_cells, read_out.max_new_tokens)
    if read_out.draws is not None and tuple(read_out.draws.shape) != shape:
        raise UsageError(
            f"draws of shape {tuple(read_out.draws.shape)} do not fit {n_cells} cells of "
            f"{read_out.max_new_tokens} new tokens: give one number for each token, shape {shape}"
        )


def next_tokens(
    logits: Tensor, rows: np.ndarray, cells: np.ndarray, step: int, read_out: ReadOut
) -> np.ndarray:
    """The next token of each cell, shape (cell,); `NO_TOKEN` where the logits are not finite.

    Args:
        logits: shape (row, vocabulary).
        rows: the row of each cell.
        cells: the number of each cell, by which it is drawn.
        step: how many tokens each has generated.
        read_out: says whether tokens are drawn.
    """
    highest = logits.max(dim=-1)
    likeliest: np.ndarray = (
        highest.indices.where(highest.values.isfinite(), NO_TOKEN).cpu().numpy()[rows]
    )
    if read_out.draws is None:
        return likeliest
    draws = read_out.draws[torch.as_tensor(cells), step]
    drawn = _drawn(read_out.sampling.probabilities(logits), rows, draws).cpu().numpy()
    return np.where(likeliest == NO_TOKEN, NO_TOKEN, drawn)


def _drawn(probabilities: Tensor, rows: np.ndarray, draws: Tensor) -> Tensor:
    """Tokens drawn from rows of probabilities by inverting their sums, shape (cell,)."""
    cumulative = probabilities.cumsum(dim=-1)
    of_cell = torch.as_tensor(rows, device=cumulative.device)
    pieces = zip(
        torch.split(of_cell, 64), torch.split(draws.to(cumulative)[:, None], 64), strict=True
    )
    found = [torch.searchsorted(cumulative[row], draw, right=True) for row, draw in pieces]
    return torch.cat(found)[:, 0].clamp(max=cumulative.shape[-1] - 1)
