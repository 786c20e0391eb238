"""Provides cross_validate(): the accuracy of a linear probe on held-out rows."""

from __future__ import annotations

import torch
from torch import Tensor

from hopscope.errors import UsageError

from .linear_probe import LinearProbe
from .probe import (
    Labels,
    States,
    as_given,
    as_tensor,
    check_acts,
    check_finite,
    number_labels,
)


def cross_validate(
    acts: States,
    labels: Labels,
    *,
    folds: int = 5,
    groups: Labels | None = None,
    seed: int = 0,
    l2: float = 1.0,
) -> States:
    """Return the held-out accuracy of a LinearProbe for each fold and layer.

    Each fold is held out once while a probe is fitted on the others. All folds have about the same
    share of each class. Use `groups` for rows that belong together, such as prompts about the same
    entity; otherwise a probe could recognise a held-out row by a similar training row.

    Args:
        acts: hidden states, a tensor or NumPy array of shape (n, d_model) or (n, layer, d_model).
        labels: class of each row: n integers (such as token ids), strings, or other hashable
            values.
        folds: number of folds.
        groups: group of each row, as labels; all rows of a group are in the same fold. None treats
            each row as its own group.
        seed: seed of the assignment to folds.
        l2: strength of the probes' L2 penalty.

    Returns:
        Shape (folds,), or (folds, layer) if there is a layer axis, of the kind of `acts`. The mean
        over folds estimates the accuracy.

    Raises:
        UsageError: if a shape or dtype is wrong, if a state is not finite, or if a class has fewer
            rows (or groups) than there are folds.

    Example:
        >>> acts, labels = torch.randn(40, 3, 8), torch.arange(40) % 4
        >>> cross_validate(acts, labels).mean(dim=0).shape
        torch.Size([3])
    """
    states = as_tensor(acts)
    check_acts(states)
    check_finite(states)
    _, label_of = number_labels(labels, len(states))
    fold_of = assign_folds(labels, folds=folds, groups=groups, seed=seed)
    return as_given(held_out_accuracy(states, label_of, fold_of, l2), acts)


def assign_folds(
    labels: Labels, *, folds: int = 5, groups: Labels | None = None, seed: int = 0
) -> Tensor:
    """Assign rows to folds, with classes spread evenly and groups kept together.

    Args:
        labels: class of each row, integers, strings, or other hashable values.
        folds: number of folds.
        groups: group of each row, as labels, or None.
        seed: seed of the assignment.

    Returns:
        The fold of each row, counted from 0, shape (n,).

    Raises:
        UsageError: if there are too few folds or classes, or a class has fewer rows (or groups)
            than there are folds.
    """
    classes, label_of = number_labels(labels)
    if groups is not None:
        _, groups = number_labels(groups, len(label_of), "groups")
    if folds < 2 or len(classes) < 2:
        raise UsageError(f"folds={folds} and {len(classes)} classes; give at least 2 of each")
    members = _members(label_of, groups)
    least, smallest = (members > 0).sum(dim=0).min(dim=0)
    if least < folds:
        unit = "rows" if groups is None else "groups"
        raise UsageError(
            f"class {classes[smallest]} has {least} {unit}, fewer than folds={folds}; "
            "use fewer folds, or leave out the rows of rare classes"
        )
    return deal(label_of, folds, groups, seed)


def deal(strata: Tensor, folds: int, groups: Tensor | None, seed: int) -> Tensor:
    """Assign groups (or single rows) to folds, largest first, each where its strata are rarest.

    Args:
        strata: stratum of each row, integers from 0, shape (n,), to be spread evenly over folds.
        folds: number of folds.
        groups: group of each row, integers of shape (n,), or None.
        seed: seed of the order among groups of the same size.

    Returns:
        The fold of each row, shape (n,), on the CPU.
    """
    members = _members(strata, groups).double()
    share = members / members.sum(dim=0)
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
    order = order[members[order].sum(dim=1).argsort(descending=True, stable=True)]
    held = torch.zeros(folds, members.shape[1], dtype=torch.double)
    fold_of_group = torch.empty(len(members), dtype=torch.long)
    for group in order.tolist():
        crowding = held @ share[group]
        # Among the folds with the fewest rows of these strata, take the smallest fold.
        candidates = (crowding == crowding.min()).nonzero().flatten()
        fold = candidates[held[candidates].sum(dim=1).argmin()]
        fold_of_group[group] = fold
        held[fold] += members[group]
    return fold_of_group[_group_of(len(strata), groups)]


def held_out_accuracy(acts: Tensor, labels: Tensor, fold_of: Tensor, l2: float) -> Tensor:
    """Return the accuracy on each fold of a probe fitted on the others.

    A held-out row counts as wrong if its class does not occur in the other folds.

    Args:
        acts: hidden states, shape (n, d_model) or (n, layer, d_model).
        labels: class of each row, integers of shape (n,).
        fold_of: fold of each row, integers from 0, shape (n,).
        l2: strength of the probes' L2 penalty.

    Returns:
        Shape (folds,), or (folds, layer).
    """
    labels = labels.to(acts.device)
    accuracies = []
    for fold in range(int(fold_of.max()) + 1):
        held_out = (fold_of == fold).to(acts.device)
        probe = LinearProbe(l2=l2).fit(acts[~held_out], labels[~held_out])
        predicted = probe.predict(acts[held_out])
        truth = labels[held_out].view(-1, *[1] * (predicted.ndim - 1))
        accuracies.append((predicted == truth).float().mean(dim=0))
    return torch.stack(accuracies)


def _group_of(n: int, groups: Tensor | None) -> Tensor:
    """Return the index of the group of each row, shape (n,)."""
    if groups is None:
        return torch.arange(n)
    return number_labels(groups)[1]


def _members(strata: Tensor, groups: Tensor | None) -> Tensor:
    """Return the number of rows of each group in each stratum, shape (group, stratum)."""
    group_of = _group_of(len(strata), groups)
    counts = torch.zeros(int(group_of.max()) + 1, int(strata.max()) + 1, dtype=torch.long)
    return counts.index_put((group_of, strata), torch.ones_like(strata), accumulate=True)
