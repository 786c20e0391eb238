"""Provides LinearProbe: multinomial logistic regression on the hidden states of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hopscope.errors import ResultError, UsageError

from .probe import (
    Array,
    Labels,
    States,
    as_given,
    as_tensor,
    check_acts,
    check_finite,
    number_labels,
)
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

    States are tensors or NumPy arrays, and results are of the same kind. Labels are integers,
    strings, or any other hashable values. The methods are those of a classifier of scikit-learn:
    `fit(X, y)`, `predict(X)`, `predict_proba(X)`, `score(X, y)`, and `classes_` once it is fitted.

    Args:
        n_classes: number of classes; integer labels then run from 0 to n_classes - 1. If None, it
            is the number of names in `classes`, or else `fit` learns the classes from the labels.
        l2: strength of the L2 penalty on the weights, greater than 0.
        classes: names of the classes, which are saved with the probe; `n_classes` names, or None.
            Labels are then these names, or their numbers from 0.

    Attributes:
        classes_: the labels of the classes in the order of the logits, a NumPy array of shape
            (n_classes,). It is there once the probe is fitted.

    Raises:
        UsageError: if an argument is out of range.

    Example:
        >>> acts, labels = torch.randn(20, 3, 8), torch.arange(20) % 2
        >>> probe = LinearProbe(classes=["France", "Japan"]).fit(acts, labels)
        >>> probe.logits(acts).shape, probe.predict(acts).shape, probe.score(acts, labels).shape
        (torch.Size([20, 3, 2]), torch.Size([20, 3]), torch.Size([3]))
        >>> X, y = acts[:, 0].numpy(), ["France", "Japan"] * 10
        >>> probe = LinearProbe().fit(X, y)
        >>> probe.classes_.tolist(), probe.predict(X).shape
        (['France', 'Japan'], (20,))
    """

    classes_: Array
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

    def fit(self, acts: Tensor | Array, labels: Labels) -> Self:
        """Fit one classifier for each layer in float32, on the device of `acts`.

        Args:
            acts: hidden states, shape (n, d_model) or (n, layer, d_model).
            labels: class of each row, n of them; each class occurs at least once. A probe that was
                given neither `n_classes` nor `classes` takes the classes that occur, in ascending
                order.

        Returns:
            The probe itself.

        Raises:
            UsageError: if a shape or dtype is wrong, if a state is not finite, if a label is
                missing or none of the classes, if a class has no row, or if there is one class.
        """
        states = as_tensor(acts)
        check_acts(states)
        check_finite(states)
        distinct, index = number_labels(labels, len(states))
        classes = self._classes_among(distinct)
        place = torch.tensor(_places(distinct, classes))
        _check_places(distinct, classes, place)
        target = place[index].to(states.device)
        layers = states.unbind(1) if states.ndim == 3 else [states]
        fitted = [_fit_layer(layer.float(), target, len(classes), self.l2) for layer in layers]
        self.n_classes, self.classes_ = len(classes), classes
        for name in ("center", "scale", "weight", "bias"):
            tensors = [layer[name] for layer in fitted]
            setattr(self, name, torch.stack(tensors) if states.ndim == 3 else tensors[0])
        return self

    def logits(self, acts: States) -> States:
        """Return the logits of the classes, on the device of the probe.

        Args:
            acts: hidden states, shape (..., d_model), or (..., layer, d_model) if the probe was
                fitted with a layer axis.

        Returns:
            Shape (..., n_classes), or (..., layer, n_classes).

        Raises:
            UsageError: if the probe is not fitted, or was fitted to states of another shape.
        """
        return as_given(self._logits(acts), acts)

    forward = logits

    def predict(self, acts: States) -> States:
        """Return the label of the most likely class; arguments and errors as for `logits`.

        Returns:
            Shape (...) or (..., layer). Labels that are no integers are in a NumPy array.
        """
        index = self._logits(acts).argmax(dim=-1)
        if isinstance(acts, Tensor) and _are_integers(self.classes_):
            return torch.from_numpy(self.classes_).to(index.device)[index]
        return cast(States, self.classes_[index.cpu().numpy()])

    def predict_proba(self, acts: States) -> States:
        """Return the probabilities of the classes, shaped as `logits`; the same arguments."""
        return as_given(self._logits(acts).softmax(dim=-1), acts)

    def score(self, acts: States, labels: Labels) -> States:
        """Return the accuracy: the share of rows whose most likely class is the label.

        Args:
            acts: hidden states, shape (n, d_model), or (n, layer, d_model) if the probe was fitted
                with a layer axis.
            labels: class of each row, n of them. A row of a class that the probe does not have
                counts as wrong.

        Returns:
            A scalar, or shape (layer,).

        Raises:
            UsageError: as for `logits`, or if no label is a class of the probe.
        """
        states = as_tensor(acts)
        check_acts(states)
        predicted = self._logits(states).argmax(dim=-1)
        distinct, index = number_labels(labels, len(states))
        place = torch.tensor(_places(distinct, self.classes_))
        if (place < 0).all():
            raise UsageError(
                f"no label is a class of this probe: they are {_shown(distinct)}, its classes "
                f"{_shown(self.classes_)}"
            )
        truth = place[index].to(predicted.device)
        right = predicted == (truth if states.ndim == 2 else truth[:, None])
        return as_given(right.float().mean(dim=0), acts)

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write the fitted probe, with its standardisation and the names of its classes.

        Args:
            path: the file, in safetensors format.
            dtype: dtype of weights and biases in the file; float32 if None.

        Returns:
            The file.

        Raises:
            UsageError: if the probe is not fitted, if a number overflows in the dtype, if labels
                are neither integers nor strings, or if the path is a folder.
        """
        if self.weight.numel() == 0:
            raise UsageError(
                "this probe is not fitted and cannot be saved; call fit(acts, labels) first"
            )
        if not (_are_integers(self.classes_) or self.classes_.dtype.kind == "U"):
            raise UsageError(
                f"labels are {_shown(self.classes_)}; a file holds integers or strings: fit the "
                "probe to their names, such as list(map(str, labels))"
            )
        settings = {"n_classes": self.n_classes, "l2": self.l2, "classes": self.classes}
        settings["labels"] = self.classes_.tolist()
        standard = ("center", "scale")
        return write_probe(path, "LinearProbe", self.state_dict(), settings, dtype, standard)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a probe that `save` wrote, on the CPU.

        Raises:
            ResultError: if the file does not exist, is damaged, or holds another kind of probe.
        """
        names, added = ("n_classes", "l2", "classes"), {"labels": None}
        tensors, settings = read_probe(path, "LinearProbe", names, added)
        labels = settings.pop("labels")
        probe = cls(**settings)
        probe.classes_ = np.array(range(probe.n_classes) if labels is None else labels)
        if len(probe.classes_) != probe.n_classes:
            raise ResultError(f"{path} is damaged: its labels are {labels}; save the probe again")
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

    def _logits(self, acts: Tensor | Array) -> Tensor:
        """Return the logits of states of any kind as a tensor."""
        if self.weight.numel() == 0:
            raise UsageError("this probe is not fitted; call fit(acts, labels) first")
        states = as_tensor(acts)
        if states.shape[-self.center.ndim :] != self.center.shape:
            raise UsageError(
                f"acts have shape {tuple(states.shape)}; this probe was fitted on states of shape "
                f"(n, {', '.join(map(str, self.center.shape))})"
            )
        standardised = (states.to(self.center) - self.center) / self.scale
        return torch.einsum("...d,...kd->...k", standardised, self.weight) + self.bias

    def _classes_among(self, distinct: Array) -> Array:
        """Return the labels of the classes in the order of the logits, from those that occur."""
        if not self.learns_classes and _are_integers(distinct):
            return np.arange(self.n_classes)
        if self.classes is not None:
            return np.array(self.classes)
        if len(distinct) < 2 or not (self.learns_classes or len(distinct) == self.n_classes):
            raise UsageError(
                f"labels have {len(distinct)} classes, {_shown(distinct)}; give "
                f"{'at least 2' if self.learns_classes else self.n_classes}"
            )
        return distinct


def _are_integers(labels: Array) -> bool:
    """Whether labels are integers (or truth values), which a tensor can hold."""
    return labels.dtype.kind in "iub"


def _places(distinct: Array, classes: Array) -> list[int]:
    """Return the index of each label among the classes, -1 for one that is none of them."""
    place = {label: index for index, label in enumerate(classes.tolist())}
    return [place.get(label, -1) for label in distinct.tolist()]


def _check_places(distinct: Array, classes: Array, place: Tensor) -> None:
    """Check that each label is a class and that each class occurs."""
    unknown = distinct[(place < 0).numpy()]
    if len(unknown):
        raise UsageError(
            f"the label {_shown(unknown[:1])} is none of the {len(classes)} classes, which are "
            f"{_shown(classes)}"
        )
    absent = np.delete(classes, place.numpy())
    if len(absent):
        raise UsageError(
            f"no row has a label of {_shown(absent)}; give each class a row, or leave the classes "
            "to be learned from the labels: LinearProbe()"
        )


def _shown(labels: Array, most: int = 8) -> str:
    """Return labels in words, the first few if there are many."""
    first = ", ".join(map(repr, labels[:most].tolist()))
    return first if len(labels) <= most else f"{first}, …"


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
