"""Provides iicg(): whether hidden states of the same group have similar directions."""

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
    """Return the intra-inter cosine gap: the mean cosine within groups minus that between them.

    The Coverage Principle (Chang et al. 2025), section 4. With groups by bridge entity, it shows
    whether a position and layer represents the bridge, however the bridge was reached.

    Args:
        states: hidden states, shape (item, ..., d_model); further axes, such as position and
            layer, are kept.
        groups: group of each item, such as the index of its bridge, shape (item,).
        among: if given, only items with the same value are compared, such as those with the same
            token at the position, so that this does not contribute to the gap. All compared pairs
            have the same weight. Shape (item,).

    Returns:
        The gap, from -2 to 2, without the axes of items and d_model: 1 for groups in orthogonal
        directions, 0 for no grouping. NaN if none of the compared pairs share a group, or all do.

    Raises:
        UsageError: if `groups` or `among` has another number of items than `states`.

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
            "of each for every item"
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
    """Return the sum of cosines over ordered pairs of items with equal labels, and their number."""
    kinds, member = torch.unique(labels, dim=0, return_inverse=True)
    sums = unit.new_zeros(len(kinds), *unit.shape[1:]).index_add(0, member, unit)
    sizes = torch.bincount(member, minlength=len(kinds))
    itself = unit.square().sum(dim=-1).sum(dim=0)  # the number of items with non-zero states
    return sums.square().sum(dim=-1).sum(dim=0) - itself, int((sizes * (sizes - 1)).sum())
