"""Clusters of top tokens and the middle ranks in them, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from hopscope.probes import key_clusters


def test_a_rank_is_inside_if_any_top_token_has_its_cluster():
    generator = torch.Generator().manual_seed(0)
    ranked = torch.stack([torch.randperm(50, generator=generator)[:12] for _ in range(4)])
    clusters = torch.randint(6, (50,), generator=generator)
    answers = torch.rand(4, 12, generator=generator) < 0.3
    found = key_clusters(ranked, clusters, answers, top=3)
    right = {True: [], False: []}
    for item in range(4):
        near = {int(clusters[token]) for token in ranked[item, :3]}
        for rank in range(3, 12):
            inside = int(clusters[ranked[item, rank]]) in near
            assert bool(found.inside[item, rank - 3]) == inside
            right[inside].append(bool(answers[item, rank]))
    expected = [sum(each) / len(each) for each in (right[True], right[False])]
    assert found.accuracy == pytest.approx(expected)


def test_without_a_rank_on_one_side_there_is_no_accuracy():
    ranked = torch.tensor([[0, 1, 2]])
    inside, outside = key_clusters(ranked, torch.zeros(3).long(), ranked == 1, top=1).accuracy
    assert inside == 0.5
    assert math.isnan(outside)


def test_a_middle_is_needed():
    with pytest.raises(ValueError, match="leave no middle"):
        key_clusters(torch.zeros(1, 10).long(), torch.zeros(3).long(), torch.zeros(1, 10).bool())
