"""Keys held and head classes, on rows made by hand."""

from __future__ import annotations

import pytest
import torch
from hopscope.probes import class_of_share, head_classes, keys_held


def spread(n_held: int, n_keys: int) -> list[float]:
    """A row that gives all to some keys in equal parts, and nothing to the others."""
    return [1 / n_held] * n_held + [0.0] * (n_keys - n_held)


def test_keys_are_counted_from_the_largest():
    row = torch.tensor([0.05, 0.5, 0.05, 0.4])
    assert int(keys_held(row)) == 2
    assert int(keys_held(row, 0.5)) == 1
    assert int(keys_held(row, 0.91)) == 3
    assert int(keys_held(row, 1.0)) == 4


def test_rounding_does_not_ask_for_one_more():
    row = torch.full((10,), 0.1)
    assert int(keys_held(row)) == 9
    assert int(keys_held(row.bfloat16())) == 9
    for n in (37, 100):  # whose rounded parts sum to less, or more, than 1
        even = torch.full((n,), 1 / n).bfloat16()
        assert int(keys_held(even, 1.0)) == n
        assert int(keys_held(even, 0.5)) == (n + 1) // 2


@pytest.mark.parametrize("n_seen", [64, 96])
def test_classes_by_the_share_of_the_keys_that_are_seen(n_seen):
    held = [n_seen, n_seen // 2, n_seen // 8, n_seen // 32]
    rows = torch.tensor([[spread(n, 96) for n in held]])
    classes, shares = head_classes(rows, torch.tensor([n_seen]), mass=1.0)
    assert classes.tolist() == [1, 2, 3, 4]
    assert shares.tolist() == pytest.approx([1, 1 / 2, 1 / 8, 1 / 32])


def test_the_median_is_over_rows_of_their_own_lengths():
    one = torch.tensor([[spread(1, 64)], [spread(32, 64)], [spread(32, 64)]])
    classes, shares = head_classes(one, torch.tensor([64, 32, 64]), mass=1.0)
    assert shares.tolist() == [0.5]
    assert classes.tolist() == [2]


def test_further_axes_are_heads():
    patterns = torch.rand(5, 3, 4, 40).softmax(dim=-1)
    classes, shares = head_classes(patterns, torch.full((5,), 40))
    assert classes.shape == shares.shape == (3, 4)


def test_bounds_belong_to_the_sharper_class():
    assert class_of_share(torch.tensor([1.0, 0.51, 0.5, 0.13, 0.125, 0.04, 1 / 32])).tolist() == [
        1,
        1,
        2,
        2,
        3,
        3,
        4,
    ]
