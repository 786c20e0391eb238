"""Provides LinearProbe: multinomial logistic regression on the hidden states of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from hopscope.errors import ResultError, UsageError

from .probe import check_acts, check_finite, check_labels
from .probe_files import read_probe, write_probe


class LinearProbe(nn.Module):
    """Classifies hidden states with a linear map, one for each layer.

    Multinomial logistic regression (Alain and Bengio 2016, "Understanding intermediate layers
    using linear classifier probes") on standardised coordinates. It minimises the cross-entropy
    summed over rows plus `l2 / 2` times the sum of squared weights, without biases, like
    scikit-learn with `C = 1 / l2`. The fit is deterministic.

    The accuracy on the training rows means little, because there are usually fewer rows than
    coordinates. See `cross_validate` for held-out accuracy, and `selectivity` for how much a probe
    could memorise.

    Args:
        n_classes: number of classes; labels run from 0 to n_classes - 1. If None, it is the number
            of names in `classes`, or else `fit` learns it from the labels.
        l2: strength of the L2 penalty on the weights, greater than 0.
        classes: names of the classes, which are saved with the probe; `n_classes` names, or None.

    Raises:
        UsageError: if an argument is out of range.

    Example:
        >>> acts, labels = torch.randn(20, 3, 8), torch.arange(20) % 2
        >>> probe = LinearProbe(classes=["France", "Japan"]).fit(acts, labels)
        >>> probe.logits(acts).shape, probe.predict(acts).shape, probe.score(acts, labels).shape
        (torch.Size([20, 3, 2]), torch.Size([20, 3]), torch.Size([3]))
    """

    center: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        n_classes: int | None = None,
        *,
        l2: float = 1.0,
        classes: Sequence[str] | None = None,
    ):
        super().__init__()
        self.learns_classes = n_classes is None and classes is None
        if n_classes is None:
            n_classes = 2 if classes is None else len(classes)
        if n_classes < 2:
            raise UsageError(f"n_classes={n_classes}; give at least 2 classes")
        if not l2 > 0:
            raise UsageError(
                f"l2={l2}; give more than 0, because separable classes have no optimum at 0"
            )
        if classes is not None and len(classes) != n_classes:
            raise UsageError(f"classes has {len(classes)} names for n_classes={n_classes}")
        self.n_classes, self.l2 = n_classes, l2
        self.classes = None if classes is None else tuple(classes)
        for name in ("center", "scale", "weight", "bias"):
            self.register_buffer(name, torch.empty(0))

    def fit(self, acts: Tensor, labels: Tensor) -> Self:
        """Fit one classifier for each layer in float32, on the device of `acts`.

        Args:
            acts: hidden states, shape (n, d_model) or (n, layer, d_model).
            labels: class of each row, integers of shape (n,); each class occurs at least once. A
                probe that was given no `n_classes` takes the largest label plus 1.

        Returns:
            The probe itself.

        Raises:
            UsageError: if a shape or dtype is wrong, if a state is not finite, if a label is out
                of range, or if a class has no row.
        """
        check_acts(acts)
        check_finite(acts)
        check_labels(labels, len(acts))
        if self.learns_classes:
            self.n_classes = max(2, int(labels.max()) + 1)
        self._check_classes(labels)
        labels = labels.to(acts.device, torch.long)
        layers = acts.unbind(1) if acts.ndim == 3 else [acts]
        fitted = [_fit_layer(layer.float(), labels, self.n_classes, self.l2) for layer in layers]
        for name in ("center", "scale", "weight", "bias"):
            tensors = [layer[name] for layer in fitted]
            setattr(self, name, torch.stack(tensors) if acts.ndim == 3 else tensors[0])
        return self

    def logits(self, acts: Tensor) -> Tensor:
        """Return the logits of the classes, on the device of the probe.

        Args:
            acts: hidden states, shape (..., d_model), or (..., layer, d_model) if the probe was
                fitted with a layer axis.

        Returns:
            Shape (..., n_classes), or (..., layer, n_classes).

        Raises:
            UsageError: if the probe is not fitted, or was fitted to states of another shape.
        """
        if self.weight.numel() == 0:
            raise UsageError("this probe is not fitted; call fit(acts, labels) first")
        if acts.shape[-self.center.ndim :] != self.center.shape:
            raise UsageError(
                f"acts have shape {tuple(acts.shape)}; this probe was fitted on states of shape "
                f"(n, {', '.join(map(str, self.center.shape))})"
            )
        standardised = (acts.to(self.center) - self.center) / self.scale
        return torch.einsum("...d,...kd->...k", standardised, self.weight) + self.bias

    forward = logits

    def predict(self, acts: Tensor) -> Tensor:
        """Return the most likely class, shape (...) or (..., layer); arguments as for `logits`."""
        return self.logits(acts).argmax(dim=-1)

    def score(self, acts: Tensor, labels: Tensor) -> Tensor:
        """Return the accuracy: the share of rows whose most likely class is the label.

        Args:
            acts: hidden states, shape (n, d_model), or (n, layer, d_model) if the probe was fitted
                with a layer axis.
            labels: class of each row, integers of shape (n,).

        Returns:
            A scalar, or shape (layer,).

        Raises:
            UsageError: as for `logits`, or if a label is out of range.
        """
        check_acts(acts)
        check_labels(labels, len(acts))
        predicted = self.predict(acts)
        labels = labels.to(predicted.device)
        return (predicted == (labels if acts.ndim == 2 else labels[:, None])).float().mean(dim=0)

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write the fitted probe, with its standardisation and the names of its classes.

        Args:
            path: the file, in safetensors format.
            dtype: dtype of weights and biases in the file; float32 if None.

        Returns:
            The file.

        Raises:
            UsageError: if the probe is not fitted, if a number overflows in the dtype, or if the
                path is a folder.
        """
        if self.weight.numel() == 0:
            raise UsageError(
                "this probe is not fitted and cannot be saved; call fit(acts, labels) first"
            )
        settings = {"n_classes": self.n_classes, "l2": self.l2, "classes": self.classes}
        standard = ("center", "scale")
        return write_probe(path, "LinearProbe", self.state_dict(), settings, dtype, standard)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a probe that `save` wrote, on the CPU.

        Raises:
            ResultError: if the file does not exist, is damaged, or holds another kind of probe.
        """
        tensors, settings = read_probe(path, "LinearProbe", ("n_classes", "l2", "classes"))
        probe = cls(**settings)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        *layer, d_model = shapes.get("center", (0,))
        if shapes != {
            "center": (*layer, d_model),
            "scale": (*layer, d_model),
            "weight": (*layer, probe.n_classes, d_model),
            "bias": (*layer, probe.n_classes),
        }:
            raise ResultError(f"{path} is damaged: its tensors are {shapes}; save the probe again")
        for name, tensor in tensors.items():
            setattr(probe, name, tensor.float())
        return probe

    def _check_classes(self, labels: Tensor) -> None:
        """Check that labels are in range and that each class occurs."""
        labels = labels.to(torch.long)
        if labels.min() < 0 or labels.max() >= self.n_classes:
            raise UsageError(
                f"labels run from {labels.min()} to {labels.max()}; "
                f"with n_classes={self.n_classes} give 0 to {self.n_classes - 1}"
            )
        rows = labels.bincount(minlength=self.n_classes)
        if not rows.all():
            absent = (rows == 0).nonzero().flatten().tolist()
            raise UsageError(
                f"no row has a label of {', '.join(map(str, absent))}; give each class a row, or "
                "renumber the classes that occur (torch.unique(labels, return_inverse=True))"
            )


def _fit_layer(acts: Tensor, labels: Tensor, n_classes: int, l2: float) -> dict[str, Tensor]:
    """Return the tensors of a LinearProbe that is fitted to one layer, shape (n, d_model)."""
    center, scale = _standard(acts)
    standardised = (acts - center) / scale
    weight, bias = _optimum(standardised, labels, n_classes, l2)
    return {"center": center, "scale": scale, "weight": weight, "bias": bias}


def _standard(acts: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each coordinate, with 1 for constant coordinates."""
    center = acts.mean(dim=0)
    scale = acts.std(dim=0, correction=0)
    # Rounding errors in a constant coordinate must not be scaled up to unit variance.
    varies = scale > 1e-6 * acts.abs().amax(dim=0)
    return center, torch.where(varies, scale, 1.0)


@torch.no_grad()
def _optimum(features: Tensor, labels: Tensor, n_classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Return the weights and biases that minimise the penalised cross-entropy.

    The optimal weights lie in the span of the rows. L-BFGS therefore runs in the principal axes of
    the rows, scaled by the curvature at the start: this is exact, smaller, and takes about half as
    many steps.

    Returns:
        Weights of shape (n_classes, d_model), and biases of shape (n_classes,).
    """
    n = len(features)
    axes, spread = _principal_axes(features)
    stretch = (spread.square() / (n * n_classes) + l2 / n).rsqrt()
    ones = features.new_ones(n, 1)
    inputs = torch.cat([features @ axes * stretch, ones], dim=1)
    penalty = torch.cat([l2 / n * stretch.square(), ones.new_zeros(1)])
    targets = functional.one_hot(labels, n_classes).to(features.dtype)
    weight = inputs.new_zeros(n_classes, inputs.shape[1])
    optimiser = torch.optim.LBFGS(
        [weight],
        max_iter=1000,
        history_size=20,
        tolerance_grad=1e-4,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss_and_gradient() -> Tensor:
        logprobs = (inputs @ weight.T).log_softmax(dim=-1)
        pull = penalty * weight
        weight.grad = (logprobs.exp() - targets).T @ inputs / n + pull
        return functional.nll_loss(logprobs, labels) + (pull * weight).sum() / 2

    optimiser.step(loss_and_gradient)  # type: ignore[no-untyped-call]
    return (weight[:, :-1] * stretch) @ axes.T, weight[:, -1].clone()


def _principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis of the row span, shape (d_model, axis), and singular values."""
    n, d_model = features.shape
    if n <= d_model:
        _, spread, axes = torch.linalg.svd(features, full_matrices=False)
        return axes.T, spread
    squares, axes = torch.linalg.eigh(features.T @ features)
    return axes, squares.clamp_min(0).sqrt()
