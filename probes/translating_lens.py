"""Provides TranslatingLens: a logit lens that first translates the states of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from hopscope.errors import UsageError

from .logit_lens import LogitLens
from .probe import check_acts, check_labels
from .probe_files import fill, read_probe, write_probe


class TranslatingLens(nn.Module):
    """Maps states to logits by way of a translator of each layer to the basis of the last one.

    The norm and the unembedding are not changed, and are not saved. Translators are on the device
    of the unembedding and compute in float32, regardless of the dtype of the model.

    Attributes:
        kind: name of the lens in files.
        setting_names: names of the settings in files, which are arguments of the class.
        n_layers: number of layers.
        d_model: width of the residual stream.
        logit_lens: the lens of translated states.
        translators: one module a layer, each from states of shape (..., d_model) to the same.

    Raises:
        UsageError: if a size is not positive, or if the norm has weights of another size.
    """

    kind: ClassVar[str]
    setting_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        norm: nn.Module,
        unembedding: nn.Module,
        translators: Sequence[nn.Module],
        d_model: int,
        softcap: float | None = None,
        scale: float = 1.0,
    ):
        super().__init__()
        self.n_layers, self.d_model = len(translators), d_model
        self.logit_lens = LogitLens(norm, unembedding, softcap, scale)
        self.translators = nn.ModuleList(translators)
        devices = (p.device for p in unembedding.parameters() if not p.is_meta)
        self.translators.to(next(devices, torch.device("cpu")))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings by name, as JSON."""
        raise NotImplementedError

    def translate(self, states: Tensor, layer: int | None = None) -> Tensor:
        """Translate states to the basis of the last layer; arguments as for `forward`."""
        self._check_states(states, layer)
        if layer is not None:
            translated: Tensor = self.translators[layer](states)
            return translated
        layers = zip(self.translators, states.unbind(-2), strict=True)
        return torch.stack([translator(h) for translator, h in layers], dim=-2)

    def forward(self, states: Tensor, layer: int | None = None) -> Tensor:
        """Return the logits of states.

        Args:
            states: hidden states of all layers in order, shape (..., layer, d_model); or, with
                `layer`, those of that layer, shape (..., d_model).
            layer: 0-based index of a layer; negative indices count from the end.

        Returns:
            Logits, shape (..., layer, vocabulary), or (..., vocabulary) with `layer`.

        Raises:
            UsageError: if the shape is wrong, or if there is no such layer.
        """
        logits: Tensor = self.logit_lens(self.translate(states, layer))
        return logits

    @torch.no_grad()
    def rank(self, states: Tensor, tokens: Tensor, layer: int | None = None) -> Tensor:
        """Return the rank of tokens in the vocabulary, counted from 0.

        Args:
            states: as for `forward`.
            tokens: token ids of the shape of `states` without d_model, or of a shape that
                broadcasts to it (`tokens[:, None]` for one token per row).
            layer: as for `forward`.

        Returns:
            The number of tokens with a higher logit, in the shape of `states` without d_model.
        """
        return self.logit_lens.rank(self.translate(states, layer), tokens)

    @torch.no_grad()
    def logprob(self, states: Tensor, tokens: Tensor, layer: int | None = None) -> Tensor:
        """Return the log-probability of tokens in nats; arguments as for `rank`."""
        return self.logit_lens.logprob(self.translate(states, layer), tokens)

    @torch.no_grad()
    def score(
        self, acts: Tensor, labels: Tensor, *, layer: int | None = None, batch_size: int = 128
    ) -> Tensor:
        """Return the accuracy: the share of rows whose most likely token is the label.

        Args:
            acts: hidden states, shape (n, layer, d_model), or (n, d_model) with `layer`.
            labels: token ids, integers of shape (n,).
            layer: as for `forward`.
            batch_size: number of rows of one layer whose logits are in memory at once.

        Returns:
            Shape (layer,), or a scalar with `layer`.

        Raises:
            UsageError: if a shape or dtype is wrong.
        """
        check_acts(acts)
        check_labels(labels, len(acts))
        # In batches, because translated states are in float32 and may need twice the memory.
        batches = zip(torch.split(acts, batch_size), torch.split(labels, batch_size), strict=True)
        right = [
            len(rows) * self.logit_lens.score(self.translate(rows, layer), tokens)
            for rows, tokens in batches
        ]
        return torch.stack(right).sum(dim=0) / len(acts)

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write the translators and the settings, without the norm and the unembedding.

        Args:
            path: the file, in safetensors format.
            dtype: floating-point dtype in the file; float32 if None. torch.float16 halves the size.

        Returns:
            The file.

        Raises:
            UsageError: if a number overflows in the dtype, or if the path is a folder.
        """
        return write_probe(path, self.kind, self.translators.state_dict(), self.settings, dtype)

    @classmethod
    def load(cls, path: str | Path, norm: nn.Module, unembedding: nn.Module) -> Self:
        """Load a lens that `save` wrote.

        Args:
            path: the file.
            norm: the final norm of the model that the lens was fitted to.
            unembedding: the unembedding of that model.

        Raises:
            ResultError: if the file does not exist, is damaged, or holds another kind of probe.
            UsageError: if the norm has another size than the lens.
        """
        tensors, settings = read_probe(path, cls.kind, cls.setting_names)
        lens = cls(norm, unembedding, **settings)
        fill(lens.translators, tensors, path)
        return lens

    def _check_states(self, states: Tensor, layer: int | None) -> None:
        if layer is not None and not -self.n_layers <= layer < self.n_layers:
            raise UsageError(
                f"there is no layer {layer}; the lens has layers 0 to {self.n_layers - 1}"
            )
        expected = (self.d_model,) if layer is not None else (self.n_layers, self.d_model)
        if states.shape[-len(expected) :] != expected:
            names = "d_model" if layer is not None else "layer, d_model"
            raise UsageError(
                f"states have shape {tuple(states.shape)}; this lens reads (..., {names}) = "
                f"(..., {', '.join(map(str, expected))})"
                + ("" if layer is not None else "; for states of one layer pass layer=")
            )


def check_sizes(norm: nn.Module, n_layers: int, d_model: int) -> None:
    """Check the sizes of a lens.

    Raises:
        UsageError: if a size is not positive, or if the norm has weights of another size.
    """
    if min(n_layers, d_model) < 1:
        raise UsageError(f"n_layers={n_layers} and d_model={d_model} must be at least 1")
    weight = getattr(norm, "weight", None)
    if isinstance(weight, Tensor) and weight.shape != (d_model,):
        raise UsageError(
            f"the norm has weights of shape {tuple(weight.shape)}, and d_model={d_model}; "
            "give the final norm and the d_model of the same model"
        )
