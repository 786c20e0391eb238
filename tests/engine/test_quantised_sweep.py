"""The engine against the plain way on quantised models: the same numbers and tokens."""

from __future__ import annotations

import pytest
import torch
from test_sweep import N_TOKENS, READ, Problem, assert_equal

from hopscope.engine.support import shares_prefixes
from hopscope.engine.sweep import sweep
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.quantization import QUANTIZATIONS
from hopscope.prompting.capture import capture


def quantised(kind: str, family: str) -> LanguageModel:
    pytest.importorskip(QUANTIZATIONS[kind])
    return load_model(f"tiny-random-{family}", device="cpu", quantization=kind)


@pytest.mark.parametrize(
    ("kind", "family"),
    [(kind, "mistral") for kind in QUANTIZATIONS] + [("int8", "gpt-neox"), ("nf4", "gpt2")],
)
def test_every_kind_of_cell(kind: str, family: str) -> None:
    problem = Problem.of(quantised(kind, family))
    cells = problem.every_kind()
    assert shares_prefixes(problem.model, len(problem.ids) + N_TOKENS)
    assert_equal(sweep(problem.model, problem.ids, cells, READ), problem.plain(cells))


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_heads_add_up_to_attention(kind: str) -> None:
    found = capture(
        quantised(kind, "mistral"),
        ["The capital of France is"],
        ["attn_head_out", "attn_out"],
        [3, -1],
    )
    heads, whole = found["attn_head_out"].sum(dim=3), found["attn_out"]
    torch.testing.assert_close(heads, whole, atol=1e-4, rtol=1e-4)
