"""What a row takes, and rows that are run in chunks that fit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from hopscope.engine.memory import in_chunks, memory_budget, row_bytes
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_any


def chunks(n_rows: int, at_once: int, memory: int, error: Exception) -> list[list[int]]:
    """The chunks that were run through, where more than `memory` rows raise an error."""
    found: list[list[int]] = []

    def run(rows: Sequence[int]) -> None:
        if len(rows) > memory:
            raise error
        found.append(list(rows))

    in_chunks(list(range(n_rows)), run, lambda left: min(at_once, len(left)))
    return found


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("n_rows", "at_once", "memory", "sizes"),
    [
        (0, 4, 9, []),
        (7, 3, 9, [3, 3, 1]),
        (3, 0, 9, [1, 1, 1]),
        (9, 8, 3, [2, 2, 2, 2, 1]),
        (5, 5, 1, [1, 1, 1, 1, 1]),
    ],
)
def test_every_row_is_run_once_and_in_order(
    n_rows: int, at_once: int, memory: int, sizes: list[int]
) -> None:
    found = chunks(n_rows, at_once, memory, OUT_OF_MEMORY)
    assert [len(chunk) for chunk in found] == sizes
    assert [row for chunk in found for row in chunk] == list(range(n_rows))


@pytest.mark.parametrize(
    ("memory", "error"), [(0, OUT_OF_MEMORY), (3, RuntimeError("a bug")), (3, KeyError("a"))]
)
def test_what_halving_does_not_mend_is_raised(memory: int, error: Exception) -> None:
    with pytest.raises(type(error)):
        chunks(8, 8, memory, error)


@pytest.mark.parametrize("name", ["tiny-random-llama", "tiny-random-gpt2", "tiny-random-t5"])
def test_a_row_takes_more_the_longer_it_is(name: str) -> None:
    model = load_any(name, device="cpu")
    sizes = [row_bytes(model, *lengths) for lengths in ((1, 1, 1), (9, 9, 9), (9, 12, 9))]
    assert 2 * model.vocab_size * 8 < sizes[0] < sizes[1] < sizes[2]
    assert row_bytes(model, 9, 9, 40, fused=True) < row_bytes(model, 9, 9, 40)


def test_memory_that_was_asked_for_is_not_measured(llama: LanguageModel) -> None:
    assert memory_budget(llama, 7) == 7
    assert memory_budget(llama, None) == 2**30
