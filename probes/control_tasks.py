"""Provides selectivity(): how much of a probe's accuracy exceeds memorising entities."""

from __future__ import annotations

from typing import Generic, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hopscope.errors import UsageError

from .cross_validation import deal, held_out_accuracy
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


class Selectivity(NamedTuple, Generic[States]):
    """Held-out accuracies, each a scalar or of shape (layer,)."""

    accuracy: States
    """Accuracy on the labels."""
    control_accuracy: States
    """Accuracy on the control task, whose labels are random for each entity."""
    selectivity: States
    """Accuracy minus control accuracy."""


def control_labels(labels: States, entities: Labels, *, seed: int = 0) -> States:
    """Draw the labels of a control task: a random label for each entity, shared by its rows.

    Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks", section 2. Such
    labels can only be memorised. They are drawn from the given labels, so that the classes are
    about as frequent as in the real task.

    Args:
        labels: class of each row, integers of shape (n,), or a NumPy array of any labels.
        entities: entity of each row: n integers, strings, or other hashable values.
        seed: seed of the random labels.

    Returns:
        Labels of shape (n,), of the kind and on the device of `labels`.

    Raises:
        UsageError: if a shape or dtype is wrong.

    Example:
        >>> entities = torch.tensor([4, 4, 9, 9])
        >>> drawn = control_labels(torch.tensor([0, 0, 1, 1]), entities)
        >>> bool(drawn[0] == drawn[1]), bool(drawn[2] == drawn[3])
        (True, True)
    """
    number_labels(labels)
    names, entity_of = number_labels(entities, len(labels), "entities")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(labels), (len(names),), generator=generator)[entity_of]
    if isinstance(labels, Tensor):
        return labels[drawn.to(labels.device)]
    chosen: Array = np.asarray(labels)[drawn.numpy()]
    return chosen


def selectivity(
    acts: States,
    labels: Labels,
    entities: Labels,
    *,
    folds: int = 5,
    seed: int = 0,
    l2: float = 1.0,
) -> Selectivity[States]:
    """Compare the accuracy of a LinearProbe with that on a control task (Hewitt and Liang 2019).

    A probe that is equally accurate on random labels of entities identifies the entity, not a
    property that the model computes. Both tasks are cross-validated on the same folds over rows,
    with the rows of each entity spread over the folds, so that the control labels can be memorised
    from the other rows of an entity. The accuracy is therefore that for known entities; for unseen
    entities use `cross_validate(groups=entities)`.

    Args:
        acts: hidden states, a tensor or NumPy array of shape (n, d_model) or (n, layer, d_model).
        labels: class of each row: n integers, strings, or other hashable values.
        entities: entity of each row, as labels, each in at least two rows.
        folds: number of folds.
        seed: seed of the control labels and of the folds.
        l2: strength of the probes' L2 penalty.

    Returns:
        Accuracy, control accuracy and their difference, averaged over folds: scalars, or of shape
        (layer,), of the kind of `acts`.

    Raises:
        UsageError: if a shape or dtype is wrong, if a state is not finite, if an entity has only
            one row, or if there are too few classes, entities or folds.
    """
    states = as_tensor(acts)
    check_acts(states)
    check_finite(states)
    names, label_of = number_labels(labels, len(states))
    _, entity_of = number_labels(entities, len(states), "entities")
    rows = entity_of.bincount()
    if rows.min() < 2:
        raise UsageError(
            f"{int((rows < 2).sum())} entities have one row only, so that their control labels "
            "cannot be learned; give each entity at least two rows, or leave it out"
        )
    control = control_labels(label_of, entity_of, seed=seed)
    classes, control_classes = len(names), len(number_labels(control)[0])
    if min(folds, classes, control_classes) < 2:
        raise UsageError(
            f"folds={folds}, {classes} classes in the labels and {control_classes} in the "
            "control labels; give at least 2 of each: use more folds, classes or entities, or "
            "another seed"
        )
    fold_of = deal(entity_of, folds, None, seed)
    accuracy = held_out_accuracy(states, label_of, fold_of, l2).mean(dim=0)
    control_accuracy = held_out_accuracy(states, control, fold_of, l2).mean(dim=0)
    found = (accuracy, control_accuracy, accuracy - control_accuracy)
    return Selectivity(*(as_given(each, acts) for each in found))
