"""Provides Probe, the protocol of all probes, and checks of their arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from hopscope.errors import UsageError


class Probe(Protocol):
    """The methods of all probes, which also have a class method `load(path, ...)`.

    Hidden states have shape (n, d_model), or (n, layer, d_model). With a layer axis, each layer is
    read separately, and results have a layer axis too.
    """

    def fit(self, acts: Tensor, labels: Tensor) -> Self:
        """Fit the probe to states and labels, integers of shape (n,); return the probe."""

    def score(self, acts: Tensor, labels: Tensor) -> Tensor:
        """Return the accuracy, from 0 to 1: a scalar, or shape (layer,)."""

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write the probe as one safetensors file, and return the file."""


def check_acts(acts: Tensor) -> None:
    """Check that a tensor is a stack of hidden states.

    Raises:
        UsageError: if the shape is neither (n, d_model) nor (n, layer, d_model), or the states
            are not floating-point numbers.
    """
    if acts.ndim not in (2, 3) or acts.shape[0] == 0:
        raise UsageError(
            f"acts have shape {tuple(acts.shape)}; give (n, d_model) or (n, layer, d_model), "
            "with at least one row"
        )
    if not acts.is_floating_point():
        raise UsageError(f"acts are {acts.dtype}; give floating-point states")


def check_labels(labels: Tensor, n: int, name: str = "labels") -> None:
    """Check that a tensor has one integer per row.

    Raises:
        UsageError: if the shape is not (n,), or the numbers are not integers.
    """
    if labels.shape != (n,):
        raise UsageError(
            f"{name} have shape {tuple(labels.shape)} for {n} rows of acts; give one each, ({n},)"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise UsageError(f"{name} are {labels.dtype}; give integers")


def numbered(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct values in ascending order, and the index of each value among them."""
    distinct, index = torch.unique(values, return_inverse=True)
    return distinct, index


def check_finite(acts: Tensor) -> None:
    """Check that all hidden states are finite.

    Raises:
        UsageError: if a state is infinite or NaN.
    """
    if not acts.isfinite().all():
        raise UsageError(
            "acts hold infinite or not-a-number states; capture them in float32 or bfloat16 "
            "(the largest float16 is 65504)"
        )
