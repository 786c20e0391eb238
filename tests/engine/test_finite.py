"""What is not a finite number is refused, or counts as not answered: never as a hit."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from hopscope.probes.logit_lens import rank_among
from torch.nn import functional

import hopscope as hs
import hopscope.engine.clean_run
from hopscope.engine.cache import Prefix
from hopscope.engine.clean_run import clean_run
from hopscope.engine.edits import Patch
from hopscope.engine.finite import check_states
from hopscope.engine.plain import plain_sweep
from hopscope.engine.read_out import CellOutputs, ReadOut
from hopscope.engine.sweep import sweep
from hopscope.errors import ModelError
from hopscope.experiments.analysis import Analysis
from hopscope.experiments.catalogue import analyses
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.training.fit import fit
from hopscope.training.settings import Schedule

READ = ReadOut(answer_tokens=(5, 7), also_rank=(9,), max_new_tokens=4, top_k=2, track=(3,))


def broken(how: str) -> LanguageModel:
    """A model whose logits are not finite: NaN in the states, NaN behind them, or an overflow."""
    model = hs.load_model("tiny-random-llama", device="cpu")
    with torch.no_grad():
        if how == "states":
            model.hf.get_input_embeddings().weight.fill_(torch.nan)
        elif how == "logits":
            model.final_norm.weight.fill_(torch.nan)
        else:
            model.unembedding.weight.mul_(1e3)
            model.final_norm.weight.mul_(1e38)
    return model


def inputs(entry: Analysis) -> QuerySet | hs.QuestionSet:
    """A few queries or questions; as many as there are where labels are needed."""
    if entry.asks == "documents":
        questions = hs.load_questions(entry.usual_questions, distractors=0)
        return questions.sample(2, 0).with_few_shot(0, 0)
    queries = hs.load_queries("world").with_few_shot(1, 0)
    return queries if entry.name == "probing" else queries.sample(4, 0)


ASKING = [entry for entry in analyses() if entry.asks != "models"]
OF_STATES = ("probing", "head_retrieval")
"""Analyses that read states alone, so that logits do not matter."""
CASES = [
    (entry, how)
    for entry in ASKING
    for how in ("states", "logits", "overflow")
    if how == "states" or entry.name not in OF_STATES
]


@pytest.mark.parametrize(("entry", "how"), CASES, ids=lambda each: getattr(each, "name", each))
def test_every_analysis_refuses_a_model_that_computes_no_numbers(entry: Analysis, how: str) -> None:
    fewer = {"order_choice": {"k": 2}, "haystack": {"tokens": 24}}.get(entry.name, {})
    with pytest.raises(ModelError, match=r"(that ends in '.*|the unembedding .*) not finite"):
        entry.function(broken(how), inputs(entry), progress=False, **fewer)


@pytest.mark.parametrize("run", [sweep, plain_sweep])
def test_an_edit_that_breaks_a_cell_is_no_hit_and_leaves_the_others(
    tiny_model: LanguageModel, run: Callable[..., CellOutputs], caplog: pytest.LogCaptureFixture
) -> None:
    ids = tiny_model.encode("The capital of the country of Nauru is").ids
    vector = torch.randn(tiny_model.d_model, generator=torch.Generator().manual_seed(0))
    cells = [[], [Patch(0, 2, vector)], [Patch(0, 2, vector * torch.nan)], [Patch(1, -1, vector)]]
    with caplog.at_level(logging.WARNING):
        outputs = run(tiny_model, ids, cells, READ)
    fine = run(tiny_model, ids, [cell for i, cell in enumerate(cells) if i != 2], READ)
    assert outputs.finite.tolist() == [True, True, False, True]
    assert outputs.rank[2] == outputs.also_rank[2] == tiny_model.vocab_size
    assert outputs.logprob[2].isnan()
    assert outputs.tracked[2].isnan().all()
    assert outputs.tokens[2] == ()
    others = [0, 1, 3]
    assert outputs.rank[others].tolist() == fine.rank.tolist()
    assert tuple(outputs.tokens[i] for i in others) == fine.tokens
    torch.testing.assert_close(outputs.logprob[others], fine.logprob)
    if run is sweep:
        (said,) = caplog.messages
        assert "1 of 4 patched versions of 'The capital of the country of Nauru is'" in said
        assert said.endswith("the first is Patch of resid_post in layer 0 at token 2")


def test_a_sweep_whose_cells_are_all_broken_is_refused(llama: LanguageModel) -> None:
    ids = llama.encode("The capital of the country of Nauru is").ids
    nan = torch.full((llama.d_model,), torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        sweep(llama, ids, [[Patch(layer, 2, nan)] for layer in (0, 1)], READ)


@pytest.mark.parametrize("run", [sweep, plain_sweep])
def test_a_text_ends_where_its_logits_are_no_numbers(run: Callable[..., CellOutputs]) -> None:
    model = hs.load_model("tiny-random-llama", device="cpu")
    model.hf.lm_head.weight = torch.nn.Parameter(model.hf.lm_head.weight.clone())  # not tied
    ids = model.encode("The capital of the country of Nauru is").ids
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    cells = [[], [Patch(model.n_layers - 1, -1, vector)]]
    own, patched = sweep(model, ids, cells, ReadOut(max_new_tokens=4)).tokens
    assert patched[0] not in (*own, *ids)
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[patched[0]] = torch.nan
    outputs = run(model, ids, cells, ReadOut(max_new_tokens=4))
    assert outputs.tokens == (own, patched[:1])
    assert outputs.finite.tolist() == [True, False]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_rank_among_no_numbers_is_no_tokens_rank(bad: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, bad, 2.0], [bad, bad, bad]])
    assert rank_among(logits, logits[:, 1]).tolist() == [0, 3, 3]
    higher = 0 if bad == -torch.inf else 1
    assert rank_among(logits[1], torch.tensor(2.0)).tolist() == higher


def test_training_stops_when_its_loss_is_no_number() -> None:
    module = torch.nn.Linear(2, 2)

    def loss_of(step: int) -> torch.Tensor:
        return functional.mse_loss(module(torch.full((1, 2), torch.inf)), torch.zeros(1, 2))

    with pytest.raises(ModelError, match="the loss is nan after 3 steps"):
        fit(module, loss_of, Schedule(steps=3), seed=0, progress=False)


@pytest.mark.parametrize("layer", [0, -1])
def test_a_clean_run_checks_the_states_of_one_layer(
    layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no number in one is none in those that follow, and all states may be gigabytes."""
    model, checked = hs.load_model("tiny-random-llama", device="cpu"), list[torch.Size]()
    ids = (5, 9, 40, 7)

    def check(model: LanguageModel, states: torch.Tensor, prompts: list[tuple[int, ...]]) -> None:
        checked.append(states.shape)
        check_states(model, states, prompts)

    monkeypatch.setattr(hopscope.engine.clean_run, "check_states", check)
    clean_run(model, ids, Prefix())
    assert checked == [(1, len(ids), model.d_model)]
    model.layers[layer].get_parameter("mlp.down_proj.weight").data[0, 0] = torch.inf
    with pytest.raises(ModelError, match=r"the states of tiny-random-llama .* not finite numbers"):
        clean_run(model, ids, Prefix())
