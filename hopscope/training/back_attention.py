"""Provides BackAttention: a small trained attention from a low layer to the states of a higher one.

Yu et al. 2025, "Back Attention: Understanding and Enhancing Multi-Hop Reasoning in Large Language
Models". A frozen model reads a prompt twice; in the second pass each token of a low layer also
attends to the states that a higher layer had in the first, of later tokens, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hopscope.engine.attention import forward_streams
from hopscope.engine.cache import Prefix, StreamCache
from hopscope.engine.hooks import rewriting_residual
from hopscope.engine.support import shares_prefixes
from hopscope.models.evaluation import evaluating
from hopscope.models.language_model import LanguageModel
from hopscope.training.fit import torch_seed


class BackAttention(nn.Module):
    """One head of attention from a layer's states to offered ones; it begins by adding nothing.

    Queries, keys and values are of `rank` coordinates, read off states of mean square 1, and what
    is added is in proportion to the state's own root mean square, so that it learns alike in
    layers and models of any scale.

    Args:
        d_model: width of the states.
        rank: width of the head; there are `4 * d_model * rank` parameters.
        later: whether a token attends to later tokens, too.
        seed: of the initial weights.
    """

    def __init__(self, d_model: int, rank: int, *, later: bool, seed: int) -> None:
        super().__init__()
        self.later = later
        with torch_seed(torch.device("cpu"), seed), torch.device("cpu"):
            self.query, self.key, self.value = (
                nn.Linear(d_model, rank, bias=False) for _ in range(3)
            )
            self.output = nn.Linear(rank, d_model, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(
        self,
        hidden: Float[Tensor, "row token d_model"],
        offered: Float[Tensor, "row token d_model"],
    ) -> Float[Tensor, "row token d_model"]:
        """What is added to the states of a layer.

        Args:
            hidden: the layer's states.
            offered: the states that are attended to, of the same tokens.
        """
        own, theirs = (
            functional.rms_norm(each.float(), each.shape[-1:]) for each in (hidden, offered)
        )
        read = functional.scaled_dot_product_attention(
            self.query(own), self.key(theirs), self.value(theirs), is_causal=not self.later
        )
        scale = hidden.float().square().mean(dim=-1, keepdim=True).sqrt()
        added: Tensor = (scale * self.output(read)).to(hidden.dtype)
        return added


@dataclass(frozen=True)
class AlikePrompts:
    """Prompts of equal length that begin with the same demonstrations.

    Attributes:
        prefix: keys and values of the demonstrations.
        ids: the tokens after them, shape (row, token).
        states: what a higher layer has there in the unedited model, shape (row, token, d_model).
    """

    prefix: Prefix
    ids: Int[Tensor, "row token"]
    states: Float[Tensor, "row token d_model"]

    def __getitem__(self, rows: Sequence[int]) -> AlikePrompts:
        """Some of the prompts."""
        return replace(self, ids=self.ids[list(rows)], states=self.states[list(rows)])

    def __len__(self) -> int:
        return len(self.ids)


def next_logits(
    model: LanguageModel,
    prompts: AlikePrompts,
    module: BackAttention | None = None,
    layer: int = 0,
    *,
    higher: bool = True,
) -> Float[Tensor, "row vocabulary"]:
    """Logits of the token after each prompt, with gradients for the module alone.

    Args:
        model: the frozen model.
        prompts: the prompts.
        module: what is added to the residual stream after block `layer`; None for nothing.
        layer: a block.
        higher: whether the module attends to the prompts' `states`, or to those of `layer` itself.
    """

    def rewrite(boundary: int, hidden: Tensor) -> Tensor | None:
        if module is None or boundary != layer + 1:
            return None
        device = module.output.weight.device  # the blocks of a large model lie on several
        offered = prompts.states if higher else hidden
        added: Tensor = module(hidden.to(device), offered.to(device))
        return hidden + added.to(hidden.device)

    with evaluating(model.hf), rewriting_residual(model, rewrite):
        n_tokens = len(prompts.prefix) + prompts.ids.shape[1]
        if shares_prefixes(model, n_tokens):
            cache = StreamCache(prompts.prefix, model.n_layers)
            return forward_streams(model, cache, prompts.ids)
        logits: Tensor = model.forward(input_ids=prompts.ids, use_cache=False).logits
        return logits[:, -1]
