"""Provides Sampling: from which of the next tokens one is drawn, and how sharply."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hopscope.models.token_model import TokenModel

TOP_K = 50
"""From how many tokens transformers draws where a checkpoint says nothing of it."""


@dataclass(frozen=True)
class Sampling:
    """How logits become the probabilities from which a token is drawn; as they are by default.

    The order is that of transformers: temperature, then the likeliest `top_k`, then `top_p`.

    Attributes:
        temperature: by which logits are divided.
        top_k: only so many of the likeliest tokens; 0 for all.
        top_p: only the likeliest tokens that have this probability together.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def of_checkpoint(cls, model: TokenModel) -> Sampling:
        """What `generate(do_sample=True)` of transformers does with a checkpoint by itself.

        That is the temperature, `top_p` and `top_k` of its `generation_config`, and `top_k` 50
        where it says none. A penalty for repetitions that it may have is not applied.
        """
        told = model.hf.generation_config
        temperature, top_k, top_p = (
            getattr(told, name, None) for name in ("temperature", "top_k", "top_p")
        )
        return cls(
            1.0 if temperature is None else float(temperature),
            TOP_K if top_k is None else int(top_k),
            1.0 if top_p is None else float(top_p),
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probabilities of tokens, shape (row, vocabulary), from logits of that shape."""
        scores = logits.float() / self.temperature
        if self.top_k:
            least = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.top_p < 1.0:
            ordered, places = scores.sort(dim=-1)
            unlikely = torch.softmax(ordered, dim=-1).cumsum(dim=-1) <= 1.0 - self.top_p
            unlikely[:, -1] = False  # one is left at least
            scores = scores.masked_fill(unlikely.scatter(1, places, unlikely), -torch.inf)
        return torch.softmax(scores, dim=-1)
