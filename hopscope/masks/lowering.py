"""Provides lower(): a mask in the form that an attention implementation takes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from hopscope.errors import UsageError

IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")


def within_window(keep: Tensor, positions: Tensor, window: int) -> Tensor:
    """A keep-mask without what lies `window` or more positions away (sliding-window attention).

    Args:
        keep: booleans of shape (..., query, key).
        positions: the position id of each key, shape (key,); the queries are the last of them.
        window: of the attention, in tokens.
    """
    distance = positions[-keep.shape[-2] :, None] - positions[None, :]
    return keep & (distance.abs() < window)


def lower(
    keep: Bool[Tensor, "row head query key"],
    implementation: str,
    dtype: torch.dtype,
) -> Any:
    """A keep-mask as an attention implementation takes it.

    Args:
        keep: booleans, True where a key is seen.
        implementation: `sdpa` takes them as they are; `eager` a float mask to add, 0 or the least
            number of `dtype`; `flex_attention` a `BlockMask`.
        dtype: of the model.

    Returns:
        A tensor of shape (row, head or 1, query, key), or a `BlockMask`.

    Raises:
        UsageError: for another implementation, another dtype than bool, or a query that sees
            nothing (softmax over nothing is not a number).
    """
    if keep.dtype != torch.bool or keep.ndim != 4:
        raise UsageError(
            f"a keep-mask is boolean with shape (row, head, query, key), not {keep.dtype} with "
            f"shape {tuple(keep.shape)}"
        )
    if not bool(keep.any(dim=-1).all()):
        raise UsageError("a query of this keep-mask sees nothing: let it see itself")
    if implementation == "sdpa":
        return keep
    if implementation == "eager":
        nothing = torch.zeros((), dtype=dtype, device=keep.device)
        return torch.where(keep, nothing, torch.finfo(dtype).min)
    if implementation == "flex_attention":
        return _block_mask(keep)
    raise UsageError(
        f"no mask for the attention implementation {implementation!r}: load the model with "
        f"attn_implementation={' or '.join(map(repr, IMPLEMENTATIONS))}"
    )


def _block_mask(keep: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    rows, heads, n_queries, n_keys = keep.shape

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return keep[row, head if heads > 1 else 0, query, key]

    return create_block_mask(
        sees, rows, heads if heads > 1 else None, n_queries, n_keys, device=str(keep.device)
    )
