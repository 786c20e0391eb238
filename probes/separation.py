"""Provides iicg(): whether states of the same group point the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hopscope.errors import UsageError

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def iicg(
    states: Float[Tensor, "item *rest d_model"],
    groups: Int[Tensor, " item"],
    among: Int[Tensor, " item"] | None = None,
) -> Float[Tensor, "*rest"]:
    """The intra-inter cosine gap: mean cosine within groups less the mean between them.

    The Coverage Principle (Chang et al. 2025), section 4: grouped by bridge entity, it tells
    whether a position and layer holds the bridge, whichever way it was reached.

    Args:
        states: of each item; further axes, such as position and layer, are kept.
        groups: the group of each item, such as the index of its bridge.
        among: compare only items that have this in common, such as the token at the position,
            so that it makes no gap. All pairs that are compared weigh the same.

    Returns:
        From -2 to 2: 1 for groups that are orthogonal to one another, 0 for none; NaN if no two
        of the items that are compared share a group, or all do.

    Raises:
        UsageError: for groups, or what items have in common, of another number of items.

    Example:
        >>> states = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> float(iicg(states, torch.tensor([0, 0, 1, 1])))
        1.0
    """
    unit = torch.nn.functional.normalize(states.float(), dim=-1)
    among = torch.zeros_like(groups) if among is None else among
    if not len(unit) == len(groups) == len(among):
        raise UsageError(
            f"{len(unit)} states, {len(groups)} groups and {len(among)} entries of among: give one "
            "for each item"
        )
    compared, n_compared = _cosines(unit, among[:, None])
    within, n_within = _cosines(unit, torch.stack([among, groups], dim=1))
    n_between = n_compared - n_within
    if not n_within or not n_between:
        return torch.full_like(within, float("nan"))
    return within / n_within - (compared - within) / n_between


def _cosines(
    unit: Float[Tensor, "item *rest d_model"], labels: Int[Tensor, "item label"]
) -> tuple[Float[Tensor, "*rest"], int]:
    """The sum of the cosines of all ordered pairs of items with the same labels; their number."""
    kinds, member = torch.unique(labels, dim=0, return_inverse=True)
    sums = unit.new_zeros(len(kinds), *unit.shape[1:]).index_add(0, member, unit)
    sizes = torch.bincount(member, minlength=len(kinds))
    itself = unit.square().sum(dim=-1).sum(dim=0)  # as many as items, less the states that are 0
    return sums.square().sum(dim=-1).sum(dim=0) - itself, int((sizes * (sizes - 1)).sum())
