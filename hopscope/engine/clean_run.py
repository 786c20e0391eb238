"""Provides clean_run(): the unedited pass over a prompt, with its states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hopscope.engine.attention import extend
from hopscope.engine.cache import Prefix
from hopscope.engine.editing import recording, stacked
from hopscope.engine.finite import check_states
from hopscope.engine.support import shares_prefixes
from hopscope.engine.work import count
from hopscope.errors import UsageError
from hopscope.models.language_model import LanguageModel


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
    """Run a prompt that begins with `shared`, and keep its states after that.

    Raises:
        ModelError: if the states are not finite numbers.
    """
    count(forwards=1)
    into: dict[str, list[Tensor | None]] = {"resid_post": [None] * model.n_layers}
    with recording(model, ["resid_post"], into):
        if shares_prefixes(model, len(ids)):
            prefix, first = extend(model, shared, ids[len(shared) :]), len(shared)
        else:
            model.forward(input_ids=torch.tensor([list(ids)], device=model.device))
            prefix, first = Prefix(), 0
    states = stacked(into["resid_post"], model.device)
    # What is no number in one block is none in those that follow.
    check_states(model, states[:, :, -1], [ids])
    return CleanRun(prefix, states[0], first)
