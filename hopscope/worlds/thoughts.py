"""Provides think(): passes in which the model's last state is the embedding of its next token.

Continuous thoughts (Hao et al. 2024, Coconut; Zhu et al. 2025, Reasoning by Superposition).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from hopscope.errors import UsageError
from hopscope.models.language_model import LanguageModel


class Thinking(NamedTuple):
    """What passes with thoughts gave.

    Attributes:
        logits: shape (row, token, vocabulary).
        states: the last state at each token, after the final norm; the one before a thought is
            that thought. Shape (row, token, d_model).
        attention: by block, where it was asked for, shape (row, head, query, key).
    """

    logits: Float[Tensor, "row token vocab"]
    states: Float[Tensor, "row token d_model"]
    attention: tuple[Tensor, ...] = ()


def think(
    model: LanguageModel,
    ids: Int[Tensor, "row token"],
    thought: int | None,
    attention: bool = False,
) -> Thinking:
    """Run texts with thoughts, with gradients where they are on.

    Args:
        model: the model.
        ids: the tokens; thoughts stand at the same places in all rows.
        thought: the token that stands for one; None if its own embedding is meant: a pause.
        attention: keep the attention weights; the model must be in eager attention.

    Raises:
        UsageError: if thoughts stand at different places, or one stands first.
    """
    hf: Any = model.hf
    at = _places(ids, thought)
    embedded = hf.get_input_embeddings()(ids)
    cache = DynamicCache(config=hf.config)
    states: list[Tensor] = []
    weights: list[tuple[Tensor, ...]] = []
    for start, stop in zip([0, *at], [*at, ids.shape[1]], strict=True):
        piece = embedded[:, start:stop]
        if start in at:
            piece = torch.cat([states[-1][:, -1:].to(piece), piece[:, 1:]], dim=1)
        output = hf.base_model(
            inputs_embeds=piece,
            use_cache=True,
            output_attentions=attention,
            **{model.cache_argument: cache},
        )
        states.append(output.last_hidden_state)
        if attention:
            weights.append(output.attentions)
    last = torch.cat(states, dim=1)
    return Thinking(hf.get_output_embeddings()(last), last, _joined(weights, ids.shape[1]))


def _places(ids: Tensor, thought: int | None) -> list[int]:
    """Where the thoughts stand."""
    if thought is None:
        return []
    here = ids == thought
    if bool((here != here[:1]).any()) or bool(here[:, 0].any()):
        raise UsageError("thoughts must stand at the same places in all rows, after some token")
    return here[0].nonzero().flatten().tolist()


def _joined(weights: list[tuple[Tensor, ...]], n: int) -> tuple[Tensor, ...]:
    """The attention weights of the pieces as one matrix a block, zero for later tokens."""
    padded = [
        [torch.nn.functional.pad(each, (0, n - each.shape[-1])) for each in piece]
        for piece in weights
    ]
    return tuple(torch.cat(blocks, dim=2) for blocks in zip(*padded, strict=True))
