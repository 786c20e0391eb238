"""Provides Probe, the protocol of all probes, and checks of their arguments."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hopscope.errors import UsageError

Array: TypeAlias = NDArray[Any]
States = TypeVar("States", Tensor, Array)
"""Hidden states: a tensor or a NumPy array. What is computed from them is of the same kind."""
Labels: TypeAlias = Tensor | Array | Iterable[Hashable]
"""A label for each row: integers, strings, or any other hashable values but missing ones."""


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


def as_tensor(acts: Tensor | Array) -> Tensor:
    """Return hidden states as a tensor, which shares the memory of a NumPy array where it can.

    Raises:
        UsageError: if they are no array of numbers.
    """
    if isinstance(acts, Tensor):
        return acts
    try:
        return torch.from_numpy(np.require(acts, requirements=["C", "W"]))
    except (TypeError, ValueError):
        kind = getattr(acts, "dtype", type(acts).__name__)
        raise UsageError(f"acts are {kind}; give floating-point states") from None


def as_given(result: Tensor, acts: States) -> States:
    """Return a result as a tensor if hidden states were a tensor, or else as a NumPy array.

    A result without axes becomes a NumPy number.
    """
    if isinstance(acts, Tensor):
        return result
    return result.detach().cpu().numpy()[()]


def number_labels(
    labels: Labels, n: int | None = None, name: str = "labels"
) -> tuple[Array, Tensor]:
    """Return the distinct labels, and the index of each row's label among them.

    Args:
        labels: one for each row.
        n: number of rows; None for any.
        name: what they are called in an error.

    Returns:
        The distinct labels in ascending order, or in that of their first rows if they have none,
        and integers of shape (n,) on the CPU.

    Raises:
        UsageError: if their shape is not (n,), or one is missing, not hashable or not an integer.
    """
    values = _numbers_or_objects(labels, name)
    if isinstance(values, Tensor):
        check_labels(values, values.numel() if n is None else n, name)
        distinct, index = torch.unique(values.cpu(), return_inverse=True)
        return distinct.numpy(), index
    if n is not None and len(values) != n:
        raise UsageError(
            f"{name} have shape ({len(values)},) for {n} rows of acts; give one each, ({n},)"
        )
    found = _distinct(values, name)
    index_of = {value: index for index, value in enumerate(found)}
    if all(isinstance(value, str) for value in found):
        names = np.array(found)
    else:
        names = np.empty(len(found), dtype=object)
        for index, value in enumerate(found):  # tuples must not become an axis
            names[index] = value
    return names, torch.tensor([index_of[value] for value in values])


def _numbers_or_objects(labels: Labels, name: str) -> Tensor | list[Hashable]:
    """Return numbers as a tensor, and labels of any other kind as a list."""
    if isinstance(labels, Tensor):
        return labels
    if isinstance(labels, np.ndarray) and labels.ndim != 1:
        raise UsageError(f"{name} have shape {labels.shape}; give one for each row, (n,)")
    try:
        values = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    except TypeError:
        raise UsageError(f"{name} are {labels!r}; give one for each row, (n,)") from None
    if all(isinstance(value, int | float | np.number | np.bool_) for value in values):
        return torch.from_numpy(np.array(values))
    return values


def _distinct(values: list[Hashable], name: str) -> list[Hashable]:
    """Return the distinct values in order, each of which is checked."""
    for row, value in enumerate(values):
        if not isinstance(value, Hashable):
            raise UsageError(
                f"{name} hold a {type(value).__name__} in row {row}; give integers or names"
            )
        # What is missing is None, or does not equal itself: NaN, and pandas's NA.
        if value is None or not (isinstance(value, str) or (value == value) is True):
            raise UsageError(f"{name} hold {value!r} in row {row}; give each row a label")
    distinct = list(dict.fromkeys(values))
    try:
        return sorted(distinct)  # type: ignore[type-var]
    except TypeError:
        return distinct
