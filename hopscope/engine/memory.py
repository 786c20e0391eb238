"""Provides how much memory the engine may take, and the running of rows in chunks that fit."""

from __future__ import annotations

import torch


def free_memory(device: torch.device) -> int:
    """Bytes that a sweep may take: half of what a GPU has free, or 1 GiB of a CPU's memory."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + unused) // 2
    return 2**30


def _out_of_memory(error: RuntimeError) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return True
    return "can't allocate memory" in str(error)
