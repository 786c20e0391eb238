"""Provides LogitLens: the next-token prediction from an intermediate hidden state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from .probe import check_acts, check_labels
from .probe_files import fill, read_probe, write_probe


def rank_among(logits: Tensor, score: Tensor) -> Tensor:
    """Return the rank of a score among logits, counted from 0.

    Args:
        logits: shape (..., vocabulary), or one that broadcasts to it.
        score: the logit that is ranked, shape (...).

    Returns:
        How many logits are not at or below the score, so that NaN counts as higher. For a score
        that is NaN or infinite it is the size of the vocabulary, which is no token's rank.
    """
    n_tokens = logits.shape[-1]
    ranks = n_tokens - (logits <= score[..., None]).sum(dim=-1)
    return torch.where(score.isfinite(), ranks, n_tokens)


class LogitLens(nn.Module):
    """Maps hidden states to logits with the final norm and the unembedding of a model.

    Logit lens (nostalgebraist 2020): `W_U · norm(resid_post[layer])`. States must come from the
    residual stream and must not be normalised, because the lens applies the norm. They are
    converted to the device and dtype of the unembedding.

    Args:
        norm: the final norm.
        unembedding: the map from normalised states to logits.
        softcap: soft cap of the logits, in families that have one (Gemma 2).
        scale: by what logits are multiplied, before any cap (Cohere, Granite).

    Example:
        >>> lens = LogitLens(nn.LayerNorm(4), nn.Linear(4, 10, bias=False))
        >>> lens(torch.zeros(2, 3, 4)).shape
        torch.Size([2, 3, 10])
    """

    def __init__(
        self,
        norm: nn.Module,
        unembedding: nn.Module,
        softcap: float | None = None,
        scale: float = 1.0,
    ):
        super().__init__()
        self.norm = norm
        self.unembedding = unembedding
        self.softcap = softcap
        self.scale = scale

    def forward(self, states: Tensor) -> Tensor:
        """Return logits of shape (..., vocabulary) for states of shape (..., d_model)."""
        logits: Tensor = self.unembedding(self.norm(self._to_unembedding(states)))
        logits = logits if self.scale == 1 else logits * self.scale
        if self.softcap is None:
            return logits
        return torch.tanh(logits / self.softcap) * self.softcap

    @torch.no_grad()
    def rank(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the rank of tokens in the vocabulary, counted from 0.

        Args:
            states: hidden states, shape (..., d_model).
            tokens: token ids of shape (...), or of a shape that broadcasts to it.

        Returns:
            The number of tokens with a higher logit, shape (...). Where the logits are not finite
            numbers it is the size of the vocabulary, which is no token's rank.
        """
        logits = self(states)
        return rank_among(logits, _select_tokens(logits, tokens)[..., 0])

    @torch.no_grad()
    def logprob(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the log-probability of tokens in nats; arguments as for `rank`."""
        return _select_tokens(torch.log_softmax(self(states).float(), dim=-1), tokens)[..., 0]

    def fit(self, acts: Tensor, labels: Tensor | None = None) -> Self:
        """Return the lens unchanged; it has no parameters to fit."""
        return self

    @torch.no_grad()
    def score(self, acts: Tensor, labels: Tensor, *, batch_size: int = 128) -> Tensor:
        """Return the accuracy: the share of rows whose most likely token is the label.

        Args:
            acts: hidden states, shape (n, d_model) or (n, layer, d_model).
            labels: token ids, integers of shape (n,).
            batch_size: number of rows of one layer whose logits are in memory at once.

        Returns:
            A scalar, or shape (layer,) if there is a layer axis.

        Raises:
            UsageError: if a shape or dtype is wrong.
        """
        check_acts(acts)
        check_labels(labels, len(acts))
        layers = acts.unbind(1) if acts.ndim == 3 else [acts]
        scores = torch.stack([self._score(layer, labels, batch_size) for layer in layers])
        return scores if acts.ndim == 3 else scores[0]

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write norm, unembedding, softcap and scale, so that states can be read without the model.

        Args:
            path: the file, in safetensors format.
            dtype: floating-point dtype in the file; that of the modules if None.

        Returns:
            The file.

        Raises:
            UsageError: if a number overflows in the dtype, or if the path is a folder.
        """
        settings = {"softcap": self.softcap, "scale": self.scale}
        return write_probe(path, "LogitLens", self.state_dict(), settings, dtype)

    @classmethod
    def load(cls, path: str | Path, norm: nn.Module, unembedding: nn.Module) -> Self:
        """Load a lens that `save` wrote.

        Args:
            path: the file.
            norm: a module of the same class and size as the saved norm.
            unembedding: a module of the same class and size as the saved unembedding. Both modules
                are copied and then filled from the file; the copies keep their device and dtype.

        Raises:
            ResultError: if the file does not exist, is damaged, or does not fit the modules.
        """
        tensors, settings = read_probe(path, "LogitLens", ("softcap",), {"scale": 1.0})
        copies = copy.deepcopy(norm), copy.deepcopy(unembedding)
        lens = cls(*copies, settings["softcap"], settings["scale"])
        fill(lens, tensors, path)
        return lens

    def _to_unembedding(self, states: Tensor) -> Tensor:
        """Convert states to the device and dtype of the unembedding."""
        for parameter in self.unembedding.parameters():
            # Offloaded weights are on the device "meta" until their hook loads them.
            if parameter.is_floating_point() and not parameter.is_meta:
                return states.to(parameter.device, parameter.dtype)
        return states

    def _score(self, acts: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        batches = zip(torch.split(acts, batch_size), torch.split(labels, batch_size), strict=True)
        right = [self._hits(batch, tokens) for batch, tokens in batches]
        return torch.cat(right).float().mean()

    def _hits(self, states: Tensor, tokens: Tensor) -> Tensor:
        predicted: Tensor = self(states).argmax(dim=-1)
        return predicted == tokens.to(predicted.device)


def _select_tokens(values: Tensor, tokens: Tensor) -> Tensor:
    """Select the values of tokens from shape (..., vocabulary); returns shape (..., 1)."""
    tokens = tokens.to(values.device)
    return values.gather(-1, tokens.expand(values.shape[:-1])[..., None])
