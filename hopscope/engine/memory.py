"""Provides how much memory a row takes, and the running of rows in chunks that fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from hopscope.display.progress import share, tell_done
from hopscope.models.token_model import TokenModel

logger = logging.getLogger(__name__)

Row = TypeVar("Row")


def free_memory(device: torch.device) -> int:
    """Bytes that a sweep may take: half of what a GPU has free, or 1 GiB of a CPU's memory."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + unused) // 2
    return 2**30


def memory_budget(model: TokenModel, max_memory: int | None) -> int:
    """Bytes that the rows may take: as many as were asked for, or what is free."""
    return free_memory(model.device) if max_memory is None else max_memory


def row_bytes(
    model: TokenModel, n_queries: int, n_kept: int, n_keys: int, *, fused: bool = False
) -> int:
    """Bytes that one row takes: what it keeps, the widest block, two copies of its logits.

    Args:
        model: the model.
        n_queries: tokens of the row in its first pass.
        n_kept: tokens whose keys and values are the row's own.
        n_keys: tokens that its queries may see.
        fused: whether attention scores are never written out, only a mask of numbers.
    """
    config, width = model.config, torch.finfo(model.dtype).bits // 8
    kv_heads = getattr(config, "num_key_value_heads", None) or model.n_heads
    inner = (getattr(config, name, None) for name in ("intermediate_size", "d_ff"))
    widest = next(filter(None, inner), 4 * model.d_model)
    kept = 2 * model.n_layers * kv_heads * model.head_dim * n_kept
    block = n_queries * (4 * widest + 8 * model.d_model)
    scores = (4 if fused else 16) * n_queries * model.n_heads * n_keys
    return (kept + block) * width + scores + 2 * model.vocab_size * (width + 4)


def in_chunks(
    rows: Sequence[Row],
    run: Callable[[Sequence[Row]], None],
    n_fitting: Callable[[Sequence[Row]], int],
) -> None:
    """Run rows in chunks that fit into memory; halve the chunk and go on where memory runs out.

    Args:
        rows: what is to run, in this order.
        run: runs some of them; what it has done of a chunk that failed is done again.
        n_fitting: how many of the first of the rows that are left fit; at least one is run.

    Raises:
        torch.OutOfMemoryError: if a single row does not fit.
    """
    done, most = 0, len(rows)
    while done < len(rows):
        left = rows[done:]
        chunk = left[: max(1, min(most, n_fitting(left)))]
        low, high = done / len(rows), (done + len(chunk)) / len(rows)
        with share(low, high, in_chunk=len(rows) > 1):
            if enough := _runs(run, chunk):
                tell_done(1.0)
        if enough:
            done += len(chunk)
        else:
            most = len(chunk) // 2
            torch.cuda.empty_cache()  # what the failed chunk held is free only now
            logger.warning("out of memory with %d rows; going on with %d", len(chunk), most)


def _runs(run: Callable[[Sequence[Row]], None], chunk: Sequence[Row]) -> bool:
    """Run a chunk; whether memory sufficed."""
    try:
        run(chunk)
    except RuntimeError as error:
        if len(chunk) == 1 or not out_of_memory(error):
            raise
        return False
    return True


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error)  # a CPU's memory has no type of its own
