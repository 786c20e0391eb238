"""Provides think(): runs a model with continuous thoughts.

At a continuous thought, the input embedding is the last hidden state of the token before it (Hao et
al. 2024, Coconut; Zhu et al. 2025, Reasoning by Superposition).
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
    """The output of a model with thoughts.

    Attributes:
        logits: shape (row, token, vocabulary).
        states: last hidden state of each token after the final norm, shape (row, token, d_model);
            a thought is the state of the token before it.
        attention: attention weights of each block if requested, shape (row, head, query, key).
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
    """Run a model on texts with continuous thoughts; gradients are computed if enabled.

    Args:
        model: the model.
        ids: token ids, shape (row, token), with thoughts at the same positions in all rows.
        thought: id of the token that marks a thought; None for pauses, whose own embedding is
            used.
        attention: whether to return attention weights, which needs eager attention.

    Raises:
        UsageError: if thoughts are at different positions, or at the first.
    """
    hf: Any = model.hf
    at = _thought_positions(ids, thought)
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


def _thought_positions(ids: Tensor, thought: int | None) -> list[int]:
    """Return the positions of the thoughts."""
    if thought is None:
        return []
    is_thought = ids == thought
    if bool((is_thought != is_thought[:1]).any()) or bool(is_thought[:, 0].any()):
        raise UsageError("thoughts must be at the same places in all rows, after some token")
    return is_thought[0].nonzero().flatten().tolist()


def _joined(weights: list[tuple[Tensor, ...]], n: int) -> tuple[Tensor, ...]:
    """Join the attention weights of the pieces into one matrix per block, 0 for later tokens."""
    padded = [
        [torch.nn.functional.pad(each, (0, n - each.shape[-1])) for each in piece]
        for piece in weights
    ]
    return tuple(torch.cat(blocks, dim=2) for blocks in zip(*padded, strict=True))
