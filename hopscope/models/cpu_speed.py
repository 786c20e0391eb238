"""Provides cpu_slowdown(): how much longer this CPU takes in a dtype than in float32."""

from functools import cache
from time import perf_counter

import torch

SIZE = 1024
REPEATS = 5


@cache
def cpu_slowdown(dtype: torch.dtype) -> float:
    """Return how many times as long as in float32 a matrix product takes on this CPU.

    CPUs with AMX are faster in bfloat16 than in float32; those without are slower, since they
    convert every number. It is measured once a process, in a few milliseconds.

    Args:
        dtype: The dtype that is compared with float32.
    """
    return _seconds(dtype) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The shortest time of a product of two square matrices."""
    matrix = torch.ones(SIZE, SIZE, dtype=dtype)
    times = []
    for _ in range(REPEATS + 1):
        begun = perf_counter()
        torch.nn.functional.linear(matrix, matrix)
        times.append(perf_counter() - begun)
    return min(times[1:])
