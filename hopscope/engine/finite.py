"""Provides check_finite(): what is not a number is named, and is never taken for an answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from hopscope.engine.edits import Cell, Patch
from hopscope.engine.read_out import CellOutputs
from hopscope.errors import ModelError
from hopscope.models.token_model import TokenModel

logger = logging.getLogger(__name__)

Prompt = str | Sequence[int]
SHOWN = 20
"""How many of a prompt's last tokens a message quotes."""


def check_finite(
    model: TokenModel,
    outputs: CellOutputs,
    prompts: Sequence[Sequence[int]],
    cells: Sequence[Cell] = (),
) -> CellOutputs:
    """Refuse prompts whose logits are not finite numbers, and warn of patches that make them so.

    Args:
        model: the model.
        outputs: what was read of each cell.
        prompts: the tokens of each cell's prompt.
        cells: the edits of each; none if the prompts were read as they are.

    Returns:
        The outputs. A cell that is not finite has the last rank there can be, a log-probability
        that is NaN, and generates nothing further.

    Raises:
        ModelError: if the logits of every cell, or of one without a patch, are not finite. There
            is no value that counts as no effect for a knockout, whose effect is a change.
    """
    wrong = (~outputs.finite).nonzero().flatten().tolist()
    if not wrong:
        return outputs
    first = next((index for index in wrong if not cells or not _patched(cells[index])), None)
    if first is not None or len(wrong) == len(outputs.finite):
        refuse_not_finite(model, "logits", prompts[wrong[0] if first is None else first])
    logger.warning(
        "%d of %d patched versions of %r have logits that are not finite numbers, and count as not "
        "answered; the first is %s",
        len(wrong),
        len(cells),
        _ending(model, prompts[wrong[0]]),
        ", ".join(map(str, cells[wrong[0]])),
    )
    return outputs


def _patched(cell: Cell) -> bool:
    return any(isinstance(each, Patch) for each in cell)


def check_states(
    model: TokenModel, states: Tensor, prompts: Sequence[Prompt], what: str = "states"
) -> None:
    """Refuse prompts whose states are not finite numbers.

    Args:
        model: the model.
        states: shape (prompt, ...).
        prompts: the text or the tokens of each prompt.
        what: what the states are called in the message.

    Raises:
        ModelError: if a state of one of them is NaN or infinite.
    """
    finite = states.isfinite().reshape(len(states), -1).all(dim=1)
    if not bool(finite.all()):
        refuse_not_finite(model, what, prompts[int((~finite).nonzero()[0, 0])])


def refuse_not_finite(model: TokenModel, what: str, prompt: Prompt) -> NoReturn:
    """Refuse a prompt after which a model computes no finite numbers.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        f"the {what} of {model.name} in {model.dtype} for the prompt that ends in "
        f"{_ending(model, prompt)!r} are not finite numbers: load it with dtype='float32' or "
        "'bfloat16', or check its weights"
    )


def _ending(model: TokenModel, prompt: Prompt) -> str:
    ids = model.encode(prompt).ids if isinstance(prompt, str) else prompt
    return model.decode(list(ids)[-SHOWN:])
