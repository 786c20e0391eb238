"""Readers: the same questions to each kind of model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from multidoc import QUESTION, SHORT, encode_by

from hopscope.documents.lay_out import lay_out
from hopscope.engine.edits import Knockout
from hopscope.engine.masked.reader import reader_of
from hopscope.engine.read_out import ReadOut, Version
from hopscope.errors import ModelError
from hopscope.masks.named import knock_out, mask_of
from hopscope.models.load import load_any
from hopscope.models.token_model import TokenModel

READ = ReadOut(track=tuple(range(512)), max_new_tokens=3)
BOTH = ("tiny-random-llama", "tiny-random-t5")


@pytest.mark.parametrize("name", BOTH)
def test_blocked_edges_are_those_that_a_mask_knocks_out(name: str) -> None:
    model = load_any(name, device="cpu")
    reader, layout = reader_of(model), lay_out(encode_by(model), QUESTION, template=SHORT)
    ends = layout.tokens("question"), layout.tokens("gold 1")
    cells: Sequence[Knockout | None] = [None, Knockout([0, 2], *ends), Knockout([1], *ends, [3])]
    usual = mask_of(reader.usual_mask)
    masks = [usual, usual & knock_out(*ends, [0, 2]), usual & knock_out(*ends, [1], [3])]
    found = reader.blocking(layout)(cells, READ)
    expected = reader.read([Version(layout, mask) for mask in masks], READ).outputs
    torch.testing.assert_close(found.tracked, expected.tracked, atol=1e-4, rtol=1e-4)
    first = [[tokens[0] for tokens in each.tokens] for each in (found, expected)]
    assert first[0] == first[1], "later tokens see more where only the prompt is blocked"
    assert (found.tracked[0] - found.tracked[1]).abs().max() > 1e-2


def test_what_a_reader_says_of_its_model() -> None:
    llama, t5 = (reader_of(load_any(name, device="cpu")) for name in BOTH)
    assert (llama.usual_mask, llama.looks_ahead, llama.n_mask_layers) == ("causal", False, 4)
    assert (t5.usual_mask, t5.looks_ahead, t5.n_mask_layers) == ("prefix_bidirectional", True, 4)


def test_a_model_of_another_kind_is_refused() -> None:
    model = load_any(BOTH[0], device="cpu")
    other = TokenModel(model.hf, model.tokenizer, "other")
    other.__class__ = type("Other", (TokenModel,), {"n_layers": 1})
    with pytest.raises(ModelError, match="nothing reads"):
        reader_of(other)
