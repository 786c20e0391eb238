"""Provides Probe, the face that all probes share, and the checks of what they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from hopscope.errors import UsageError


class Probe(Protocol):
    """What every probe does; each also has a class method `load(path, ...)`.

    States have shape (n, d_model), or (n, layer, d_model): then every layer is read by itself,
    and whatever is returned has a layer axis.
    """

    def fit(self, acts: Tensor, labels: Tensor) -> Self:
        """Learn from states and their labels, integers of shape (n,); returns the probe."""

    def score(self, acts: Tensor, labels: Tensor) -> Tensor:
        """Share of rows that are read right, from 0 to 1: a scalar, or shape (layer,)."""

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write the probe as one safetensors file."""


def check_acts(acts: Tensor) -> None:
    """Refuse what is not a stack of states.

    Raises:
        UsageError: if the shape is neither (n, d_model) nor (n, layer, d_model), or the states
            are not floating-point numbers.
    """
    if acts.ndim not in (2, 3) or acts.shape[0] == 0:
        raise UsageError(
            f"acts have shape {tuple(acts.shape)}; give (n, d_model) or (n, layer, d_model), "
            "with a row at least"
        )
    if not acts.is_floating_point():
        raise UsageError(f"acts are {acts.dtype}; give floating-point states")


def check_labels(labels: Tensor, n: int, name: str = "labels") -> None:
    """Refuse what is not one integer a row.

    Raises:
        UsageError: if the shape is not (n,), or the numbers are not integers.
    """
    if labels.shape != (n,):
        raise UsageError(
            f"{name} have shape {tuple(labels.shape)} for {n} rows of acts; give one a row, ({n},)"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise UsageError(f"{name} are {labels.dtype}; give integers")


def numbered(values: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values in order, and which of them each is, of the values' shape."""
    distinct, index = torch.unique(values, return_inverse=True)
    return distinct, index


def check_finite(acts: Tensor) -> None:
    """Refuse states from which nothing can be learnt.

    Raises:
        UsageError: if a state is infinite or not a number.
    """
    if not acts.isfinite().all():
        raise UsageError(
            "acts hold infinite or not-a-number states; capture them in float32 or bfloat16 "
            "(float16 ends at 65504)"
        )
