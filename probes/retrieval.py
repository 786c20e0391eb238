"""Provides keys_held() and head_classes(): over how many keys a head spreads its attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

BOUNDS = (1 / 2, 1 / 8, 1 / 32)
"""Shares of keys that separate the classes: more than the first is class I, at most the last class
IV."""


def keys_held(
    patterns: Float[Tensor, "*row key"], mass: float = 0.9, *, tolerance: float = 1e-4
) -> Int[Tensor, "*row"]:
    """Return the smallest number of keys that hold a given share of each row's attention.

    Args:
        patterns: attention weights, shape (..., key); each row sums to 1.
        mass: the share of the attention, from 0 to 1.
        tolerance: amount by which a sum may fall short of `mass`, because weights are rounded.

    Returns:
        Numbers of keys, shape (...).

    Example:
        >>> keys_held(torch.tensor([[0.95, 0.05, 0.0], [0.4, 0.3, 0.3]])).tolist()
        [1, 3]
    """
    weights = patterns.float()
    weights = weights / weights.sum(dim=-1, keepdim=True)  # rounded weights may not sum to 1
    held = weights.sort(dim=-1, descending=True).values.cumsum(dim=-1)
    k = (held < mass - tolerance).sum(dim=-1) + 1
    return k.clamp(max=patterns.shape[-1])


def head_classes(
    patterns: Float[Tensor, "row *head key"],
    n_keys: Int[Tensor, " row"],
    mass: float = 0.9,
) -> tuple[Int[Tensor, "*head"], Float[Tensor, "*head"]]:
    """Classify heads by the kind of fixed point of a Hopfield network that they retrieve.

    Hopfield Networks is All You Need (Ramsauer et al. 2020), section 3. Class I averages over more
    than half of the keys, classes II and III over large and small subsets, and class IV over at
    most one key in 32. In the paper all rows have N keys. With causal attention the number of keys
    differs between rows, so that the class is that of the median share k / N.

    Args:
        patterns: attention weights of some rows in each head, such as those of the last token of
            each prompt, shape (row, ..., key); 0 for keys that a row does not attend to.
        n_keys: number of keys that each row may attend to, shape (row,). A row with fewer than 32
            cannot be of class IV.
        mass: the share of the attention that the keys must hold.

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
    """Return the class, 1 to 4, of heads by the share of keys that holds their attention.

    Example:
        >>> class_of_share(torch.tensor([0.6, 0.5, 0.125, 0.03125])).tolist()
        [1, 2, 3, 4]
    """
    return 1 + (share[..., None] <= torch.tensor(BOUNDS, device=share.device)).sum(dim=-1)
