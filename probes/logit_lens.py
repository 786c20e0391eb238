"""Provides LogitLens: what a model would say if it stopped at a hidden state."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LogitLens(nn.Module):
    """Reads hidden states with a model's own final norm and unembedding.

    Logit lens (nostalgebraist 2020): `W_U · norm(resid_post[layer])`. The norm is applied exactly
    once, so give it states of the residual stream, not ones that are normalised already.

    Args:
        norm: the final norm.
        unembedding: the map from normalised states to logits.
        softcap: bound of the logits, in families that have one (Gemma 2).

    Example:
        >>> lens = LogitLens(nn.LayerNorm(4), nn.Linear(4, 10, bias=False))
        >>> lens(torch.zeros(2, 3, 4)).shape
        torch.Size([2, 3, 10])
    """

    def __init__(self, norm: nn.Module, unembedding: nn.Module, softcap: float | None = None):
        super().__init__()
        self.norm = norm
        self.unembedding = unembedding
        self.softcap = softcap

    def forward(self, states: Tensor) -> Tensor:
        """Logits, shape (..., vocabulary), of states of shape (..., d_model)."""
        logits: Tensor = self.unembedding(self.norm(states))
        if self.softcap is None:
            return logits
        return torch.tanh(logits / self.softcap) * self.softcap

    @torch.no_grad()
    def rank(self, states: Tensor, tokens: Tensor) -> Tensor:
        """0-based rank of tokens among all.

        Args:
            states: shape (..., d_model).
            tokens: integers, shape (...), or one that broadcasts to it.

        Returns:
            How many tokens have a higher logit, shape (...).
        """
        logits = self(states)
        chosen = logits.gather(-1, tokens.expand(logits.shape[:-1])[..., None])
        ranks: Tensor = (logits > chosen).sum(dim=-1)
        return ranks

    @torch.no_grad()
    def logprob(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Natural log-probability of tokens; arguments as for `rank`."""
        logprobs = torch.log_softmax(self(states).float(), dim=-1)
        return logprobs.gather(-1, tokens.expand(logprobs.shape[:-1])[..., None])[..., 0]
