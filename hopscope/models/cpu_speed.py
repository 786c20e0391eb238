"""Provides advise_on_dtype(): which dtype is the faster one on this CPU, measured and said."""

import logging
from functools import cache
from time import perf_counter

import torch

logger = logging.getLogger(__name__)

SIZE, REPEATS = 1024, 5
WORTH_SAYING = 1.5


def advise_on_dtype(name: str, dtype: torch.dtype) -> None:
    """Say that another dtype is faster on this CPU: a warning if float32 is, or else for the log.

    CPUs with AMX are several times as fast in bfloat16 as in float32. Those without are slower,
    since they convert every number. Which it is does not change the default, float32: the same call
    shall give the same numbers on every machine.

    Args:
        name: Name of the model.
        dtype: The dtype in which it was loaded.
    """
    if dtype != torch.float32 and (slower := slowdown(dtype)) > WORTH_SAYING:
        logger.warning(
            "%s was loaded in %s, in which this CPU takes %.1f times as long as in float32; leave "
            "dtype out, unless memory is short",
            name,
            str(dtype).removeprefix("torch."),
            slower,
        )
    if dtype == torch.float32 and logger.isEnabledFor(logging.INFO):
        faster = 1 / slowdown(torch.bfloat16)
        if faster > WORTH_SAYING:
            logger.info(
                "this CPU is %.1f times as fast in bfloat16 as in float32; with dtype='bfloat16' "
                "%s would be faster, and its numbers rounded",
                faster,
                name,
            )


@cache
def slowdown(dtype: torch.dtype) -> float:
    """Return how many times as long as in float32 a matrix product takes on this CPU.

    It is measured once a process, in some tenths of a second.

    Args:
        dtype: The dtype that is compared with float32.
    """
    return _seconds(dtype) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """Return the shortest time of a product of two square matrices."""
    matrix = torch.ones(SIZE, SIZE, dtype=dtype)
    times = []
    for _ in range(REPEATS + 1):
        begun = perf_counter()
        torch.nn.functional.linear(matrix, matrix)
        times.append(perf_counter() - begun)
    return min(times[1:])
