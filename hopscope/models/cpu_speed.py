"""Provides advise_on_dtype(): which dtype is the faster one on this CPU, measured and said."""

import logging
from functools import cache
from time import perf_counter

import torch

logger = logging.getLogger(__name__)

SIZE, REPEATS = 512, 9
WORTH_SAYING = 1.5


def advise_on_dtype(name: str, dtype: torch.dtype) -> None:
    """Warn if another dtype is faster on this CPU.

    Some CPUs are several times as fast in bfloat16 as in float32 (with AMX), others slower. Which
    it is does not change the default, float32: the same call shall give the same numbers anywhere.

    Args:
        name: Name of the model.
        dtype: The dtype in which it was loaded.
    """
    if dtype != torch.float32 and (slower := slowdown(dtype)) > WORTH_SAYING:
        logger.warning(
            "%s was loaded in %s, in which this CPU is slower than in float32 (by a factor of "
            "about %.1f in a matrix product); leave dtype out, unless memory is short",
            name,
            str(dtype).removeprefix("torch."),
            slower,
        )
    if dtype == torch.float32 and (faster := 1 / slowdown(torch.bfloat16)) > WORTH_SAYING:
        logger.warning(
            "with dtype='bfloat16' %s would be faster on this CPU (by a factor of about %.1f in a "
            "matrix product), and its numbers rounded",
            name,
            faster,
        )


@cache
def slowdown(dtype: torch.dtype) -> float:
    """Return how many times as long as in float32 a matrix product takes on this CPU.

    It is measured once a process: the shortest times of several products, in both dtypes in turn.

    Args:
        dtype: The dtype that is compared with float32.
    """
    matrices = [torch.ones(SIZE, SIZE, dtype=each) for each in (dtype, torch.float32)]
    times: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for matrix, taken in zip(matrices, times, strict=True):
            begun = perf_counter()
            torch.nn.functional.linear(matrix, matrix)
            taken.append(perf_counter() - begun)
    return min(times[0]) / min(times[1])
