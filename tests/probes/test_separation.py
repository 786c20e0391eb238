"""IICG against every pair of states, one by one."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hopscope.probes import iicg

from hopscope.errors import UsageError


def pairwise(
    states: torch.Tensor, groups: torch.Tensor, among: torch.Tensor | None = None
) -> float:
    within, between = [], []
    for a, b in combinations(range(len(states)), 2):
        if among is not None and among[a] != among[b]:
            continue
        cosine = torch.cosine_similarity(states[a], states[b], dim=0)
        (within if groups[a] == groups[b] else between).append(float(cosine))
    return sum(within) / len(within) - sum(between) / len(between)


def test_it_is_the_mean_over_pairs():
    states = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    groups = torch.randint(4, (30,), generator=torch.Generator().manual_seed(1))
    assert float(iicg(states, groups)) == pytest.approx(pairwise(states, groups), abs=1e-5)


def test_only_items_with_something_in_common_are_compared():
    rng = torch.Generator().manual_seed(0)
    token, groups = torch.randint(3, (2, 30), generator=rng)
    states = 9 * torch.eye(5)[token] + torch.randn(30, 5, generator=rng)
    gap = float(iicg(states, groups, among=token))
    assert gap == pytest.approx(pairwise(states, groups, token), abs=1e-5)
    assert float(iicg(states, groups + 3 * token)) > 0.5 > 0.2 > abs(gap)
    for nothing_in_common in (torch.arange(30), groups):  # no pairs at all, none between groups
        assert torch.isnan(iicg(states, groups, among=nothing_in_common))


@pytest.mark.parametrize(("n_groups", "n_among"), [(3, 4), (4, 5)])
def test_labels_of_another_number_of_items_are_refused(n_groups, n_among):
    with pytest.raises(UsageError, match=f"4 states, {n_groups} groups and {n_among} entries"):
        iicg(torch.randn(4, 3), torch.zeros(n_groups), torch.zeros(n_among))


def test_further_axes_are_kept():
    states = torch.randn(12, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(12) % 3
    gap = iicg(states, groups)
    assert gap.shape == (2, 3)
    for position in range(2):
        for layer in range(3):
            expected = pairwise(states[:, position, layer], groups)
            assert float(gap[position, layer]) == pytest.approx(expected, abs=1e-5)


def test_lengths_do_not_count_and_opposite_groups_give_two():
    states = torch.tensor([[1.0, 0], [9, 0], [-0.1, 0], [-5, 0]])
    assert float(iicg(states, torch.tensor([0, 0, 7, 7]))) == pytest.approx(2)
    assert float(iicg(states.bfloat16(), torch.tensor([0, 0, 7, 7]))) == pytest.approx(2)


@pytest.mark.parametrize("groups", [[0, 0, 0], [0, 1, 2]])
def test_without_pairs_of_both_kinds_there_is_no_gap(groups):
    assert torch.isnan(iicg(torch.randn(3, 4), torch.tensor(groups)))
