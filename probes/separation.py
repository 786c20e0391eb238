"""Provides iicg(): whether states of the same group point the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def iicg(
    states: Float[Tensor, "item *rest d_model"], groups: Int[Tensor, " item"]
) -> Float[Tensor, "*rest"]:
    """The intra-inter cosine gap: mean cosine within groups less the mean between them.

    The Coverage Principle (Chang et al. 2025), section 4: grouped by bridge entity, it tells
    whether a position and layer holds the bridge, whichever way it was reached.

    Args:
        states: of each item; further axes, such as position and layer, are kept.
        groups: the group of each item, such as the index of its bridge.

    Returns:
        From -2 to 2: 1 for groups that are orthogonal to one another, 0 for none; NaN if no two
        items share a group, or all do.

    Example:
        >>> states = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> float(iicg(states, torch.tensor([0, 0, 1, 1])))
        1.0
    """
    unit = torch.nn.functional.normalize(states.float(), dim=-1)
    kinds, member = torch.unique(groups, return_inverse=True)
    sums = unit.new_zeros(len(kinds), *unit.shape[1:]).index_add(0, member, unit)
    sizes = torch.bincount(member, minlength=len(kinds)).float()
    n = float(len(unit))
    same_itself = unit.square().sum(dim=-1).sum(dim=0)  # n, less the states that are zero
    within = sums.square().sum(dim=-1).sum(dim=0) - same_itself
    between = unit.sum(dim=0).square().sum(dim=-1) - same_itself - within
    n_within = float((sizes * (sizes - 1)).sum())
    n_between = n * (n - 1) - n_within
    if not n_within or not n_between:
        return torch.full_like(within, float("nan"))
    return within / n_within - between / n_between
