"""What is counted of the engine's work, against counts made by hand."""

from __future__ import annotations

import pytest
import torch
from conftest import loaded

from hopscope.engine.cache import Prefix
from hopscope.engine.clean_run import clean_run
from hopscope.engine.edits import Cell, Patch
from hopscope.engine.memory import row_bytes
from hopscope.engine.plain import plain_sweep
from hopscope.engine.read_out import ReadOut
from hopscope.engine.sweep import sweep
from hopscope.engine.work import Work, count, counting
from hopscope.models.load import load_any, load_model
from hopscope.prompting.capture import capture

LLAMA = "tiny-random-llama"
IDS = [5, 9, 13, 17, 21, 25, 29]
AT = 4


def cells() -> list[Cell]:
    """One unedited cell, and one for each block, patched behind it at one token."""
    model = loaded(LLAMA)
    vector = torch.ones(model.d_model)
    return [[], *([Patch(layer, AT, vector)] for layer in range(model.n_layers))]


def test_a_sweep_computes_the_rows_of_a_count_by_hand() -> None:
    model, n = loaded(LLAMA), loaded(LLAMA).n_layers
    sweep(model, IDS, cells(), ReadOut(top_k=1))  # the probes are not counted; others may follow
    with counting(model) as work:
        sweep(model, IDS, cells(), ReadOut(top_k=1))
    # The prompt once; then, from the patched token on, the row of the clean cell in every block,
    # and beside it the cells that were patched in a block before.
    rows = sum(1 + layer for layer in range(n))
    assert work.layer_tokens == n * len(IDS) + rows * (len(IDS) - AT)
    assert work.logit_rows == 1 + 1 + n
    assert work.cells == work.forwards == 1 + n
    of_row = row_bytes(model, len(IDS) - AT, len(IDS) - AT, len(IDS))
    assert work.row_bytes == of_row * (1 + n)


def test_a_plain_sweep_computes_everything_of_every_cell() -> None:
    model = loaded(LLAMA)
    with counting(model) as work:
        plain_sweep(model, IDS, cells(), ReadOut(top_k=1))
    assert work.layer_tokens == len(cells()) * model.n_layers * len(IDS)
    assert work.cells == work.forwards == len(cells())
    assert work.logit_rows == len(cells()) * len(IDS)


def test_plain_hooks_need_a_pass_for_each_token_that_a_cell_generates() -> None:
    model, read_out = loaded(LLAMA), ReadOut(max_new_tokens=3)
    with counting(model) as shared:
        outputs = sweep(model, IDS, cells(), read_out)
    with counting(model) as plain:
        plain_sweep(model, IDS, cells(), read_out)
    assert shared.forwards == sum(len(each) for each in outputs.tokens) == 3 * len(cells())
    assert (shared.cells, shared.forwards) == (plain.cells, plain.forwards)
    assert plain.logit_rows == len(cells()) * (len(IDS) + 2)
    assert shared.layer_tokens < plain.layer_tokens


def test_states_that_are_read_need_a_pass_for_each_prompt() -> None:
    model = loaded(LLAMA)
    with counting(model) as work:
        capture(model, ["the capital of France", "the capital of Peru"], positions=[-1])
    assert (work.cells, work.forwards) == (0, 2)
    with counting(model) as work:
        clean_run(model, IDS, Prefix())
    assert work.forwards == 1
    assert work.layer_tokens == model.n_layers * len(IDS)


def test_probes_of_a_family_are_not_counted() -> None:
    found = []
    model = load_model(LLAMA, device="cpu")
    for _ in range(2):  # the first time, the model is probed
        with counting(model) as work:
            sweep(model, IDS, cells(), ReadOut(top_k=1))
        found.append(work)
    assert found[0] == found[1]


def test_a_chunk_takes_no_more_than_it_may() -> None:
    model = loaded(LLAMA)
    of_row = row_bytes(model, len(IDS) - AT, len(IDS) - AT, len(IDS))
    with counting(model) as work:
        sweep(model, IDS, cells(), ReadOut(top_k=1), max_memory=2 * of_row + 1)
    assert work.row_bytes == 2 * of_row


@pytest.mark.parametrize("name", [LLAMA, "tiny-random-t5"])
def test_nothing_is_counted_outside(name: str) -> None:
    model = load_any(name, device="cpu")
    with counting(model) as work:
        pass
    count(cells=3)
    assert work == Work()
    assert not any(m._forward_hooks for m in model.hf.modules())
