"""Provides TunedLens: a logit lens with a learned translator for every layer."""

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
    """An affine map of one layer's states in float32, at first the identity: `h + A h + b`.

    Args:
        d_model: size of a state.
        rank: rank of A; None for a full matrix.
    """

    def __init__(self, d_model: int, rank: int | None = None):
        super().__init__()
        self.down = None if rank is None else _zeros(rank, d_model)
        self.up = _zeros(d_model, rank or d_model)
        self.bias = _zeros(d_model)

    def forward(self, states: Tensor) -> Tensor:
        """Translated states, of the same shape (..., d_model), in float32 at least."""
        states = states.to(self.up.device)
        inputs = states.to(self.up.dtype)
        if self.down is not None:
            inputs = functional.linear(inputs, self.down)
        return states + functional.linear(inputs, self.up, self.bias)

    @torch.no_grad()
    def restart(self, generator: torch.Generator) -> None:
        """Become the identity again, ready to be trained."""
        for parameter in self.parameters():
            parameter.zero_()
        if self.down is not None:
            # With both factors zero, neither would have a gradient.
            rank, d_model = self.down.shape
            random = torch.randn(rank, d_model, generator=generator)
            self.down.copy_(random / math.sqrt(d_model))


class TunedLens(nn.Module):
    """Reads the states of every layer through a learned affine translator, then as LogitLens.

    Tuned lens (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the
    Tuned Lens", section 3): `W_U · norm(h + A h + b)` with an A and a b for each layer, trained
    so that every layer says what the last one says. Before `fit` it is the logit lens.

    The norm and the unembedding stay as they are, and are not saved. Translators lie where the
    unembedding does and compute in float32, whatever the model's dtype.

    Args:
        norm: the final norm.
        unembedding: the map from normalised states to logits.
        n_layers: how many layers the states have.
        d_model: size of a state.
        rank: rank of A, for small files (2 · rank · d_model numbers a layer); None for a full
            matrix (d_model²).
        softcap: bound of the logits, in families that have one (Gemma 2).

    Raises:
        UsageError: if a size is not positive, the rank exceeds d_model, or the norm's weight has
            another size.

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
        """States as the last layer would hold them, of the same shape; arguments as `forward`."""
        self._check_states(states, layer)
        if layer is not None:
            translated: Tensor = self.translators[layer](states)
            return translated
        layers = zip(self.translators, states.unbind(-2), strict=True)
        return torch.stack([translator(h) for translator, h in layers], dim=-2)

    def forward(self, states: Tensor, layer: int | None = None) -> Tensor:
        """Logits of states.

        Args:
            states: shape (..., layer, d_model), all layers in order; with `layer` given, that
                layer's alone, shape (..., d_model).
            layer: 0-based, or counted from the end if negative.

        Returns:
            Logits, shape (..., layer, vocabulary), or (..., vocabulary) with `layer` given.

        Raises:
            UsageError: if the shape is not as said, or there is no such layer.
        """
        logits: Tensor = self.logit_lens(self.translate(states, layer))
        return logits

    @torch.no_grad()
    def rank(self, states: Tensor, tokens: Tensor, layer: int | None = None) -> Tensor:
        """0-based rank of tokens among all.

        Args:
            states: as for `forward`.
            tokens: integers of the shape of states without d_model, or that broadcasts to it
                (one a row for all layers: `tokens[:, None]`).
            layer: as for `forward`.

        Returns:
            How many tokens have a higher logit, shape of states without d_model.
        """
        return self.logit_lens.rank(self.translate(states, layer), tokens)

    @torch.no_grad()
    def logprob(self, states: Tensor, tokens: Tensor, layer: int | None = None) -> Tensor:
        """Natural log-probability of tokens; arguments as for `rank`."""
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
        """Train the translators, from the identity, with AdamW and a rate that falls to zero.

        Without labels each layer learns to say what the logit lens says at the last one, which
        is the model's own prediction (Kullback-Leibler divergence, section 3.1 of the paper; the
        last layer's translator stays the identity). With labels it learns those (cross entropy),
        the last layer too. Logits are held for one batch of one layer at a time.

        Args:
            acts: residual states after each block, shape (n, layer, d_model).
            labels: token ids, integers of shape (n,), or None.
            epochs: passes over the rows.
            batch_size: rows of a step.
            lr: learning rate at the start; None for 0.5 / d_model, or 2 / d_model with a low
                rank. A state has d_model coordinates that one step can move together.
            weight_decay: pull of the translators to the identity.
            seed: of the order of rows, and of the start of low-rank matrices.
            progress: called after each step with steps done, steps in all, and the loss in nats,
                a mean over the trained layers.

        Returns:
            The lens itself.

        Raises:
            UsageError: if a shape or dtype is not as said, a state is not finite, or there is
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
        """Share of rows whose likeliest token is the label.

        Args:
            acts: states, shape (n, layer, d_model); with `layer` given (n, d_model).
            labels: token ids, integers of shape (n,).
            layer: as for `forward`.
            batch_size: rows whose logits are held at once, of one layer.

        Returns:
            Shape (layer,), or a scalar with `layer` given.

        Raises:
            UsageError: if a shape or dtype is not as said.
        """
        check_acts(acts)
        check_labels(labels, len(acts))
        # Rows at a time: translated states are in float32, which may double what is held.
        batches = zip(torch.split(acts, batch_size), torch.split(labels, batch_size), strict=True)
        right = [
            len(rows) * self.logit_lens.score(self.translate(rows, layer), tokens)
            for rows, tokens in batches
        ]
        return torch.stack(right).sum(dim=0) / len(acts)

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write the translators and the settings; not the norm and the unembedding.

        Args:
            path: the file, in safetensors form.
            dtype: floating-point type in the file, float32 if None; torch.float16 halves it.

        Raises:
            UsageError: if a number does not fit in the dtype, or the path is a folder.
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
        """Read a lens that `save` wrote.

        Args:
            path: the file.
            norm: the final norm of the model that the lens was fitted on.
            unembedding: that model's unembedding.

        Raises:
            ResultError: if there is no such file, it is damaged, or of another kind.
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
        """Set the translators' gradients from a batch; the mean loss over the trained layers."""
        with torch.no_grad():
            target = self.logit_lens(states[:, -1]).float().log_softmax(dim=-1)
        losses = []
        for layer in trained:
            loss = _loss(self(states[:, layer], layer=layer).float(), target, tokens)
            parameters = list(self.translators[layer].parameters())
            # Not backward(): that would leave gradients in the model's own weights.
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            losses.append(loss.detach())
        return torch.stack(losses).mean().item()

    def _check_states(self, states: Tensor, layer: int | None) -> None:
        if layer is not None and not -self.n_layers <= layer < self.n_layers:
            raise UsageError(f"there is no layer {layer}; the lens has {self.n_layers}, from 0")
        expected = (self.d_model,) if layer is not None else (self.n_layers, self.d_model)
        if states.shape[-len(expected) :] != expected:
            names = "d_model" if layer is not None else "layer, d_model"
            raise UsageError(
                f"states have shape {tuple(states.shape)}; this lens reads (..., {names}) = "
                f"(..., {', '.join(map(str, expected))})"
                + ("" if layer is not None else "; for states of one layer give layer=")
            )

    def _check_training(self, acts: Tensor, labels: Tensor | None) -> None:
        check_acts(acts)
        self._check_states(acts, None)
        check_finite(acts)
        if labels is not None:
            check_labels(labels, len(acts))
        elif self.n_layers == 1:
            raise UsageError("the last layer is the target of the others; give labels, or layers")


