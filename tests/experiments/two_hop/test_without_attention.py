"""Analyses of the residual stream on families some or all blocks of which have no attention."""

from __future__ import annotations

import logging

import pytest
import torch
from families import model_of
from known import INCORRECT, known_queries
from plain import plain_output, states

import hopscope as hs
from hopscope.engine.edits import Patch
from hopscope.errors import ModelError
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet


@pytest.fixture(params=["mamba2", "qwen3_next", "recurrent_gemma"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return model_of(request.param)


@pytest.fixture
def query() -> QuerySet:
    """A query whose answer begins otherwise than its bridge, also byte by byte."""
    return known_queries().filter(lambda query: query.id == INCORRECT[2])


def test_back_patching(model: LanguageModel, query: QuerySet) -> None:
    cells = [(3, 0), (2, 1)]
    result = hs.back_patch(
        model, query, ["t2"], controls=[], cells=cells, max_new_tokens=3, progress=False
    )
    (prompt,) = query.prompts()
    ids = model.encode(prompt.text).ids
    answer = model.answer_tokens(query[0].names("e3"), True, prompt.end, query[0].names("e2"))
    clean = states(model.hf, ids)
    for source, target in cells:
        row = result.frame.query(f"source_layer == {source} and target_layer == {target}")
        found = plain_output(model.hf, ids, [Patch(target, -1, clean[source, -1])])
        expected = pytest.approx(found.logprob(answer), abs=1e-4)
        assert float(row["answer_logprob"].iloc[0]) == expected


def test_projection_of_the_stream(model: LanguageModel, query: QuerySet) -> None:
    result = hs.project(model, query, ["t2"], sites=["resid_post"], progress=False)
    (prompt,) = query.prompts()
    ids, answer = model.encode(prompt.text).ids, model.first_tokens(query[0].names("e3"), True)
    last = result.frame.query("target == 'e3' and layer == 3")["logprob"].iloc[0]
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([ids])).logits[0, -1]
    expected = torch.log_softmax(logits, dim=-1)[list(answer)].max()
    assert float(last) == pytest.approx(float(expected), abs=1e-4)
    with pytest.raises(ModelError, match="mlp_out cannot be read or changed in"):
        hs.project(model, query, ["t2"], sites=["mlp_out"], progress=False)


def test_descriptions(model: LanguageModel, query: QuerySet) -> None:
    result = hs.describe(
        model, query, ["t2"], source_layers=[2], target_layers=[1], max_new_tokens=3, progress=False
    )
    assert len(result.frame)


def test_knockouts_say_why_not(model: LanguageModel, query: QuerySet) -> None:
    with pytest.raises(ModelError, match=r"block 0 of .* has no attention"):
        hs.knockout(model, query, progress=False)
