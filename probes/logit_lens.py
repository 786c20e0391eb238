"""Provides LogitLens: what a model would say if it stopped at a hidden state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from .probe import check_acts, check_labels
from .probe_files import fill, read_probe, write_probe


class LogitLens(nn.Module):
    """Reads hidden states with a model's own final norm and unembedding.

    Logit lens (nostalgebraist 2020): `W_U · norm(resid_post[layer])`. The norm is applied exactly
    once, so give it states of the residual stream, not ones that are normalised already. States
    are moved to the unembedding's device and dtype, so they may come from a file in another.

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
        logits: Tensor = self.unembedding(self.norm(self._where_it_reads(states)))
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
        ranks: Tensor = (logits > _of_tokens(logits, tokens)).sum(dim=-1)
        return ranks

    @torch.no_grad()
    def logprob(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Natural log-probability of tokens; arguments as for `rank`."""
        return _of_tokens(torch.log_softmax(self(states).float(), dim=-1), tokens)[..., 0]

    def fit(self, acts: Tensor, labels: Tensor | None = None) -> Self:
        """Nothing to learn: the lens as it is."""
        return self

    @torch.no_grad()
    def score(self, acts: Tensor, labels: Tensor, *, batch_size: int = 128) -> Tensor:
        """Share of rows whose likeliest token is the label.

        Args:
            acts: states, shape (n, d_model) or (n, layer, d_model).
            labels: token ids, integers of shape (n,).
            batch_size: rows whose logits are held at once, of one layer.

        Returns:
            A scalar, or shape (layer,) if there is a layer axis.

        Raises:
            UsageError: if a shape or dtype is not as said.
        """
        check_acts(acts)
        check_labels(labels, len(acts))
        layers = acts.unbind(1) if acts.ndim == 3 else [acts]
        scores = torch.stack([self._score(layer, labels, batch_size) for layer in layers])
        return scores if acts.ndim == 3 else scores[0]

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write norm, unembedding and softcap: enough to read states without the model.

        Args:
            path: the file, in safetensors form.
            dtype: floating-point type in the file; the modules' own if None.

        Raises:
            UsageError: if a number does not fit in the dtype, or the path is a folder.
        """
        return write_probe(path, "LogitLens", self.state_dict(), {"softcap": self.softcap}, dtype)

    @classmethod
    def load(cls, path: str | Path, norm: nn.Module, unembedding: nn.Module) -> Self:
        """Read a lens that `save` wrote.

        Args:
            path: the file.
            norm: a module of the same class and size as the saved norm.
            unembedding: the like. Both are copied, then filled from the file, so that no model
                is changed; the copies keep their device and dtype.

        Raises:
            ResultError: if there is no such file, it is damaged, or does not fit the modules.
        """
        tensors, settings = read_probe(path, "LogitLens", ("softcap",))
        lens = cls(copy.deepcopy(norm), copy.deepcopy(unembedding), settings["softcap"])
        fill(lens, tensors, path)
        return lens

    def _where_it_reads(self, states: Tensor) -> Tensor:
        for parameter in self.unembedding.parameters():
            # Offloaded weights lie on "meta" until their own hook fetches them.
            if parameter.is_floating_point() and not parameter.is_meta:
                return states.to(parameter)
        return states

    def _score(self, acts: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        batches = zip(torch.split(acts, batch_size), torch.split(labels, batch_size), strict=True)
        right = [self._hits(batch, tokens) for batch, tokens in batches]
        return torch.cat(right).float().mean()

    def _hits(self, states: Tensor, tokens: Tensor) -> Tensor:
        said: Tensor = self(states).argmax(dim=-1)
        return said == tokens.to(said.device)


def _of_tokens(values: Tensor, tokens: Tensor) -> Tensor:
    """What tokens have among values of shape (..., vocabulary); shape (..., 1)."""
    tokens = tokens.to(values.device)
    return values.gather(-1, tokens.expand(values.shape[:-1])[..., None])
