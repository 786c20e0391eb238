"""Provides TunedLens: a logit lens with a learned translator for each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hopscope.errors import UsageError

from .probe import check_acts, check_finite, check_labels
from .translating_lens import TranslatingLens, check_sizes


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


class TunedLens(TranslatingLens):
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

    kind = "TunedLens"
    setting_names = ("n_layers", "d_model", "rank", "softcap")

    def __init__(
        self,
        norm: nn.Module,
        unembedding: nn.Module,
        n_layers: int,
        d_model: int,
        rank: int | None = None,
        softcap: float | None = None,
    ):
        check_sizes(norm, n_layers, d_model)
        if rank is not None and not 1 <= rank <= d_model:
            raise UsageError(f"rank={rank}; give 1 to d_model={d_model}, or None for a full matrix")
        translators = [Translator(d_model, rank) for _ in range(n_layers)]
        super().__init__(norm, unembedding, translators, d_model, softcap)
        self.matrix_rank = rank

    @property
    def settings(self) -> dict[str, int | float | None]:
        """The settings by name, as JSON."""
        return {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "rank": self.matrix_rank,
            "softcap": self.logit_lens.softcap,
        }

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
