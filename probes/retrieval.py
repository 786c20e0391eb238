"""Provides keys_held() and head_classes(): how many keys an attention head retrieves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

BOUNDS = (1 / 2, 1 / 8, 1 / 32)
"""Shares of the keys: a head of class I holds more than the first, one of class IV at most the
last."""


def keys_held(
    patterns: Float[Tensor, "*row key"], mass: float = 0.9, *, tolerance: float = 1e-4
) -> Int[Tensor, "*row"]:
    """The least number of keys that hold a share of each row's attention.

    Args:
        patterns: attention weights; each row sums to 1.
        mass: the share.
        tolerance: by which a sum of rounded weights may fall short of it.

    Example:
        >>> keys_held(torch.tensor([[0.95, 0.05, 0.0], [0.4, 0.3, 0.3]])).tolist()
        [1, 3]
    """
    weights = patterns.float()
    weights = weights / weights.sum(dim=-1, keepdim=True)  # rounded ones sum to 1 no more
    held = weights.sort(dim=-1, descending=True).values.cumsum(dim=-1)
    k = (held < mass - tolerance).sum(dim=-1) + 1
    return k.clamp(max=patterns.shape[-1])


def head_classes(
    patterns: Float[Tensor, "row *head key"],
    n_keys: Int[Tensor, " row"],
    mass: float = 0.9,
) -> tuple[Int[Tensor, "*head"], Float[Tensor, "*head"]]:
    """Which kind of fixed point of a Hopfield network each head retrieves.

    Hopfield Networks is All You Need (Ramsauer et al. 2020), section 3: I, a global average over
    more than half of the keys; II and III, averages over large and small subsets; IV, at most one
    key in 32. There all rows have N keys; a causal row has as many as it has tokens before it,
    and itself, so that the share k / N is what its median is taken of.

    Args:
        patterns: attention weights of some rows in each head, such as those of the last tokens of
            prompts; keys that a row does not see have none.
        n_keys: how many keys each row sees. A row of fewer than 32 cannot be of class IV.
        mass: the share of the weight that the keys must hold.

    Returns:
        The class of each head, 1 to 4, and its median share of keys over the rows.

    Example:
        >>> sharp, flat = [1.0] + [0.0] * 39, [1 / 40] * 40
        >>> classes, shares = head_classes(torch.tensor([[sharp, flat]]), torch.tensor([40]))
        >>> classes.tolist()
        [4, 1]
    """
    k = keys_held(patterns, mass)
    n = n_keys.to(k.device).reshape(-1, *[1] * (k.ndim - 1))
    share = (k / n).quantile(0.5, dim=0)
    return class_of_share(share), share


def class_of_share(share: Float[Tensor, "*head"]) -> Int[Tensor, "*head"]:
    """The class, 1 to 4, of heads whose attention is held by a share of the keys.

    Example:
        >>> class_of_share(torch.tensor([0.6, 0.5, 0.125, 0.03125])).tolist()
        [1, 2, 3, 4]
    """
    return 1 + (share[..., None] <= torch.tensor(BOUNDS, device=share.device)).sum(dim=-1)
