"""cross_validate: what is held out is not known, and folds are fair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hopscope.probes import assign_folds, cross_validate
from hopscope.probes.cross_validation import held_out_accuracy
from torch import Tensor

from hopscope.errors import UsageError


def entities_by_heart() -> tuple[Tensor, Tensor, Tensor]:
    """States that tell who an entity is and nothing of its class: (acts, labels, entities)."""
    generator = torch.Generator().manual_seed(0)
    entities = torch.arange(120) % 30
    labels = torch.randint(2, (30,), generator=generator)[entities]
    return (
        4 * torch.eye(30)[entities] + 0.1 * torch.randn(120, 30, generator=generator),
        labels,
        (entities),
    )


def test_separable_classes_are_told_apart_and_random_ones_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 4
    noise = torch.randn(100, 2, 12, generator=generator)
    acts = noise + torch.stack([torch.zeros(100, 12), 9 * torch.eye(12)[labels]], dim=1)
    accuracy = cross_validate(acts, labels)
    assert accuracy.shape == (5, 2)
    assert torch.equal(accuracy[:, 1], torch.ones(5))
    # 25 of 100 by chance; 41 and more come once in 5,000 times.
    assert accuracy[:, 0].mean() < 0.41


def test_groups_keep_a_probe_from_knowing_an_entity() -> None:
    acts, labels, entities = entities_by_heart()
    assert cross_validate(acts, labels).mean() > 0.95
    assert cross_validate(acts, labels, groups=entities).mean() < 0.7


def test_without_a_layer_axis_it_is_the_same() -> None:
    acts, labels, _ = entities_by_heart()
    alone = cross_validate(acts, labels, folds=3)
    assert alone.shape == (3,)
    assert torch.equal(alone, cross_validate(acts[:, None], labels, folds=3)[:, 0])


def test_any_integers_are_classes() -> None:
    acts, labels, _ = entities_by_heart()
    assert torch.equal(cross_validate(acts, labels), cross_validate(acts, 900 - 7 * labels))


def test_arrays_and_names_give_what_tensors_and_numbers_give() -> None:
    acts, labels, entities = entities_by_heart()
    names = [f"class {each}" for each in labels.tolist()]
    cities = [("city", each) for each in entities.tolist()]
    expected = cross_validate(acts, labels, groups=entities)
    found = cross_validate(acts.numpy(), names, groups=cities)
    assert isinstance(found, np.ndarray)
    assert found.tolist() == expected.tolist()
    assert torch.equal(cross_validate(acts, names, groups=cities), expected)
    assert torch.equal(assign_folds(names, groups=cities), assign_folds(labels, groups=entities))


def test_a_stronger_penalty_changes_it() -> None:
    acts, labels, _ = entities_by_heart()
    assert cross_validate(acts, labels, l2=1e6).mean() < cross_validate(acts, labels).mean()


def test_each_fold_has_its_share_of_each_class() -> None:
    labels = torch.tensor([0] * 23 + [1] * 10 + [5] * 5)
    fold_of = assign_folds(labels, folds=5, seed=3)
    for label in (0, 1, 5):
        rows = fold_of[labels == label].bincount(minlength=5)
        assert rows.max() - rows.min() <= 1
    rows = fold_of.bincount(minlength=5)
    assert rows.max() - rows.min() <= 1


def test_folds_are_of_about_the_same_size() -> None:
    rows_over = torch.arange(18) % 3
    assert assign_folds(rows_over, folds=5).bincount().tolist().count(4) == 3
    one_large = torch.cat([torch.arange(40) + 1, torch.zeros(20, dtype=torch.long)])
    labels = torch.cat([torch.arange(40) % 2, torch.arange(20) % 2])
    assert assign_folds(labels, folds=3, groups=one_large).bincount().tolist() == [20, 20, 20]


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_in_one_fold_and_a_class_in_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(40, (200,), generator=generator) * 11
    label_of_group = torch.arange(40) % 4
    labels = label_of_group[groups // 11]
    fold_of = assign_folds(labels, folds=5, groups=groups, seed=seed)
    for group in groups.unique():
        assert len(fold_of[groups == group].unique()) == 1
    for label in range(4):
        assert len(fold_of[labels == label].unique()) == 5
    assert fold_of.bincount().max() < 60


def test_groups_may_hold_several_classes() -> None:
    groups, labels = torch.arange(60) // 3, torch.arange(60) % 3
    fold_of = assign_folds(labels, folds=4, groups=groups)
    assert torch.equal(fold_of.view(20, 3), fold_of.view(20, 3)[:, :1].expand(20, 3))
    assert fold_of.bincount().tolist() == [15, 15, 15, 15]


def test_the_seed_deals_the_rows() -> None:
    labels = torch.arange(60) % 3
    assert torch.equal(assign_folds(labels, seed=1), assign_folds(labels, seed=1))
    assert not torch.equal(assign_folds(labels, seed=1), assign_folds(labels, seed=2))


def test_a_class_that_was_not_learnt_counts_as_wrong() -> None:
    acts = 9 * torch.eye(3)[torch.arange(12) % 3]
    labels = torch.arange(12) % 3
    fold_of = torch.where(labels == 2, 0, torch.arange(12) // 6)
    in_first = (labels[fold_of == 0] != 2).double().mean().item()
    assert held_out_accuracy(acts, labels, fold_of, 1.0).tolist() == pytest.approx([in_first, 1])


@pytest.mark.parametrize(
    ("labels", "arguments", "says"),
    [
        ([0, 0, 0, 1, 1, 8, 8, 8], {"folds": 3}, "class 1 has 2 rows, fewer than folds=3"),
        ([0, 0, 0, 1, 1, 1, 1, 1], {"folds": 2, "groups": torch.arange(8) // 3}, "class 0 has 1 g"),
        ([0] * 8, {"folds": 2}, "1 classes; give at least 2"),
        ([0, 1] * 4, {"folds": 1}, "folds=1"),
        ([0, 1] * 4, {"groups": torch.arange(7)}, r"groups have shape \(7,\) for 8 rows"),
        ([0, 1] * 5, {}, r"labels have shape \(10,\) for 8 rows"),
    ],
)
def test_what_cannot_be_folded(labels: list[int], arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        cross_validate(torch.randn(8, 2), torch.tensor(labels), **arguments)
