"""control_labels and selectivity: what can be learnt by heart, and what cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hopscope.probes import control_labels, selectivity

from hopscope.errors import UsageError

ENTITIES = torch.arange(160) % 40 + 100
LABELS = (ENTITIES - 100) % 2


def test_an_entity_has_one_control_label() -> None:
    drawn = control_labels(LABELS, ENTITIES)
    for entity in ENTITIES.unique():
        assert len(drawn[entity == ENTITIES].unique()) == 1
    assert set(drawn.tolist()) == {0, 1}


def test_control_labels_have_nothing_to_do_with_the_entity() -> None:
    entities = torch.arange(4000)
    labels = torch.where(entities < 1000, 7, 3)
    drawn = control_labels(labels, entities)
    # One in four, among entities of either label; 0.055 is four standard errors of the rarer.
    for rows in (labels == 7, labels == 3):
        assert (drawn[rows] == 7).double().mean().item() == pytest.approx(0.25, abs=0.055)


def test_the_seed_draws_the_control_labels() -> None:
    first = control_labels(LABELS, ENTITIES, seed=1)
    assert torch.equal(first, control_labels(LABELS, ENTITIES, seed=1))
    assert not torch.equal(first, control_labels(LABELS, ENTITIES, seed=2))


def test_selectivity_tells_a_class_from_an_entity() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(160, 2, 42, generator=generator)
    says_class = 3 * torch.eye(42)[LABELS]
    says_entity = 3 * torch.eye(42)[ENTITIES - 100]
    acts = noise + torch.stack([says_class, says_entity], dim=1)
    found = selectivity(acts, LABELS, ENTITIES, folds=4)
    assert torch.equal(found.accuracy, torch.ones(2))
    assert found.control_accuracy[0] < 0.75
    assert found.control_accuracy[1] > 0.95
    assert torch.equal(found.selectivity, found.accuracy - found.control_accuracy)
    alone = selectivity(acts[:, 0], LABELS, ENTITIES, folds=4)
    assert alone.accuracy.shape == ()
    assert alone.control_accuracy == found.control_accuracy[0]


def test_arrays_and_names_give_what_tensors_and_numbers_give() -> None:
    acts = torch.randn(160, 2, 8, generator=torch.Generator().manual_seed(0))
    names = np.array(["left", "right"])[LABELS.numpy()]
    cities = [f"city {each}" for each in ENTITIES.tolist()]
    expected = selectivity(acts, LABELS, ENTITIES, folds=3)
    found = selectivity(acts.numpy(), names, cities, folds=3)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, np.ndarray)
        assert one.tolist() == other.tolist()
    drawn = control_labels(names, cities)
    assert drawn.tolist() == [names[each] for each in control_labels(LABELS, ENTITIES)]


def test_what_has_no_selectivity() -> None:
    acts = torch.randn(4, 2)
    pairs, alone = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])
    with pytest.raises(UsageError, match="2 entities have one row only"):
        selectivity(acts, pairs, alone)
    with pytest.raises(UsageError, match="1 classes in the labels"):
        selectivity(acts, torch.zeros(4, dtype=torch.long), pairs)
    with pytest.raises(UsageError, match=r"1 in the control labels.*another seed"):
        selectivity(acts, pairs, torch.zeros(4, dtype=torch.long))
    with pytest.raises(UsageError, match=r"entities have shape \(3,\) for 4 rows"):
        selectivity(acts, pairs, pairs[:3])
