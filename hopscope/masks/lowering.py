"""Provides lower(): a keep-mask in the form that an attention implementation expects."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from hopscope.errors import UsageError

IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")


def within_window(keep: Tensor, positions: Tensor, window: int) -> Tensor:
    """Restrict a keep-mask to a sliding window: keys `window` or more positions away are cut.

    Args:
        keep: booleans of shape (..., query, key).
        positions: position id of each key, shape (key,). The queries are the last of these tokens.
        window: width of the window, in tokens.

    Returns:
        Booleans of the same shape as `keep`.
    """
    distance = positions[-keep.shape[-2] :, None] - positions[None, :]
    return keep & (distance.abs() < window)


def lower(
    keep: Bool[Tensor, "row head query key"],
    implementation: str,
    dtype: torch.dtype,
) -> Any:
    """Convert a keep-mask to the form that an attention implementation expects.

    Args:
        keep: True where the query may attend to the key, shape (row, head or 1, query, key).
        implementation: `sdpa`, which takes the booleans as they are; `eager`, which adds a float
            mask of 0 and the lowest number of `dtype` to the scores; or `flex_attention`, which
            takes a `BlockMask`.
        dtype: dtype of the model.

    Returns:
        A tensor of shape (row, head or 1, query, key), or a `BlockMask`.

    Raises:
        UsageError: for an unknown implementation, a mask of another shape or dtype, or a query
            that may attend to no key (the softmax over no keys is undefined).
    """
    if keep.dtype != torch.bool or keep.ndim != 4:
        raise UsageError(
            f"expected a boolean keep-mask of shape (row, head, query, key), not {keep.dtype} of "
            f"shape {tuple(keep.shape)}"
        )
    if not bool(keep.any(dim=-1).all()):
        raise UsageError("a query of this keep-mask sees nothing: let every token attend to itself")
    if implementation == "sdpa":
        return keep
    if implementation == "eager":
        zero = torch.zeros((), dtype=dtype, device=keep.device)
        return torch.where(keep, zero, torch.finfo(dtype).min)
    if implementation == "flex_attention":
        return _block_mask(keep)
    raise UsageError(
        f"no mask for the attention implementation {implementation!r}: load the model with "
        f"attn_implementation={' or '.join(map(repr, IMPLEMENTATIONS))}"
    )


def _block_mask(keep: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    rows, heads, n_queries, n_keys = keep.shape

    def may_attend(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return keep[row, head if heads > 1 else 0, query, key]

    return create_block_mask(
        may_attend, rows, heads if heads > 1 else None, n_queries, n_keys, device=str(keep.device)
    )
