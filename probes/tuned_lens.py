"""Provides TunedLens: a logit lens with a learned translator for each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hopscope.errors import UsageError

from .logit_lens import LogitLens
from .probe import check_acts, check_finite, check_labels
from .probe_files import fill, read_probe, write_probe


class Translator(nn.Module):
    """An affine map `h + A h + b` of the states of one layer in float32, initially the identity.

    Args:
        d_model: width of the residual stream.
        rank: rank of A; None for a full matrix.
    """

    def __init__(self, d_model: int, rank: int | None = None):
        super().__init__()
        self.down = None if rank is None else _zeros(rank, d_model)
        self.up = _zeros(d_model, rank or d_model)
        self.bias = _zeros(d_model)

    def forward(self, states: Tensor) -> Tensor:
        """Return translated states of the same shape (..., d_model), in at least float32."""
        states = states.to(self.up.device)
        inputs = states.to(self.up.dtype)
        if self.down is not None:
            inputs = functional.linear(inputs, self.down)
        return states + functional.linear(inputs, self.up, self.bias)

    @torch.no_grad()
    def restart(self, generator: torch.Generator) -> None:
        """Reset the map to the identity for training; `generator` initialises a low-rank factor."""
        for parameter in self.parameters():
            parameter.zero_()
        if self.down is not None:
            # If both factors were zero, neither would get a gradient.
            rank, d_model = self.down.shape
            random = torch.randn(rank, d_model, generator=generator)
            self.down.copy_(random / math.sqrt(d_model))


class TunedLens(nn.Module):
    """Maps the states of each layer to logits through a learned affine translator.

    Tuned lens (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the
    Tuned Lens", section 3): `W_U · norm(h + A h + b)` with A and b for each layer, trained so that
    each layer predicts what the last layer predicts. Before `fit` it equals the logit lens.

    The norm and the unembedding are not changed, and are not saved. Translators are on the device
    of the unembedding and compute in float32, regardless of the dtype of the model.

    Args:
        norm: the final norm.
        unembedding: the map from normalised states to logits.
        n_layers: number of layers.
        d_model: width of the residual stream.
        rank: rank of A, for small files (2 · rank · d_model numbers per layer); None for a full
            matrix (d_model²).
        softcap: soft cap of the logits, in families that have one (Gemma 2).

    Raises:
        UsageError: if a size is not positive, if the rank exceeds d_model, or if the norm has
            weights of another size.

    Example:
        >>> norm, unembedding = nn.LayerNorm(4), nn.Linear(4, 10, bias=False)
        >>> lens = TunedLens(norm, unembedding, n_layers=3, d_model=4)
        >>> acts = torch.randn(8, 3, 4)
        >>> lens.fit(acts, epochs=1)(acts).shape
        torch.Size([8, 3, 10])
        >>> lens(acts[:, 1], layer=1).shape
        torch.Size([8, 10])
    """

    def __init__(
        self,
        norm: nn.Module,
        unembedding: nn.Module,
        n_layers: int,
        d_model: int,
        rank: int | None = None,
        softcap: float | None = None,
    ):
        super().__init__()
        _check_sizes(norm, n_layers, d_model, rank)
        self.n_layers, self.d_model, self.matrix_rank = n_layers, d_model, rank
        self.logit_lens = LogitLens(norm, unembedding, softcap)
        self.translators = nn.ModuleList(Translator(d_model, rank) for _ in range(n_layers))
        devices = (p.device for p in unembedding.parameters() if not p.is_meta)
        self.translators.to(next(devices, torch.device("cpu")))

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

    @torch.enable_grad()
    def fit(
        self,
        acts: Tensor,
        labels: Tensor | None = None,
        *,
        epochs: int = 20,
        batch_size: int = 64,
        lr: float | None = None,
        weight_decay: float = 1e-2,
        seed: int = 0,
        progress: Callable[[int, int, float], object] | None = None,
    ) -> Self:
        """Train the translators from the identity, with AdamW and a linearly decaying rate.

        Without labels, each layer learns to match the prediction of the logit lens at the last
        layer, which is the model's own prediction (Kullback-Leibler divergence, section 3.1 of the
        paper); the translator of the last layer stays the identity. With labels, all layers learn
        the labels (cross-entropy). Logits are in memory for one batch of one layer at a time.

        Args:
            acts: residual stream after each block, shape (n, layer, d_model).
            labels: token ids, integers of shape (n,), or None.
            epochs: number of passes over the rows.
            batch_size: rows per step.
            lr: initial learning rate. None for 0.5 / d_model, or 2 / d_model with a low rank; the
                rate scales with 1 / d_model because a step moves all d_model coordinates.
            weight_decay: weight decay, which pulls the translators towards the identity.
            seed: seed of the order of rows and of the low-rank factors.
            progress: called after each step with the number of steps done, the total number of
                steps, and the loss in nats, averaged over the trained layers.

        Returns:
            The lens itself.

        Raises:
            UsageError: if a shape or dtype is wrong, if a state is not finite, or if there is
                nothing to train.
        """
        self._check_training(acts, labels)
        generator = torch.Generator().manual_seed(seed)
        for translator in self.translators:
            cast(Translator, translator).restart(generator)
        trained = range(self.n_layers if labels is not None else self.n_layers - 1)
        parameters = [p for layer in trained for p in self.translators[layer].parameters()]
        if lr is None:
            lr = (0.5 if self.matrix_rank is None else 2.0) / self.d_model
        optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
        steps = epochs * math.ceil(len(acts) / batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: 1 - done / steps)
        batches = _batches(len(acts), batch_size, epochs, generator)
        for done, rows in enumerate(batches, start=1):
            tokens = None if labels is None else labels[rows.to(labels.device)]
            loss = self._set_gradients(acts[rows.to(acts.device)], tokens, trained)
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress(done, steps, loss)
        return self

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
        settings = {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "rank": self.matrix_rank,
            "softcap": self.logit_lens.softcap,
        }
        return write_probe(path, "TunedLens", self.translators.state_dict(), settings, dtype)

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
        tensors, settings = read_probe(
            path, "TunedLens", ("n_layers", "d_model", "rank", "softcap")
        )
        lens = cls(norm, unembedding, **settings)
        fill(lens.translators, tensors, path)
        return lens

    def _set_gradients(
        self, states: Tensor, tokens: Tensor | None, trained: Sequence[int]
    ) -> float:
        """Set the gradients of the translators; return the mean loss over the trained layers."""
        with torch.no_grad():
            target = self.logit_lens(states[:, -1]).float().log_softmax(dim=-1)
        losses = []
        for layer in trained:
            loss = _loss(self(states[:, layer], layer=layer).float(), target, tokens)
            parameters = list(self.translators[layer].parameters())
            # backward() would also leave gradients in the weights of the model.
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            losses.append(loss.detach())
        return torch.stack(losses).mean().item()

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

    def _check_training(self, acts: Tensor, labels: Tensor | None) -> None:
        """Check the arguments of `fit`."""
        check_acts(acts)
        self._check_states(acts, None)
        check_finite(acts)
        if labels is not None:
            check_labels(labels, len(acts))
        elif self.n_layers == 1:
            raise UsageError(
                "a lens of one layer cannot be fitted without labels; give labels, or more layers"
            )


def _check_sizes(norm: nn.Module, n_layers: int, d_model: int, rank: int | None) -> None:
    if min(n_layers, d_model) < 1:
        raise UsageError(f"n_layers={n_layers} and d_model={d_model} must be at least 1")
    if rank is not None and not 1 <= rank <= d_model:
        raise UsageError(f"rank={rank}; give 1 to d_model={d_model}, or None for a full matrix")
    weight = getattr(norm, "weight", None)
    if isinstance(weight, Tensor) and weight.shape != (d_model,):
        raise UsageError(
            f"the norm has weights of shape {tuple(weight.shape)}, and d_model={d_model}; "
            "give the final norm and the d_model of the same model"
        )


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float32))


def _batches(n: int, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the row indices of each step, with a new order in each epoch."""
    for _ in range(epochs):
        yield from torch.split(torch.randperm(n, generator=generator), batch_size)


def _loss(logits: Tensor, target: Tensor, tokens: Tensor | None) -> Tensor:
    """Return the mean loss over rows in nats: cross-entropy of tokens, or else KL to the target."""
    if tokens is not None:
        return functional.cross_entropy(logits, tokens.to(logits.device, torch.long))
    logprobs = logits.log_softmax(dim=-1)
    return functional.kl_div(logprobs, target, reduction="batchmean", log_target=True)
