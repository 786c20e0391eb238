"""Provides selectivity: how much of a probe's accuracy is more than learning entities by heart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hopscope.errors import UsageError

from .cross_validation import deal, held_out_accuracy
from .probe import check_acts, check_finite, check_labels, numbered


class Selectivity(NamedTuple):
    """Held-out accuracies, each a scalar or of shape (layer,)."""

    accuracy: Tensor
    """On the labels."""
    control_accuracy: Tensor
    """On labels drawn at random for each entity."""
    selectivity: Tensor
    """The first less the second."""


def control_labels(labels: Tensor, entities: Tensor, *, seed: int = 0) -> Tensor:
    """Labels of a control task: one drawn at random for each entity, the same in all its rows.

    Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks", section 2:
    such labels can be learnt only by heart. They are drawn from the rows' labels, so that the
    classes are about as frequent as in the task.

    Args:
        labels: integers, shape (n,).
        entities: what each row is about, integers of shape (n,).
        seed: of the draw.

    Returns:
        Integers of shape (n,), on the labels' device.

    Raises:
        UsageError: if a shape or dtype is not as said.

    Example:
        >>> entities = torch.tensor([4, 4, 9, 9])
        >>> drawn = control_labels(torch.tensor([0, 0, 1, 1]), entities)
        >>> bool(drawn[0] == drawn[1]), bool(drawn[2] == drawn[3])
        (True, True)
    """
    check_labels(labels, labels.numel())
    check_labels(entities, len(labels), "entities")
    names, entity_of = numbered(entities.cpu())
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(labels), (len(names),), generator=generator)
    return labels[drawn[entity_of].to(labels.device)]


def selectivity(
    acts: Tensor,
    labels: Tensor,
    entities: Tensor,
    *,
    folds: int = 5,
    seed: int = 0,
    l2: float = 1.0,
) -> Selectivity:
    """Accuracy of a LinearProbe beside its accuracy on a control task (Hewitt and Liang 2019).

    A probe that is as good at labels drawn at random for each entity tells who the entity is,
    not what the model has made of it. Both tasks are cross-validated on the same folds over
    rows, each entity's rows spread over all of them: then the control can be learnt by heart
    from the entity's other rows, and its accuracy says how much of that the probe does. So the
    accuracy here is one with known entities; for new ones use `cross_validate(groups=entities)`.

    Args:
        acts: states, shape (n, d_model) or (n, layer, d_model).
        labels: classes, any integers, shape (n,).
        entities: what each row is about, integers of shape (n,); two rows each at least.
        folds: how many.
        seed: of the control's labels and of the folds.
        l2: penalty of the probes.

    Returns:
        Accuracy, control accuracy and their difference, means over folds: scalars, or of shape
        (layer,).

    Raises:
        UsageError: if a shape or dtype is not as said, a state is not finite, an entity has one
            row only, or there are too few classes, entities or folds.
    """
    check_acts(acts)
    check_finite(acts)
    check_labels(labels, len(acts))
    check_labels(entities, len(acts), "entities")
    _, entity_of = numbered(entities.cpu())
    rows = entity_of.bincount()
    if rows.min() < 2:
        raise UsageError(
            f"{int((rows < 2).sum())} entities have one row only, so that their control labels "
            "cannot be learnt; give each entity two rows at least, or leave it out"
        )
    control = control_labels(labels, entities, seed=seed)
    classes, control_classes = len(numbered(labels)[0]), len(numbered(control)[0])
    if min(folds, classes, control_classes) < 2:
        raise UsageError(
            f"folds={folds}, {classes} classes in the labels and {control_classes} in the "
            "control's; give 2 of each at least: more folds, classes or entities, or another seed"
        )
    fold_of = deal(entity_of, folds, None, seed)
    accuracy = held_out_accuracy(acts, labels, fold_of, l2).mean(dim=0)
    control_accuracy = held_out_accuracy(acts, control, fold_of, l2).mean(dim=0)
    return Selectivity(accuracy, control_accuracy, accuracy - control_accuracy)