def _check_sizes(norm: nn.Module, n_layers: int, d_model: int, rank: int | None) -> None:
    if min(n_layers, d_model) < 1:
        raise UsageError(f"n_layers={n_layers} and d_model={d_model} must be 1 at least")
    if rank is not None and not 1 <= rank <= d_model:
        raise UsageError(f"rank={rank}; give 1 to d_model={d_model}, or None for a full matrix")
    weight = getattr(norm, "weight", None)
    if isinstance(weight, Tensor) and weight.shape != (d_model,):
        raise UsageError(
            f"the norm has weights of shape {tuple(weight.shape)}, and d_model={d_model}; "
            "give the final norm and the hidden size of one model"
        )


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float32))


def _batches(n: int, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of the rows of each step, every epoch in another order."""
    for _ in range(epochs):
        yield from torch.split(torch.randperm(n, generator=generator), batch_size)


def _loss(logits: Tensor, target: Tensor, tokens: Tensor | None) -> Tensor:
    """Nats, a mean over rows: from the target's log-probabilities, or of tokens if given."""
    if tokens is not None:
        return functional.cross_entropy(logits, tokens.to(logits.device, torch.long))
    logprobs = logits.log_softmax(dim=-1)
    return functional.kl_div(logprobs, target, reduction="batchmean", log_target=True)
