"""One run on a real model: SmolLM2-135M, real two-hop queries, from grading to a figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from plain import plain_output, states
from torch import Tensor

import hopscope as hs
from hopscope.engine.edits import Patch
from hopscope.experiments.randomness import random_like
from hopscope.experiments.two_hop.back_patching import BackPatching, cells_of
from hopscope.experiments.two_hop.grading import Grading
from hopscope.models.language_model import LanguageModel
from hopscope.queries.answers import matches
from hopscope.queries.prompts import Prompt
from hopscope.queries.query_set import QuerySet
from hopscope.study.figures import draw_figures

SCRIPTS = Path(__file__).parents[1] / "figures"
PLACES = (
    "alexandria guadalajara kumasi leeds osaka phuket yokohama kyoto lyon munich naples porto "
    "delphi himeji-castle malbork-castle mount-logan agra mumbai toronto barcelona"
)
STEP = 6
EVERY = 17
"""Every how many cells one is computed the plain way, too."""


@dataclass(frozen=True)
class Run:
    """What the run made."""

    model: LanguageModel
    graded: Grading
    patched: BackPatching
    folder: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    model = hs.load_model("smollm2-135m", device="cpu")
    wanted = {f"{place}.country.capital" for place in PLACES.split()}
    queries = hs.load_queries("world").filter(lambda query: query.id in wanted)
    graded = hs.grade(model, queries, out=folder / "grading", progress=False)
    patched = hs.back_patch(
        model,
        graded.incorrect()[:2],
        cells=cells_of(range(0, model.n_layers, STEP)),
        out=folder / "back_patching.incorrect",
        progress=False,
    )
    return Run(model, graded, patched, folder)


@pytest.mark.real_model
def test_a_real_model_knows_some_hops(run: Run) -> None:
    share = run.graded.summary().set_index("what")["share"]
    assert len(run.graded.verdicts()) == len(PLACES.split())
    assert share["first_hop"] > 0.5
    assert share["second_hop"] > 0.5
    assert share["two_hop"] < share["second_hop"]
    assert len(run.graded.incorrect()) >= 2
    assert len(run.graded.correct()) >= 1


@pytest.mark.real_model
def test_what_it_says_is_what_generate_says(run: Run) -> None:
    frame = run.graded.frame[run.graded.frame["form"] == "two_hop"].set_index("query")
    queries = run.graded.incorrect()[:2]
    for prompt in queries.prompts():
        ids, _ = tokens(run.model, prompt)
        whole = plain_output(run.model.hf, ids, [], 10, run.model.end_tokens)
        text = run.model.decode(whole.tokens)
        assert text.startswith(str(frame.loc[prompt.query_id, "generation"]))
        names = queries.by_id(prompt.query_id).names("e3")
        assert not matches(text.split("\n")[0], names)


def tokens(model: LanguageModel, prompt: Prompt) -> tuple[list[int], dict[str, int]]:
    """The tokens of a prompt, and where t1 and t2 are: the text cut behind them has that many."""
    texts = {name: prompt.text[: prompt.spans[name][1]] for name in ("t1", "t2")}
    lengths = {name: len(model.tokenizer(text)["input_ids"]) for name, text in texts.items()}
    return list(model.tokenizer(prompt.text)["input_ids"]), {
        name: length - 1 for name, length in lengths.items()
    }


def vectors(run: Run, queries: QuerySet, row: pd.Series[Any]) -> Tensor:
    """The states that a row's cell reads, computed the plain way."""
    details = run.patched.details.set_index(["query", "position"])
    query, position = str(row["query"]), str(row["position"])
    lender = str(details.loc[(query, position), "donor"]) if row["control"] == "other" else query
    prompts = {prompt.query_id: prompt for prompt in queries.prompts()}
    ids, where = tokens(run.model, prompts[lender])
    there = states(run.model.hf, ids)[:, where[position]]
    return random_like(there, 0, query, position) if row["control"] == "random" else there


@pytest.mark.real_model
def test_cells_equal_plain_hooks(run: Run) -> None:
    queries = run.graded.incorrect()[:2]
    prompts = {prompt.query_id: prompt for prompt in queries.prompts()}
    sampled = run.patched.frame.iloc[::EVERY]
    assert set(sampled["control"]) == {"none", "other", "random"}
    assert set(sampled["position"]) == {"t1", "t2"}
    for _, row in sampled.iterrows():
        ids, where = tokens(run.model, prompts[row["query"]])
        vector = vectors(run, queries, row)[row["source_layer"]]
        patch = Patch(row["target_layer"], where[row["position"]], vector)
        plain = plain_output(run.model.hf, ids, [patch], 10, run.model.end_tokens)
        names = queries.by_id(row["query"]).names("e3")
        bridges = queries.by_id(row["query"]).names("e2")
        answers = run.model.answer_tokens(names, False, prompts[row["query"]].end, bridges)
        text = run.model.decode(plain.tokens)
        assert text.startswith(row["generation"]), row
        assert row["hit"] == matches(text.split("\n")[0], names), row
        if answers:
            assert row["answer_rank"] in plain.ranks(answers), row
            assert row["answer_logprob"] == pytest.approx(plain.logprob(answers), abs=1e-3), row
        else:  # Mexico City beside Mexico
            assert row["answer_rank"] == run.model.vocab_size, row
            assert pd.isna(row["answer_logprob"]), row


@pytest.mark.real_model
def test_every_cell_is_there_beside_its_controls(run: Run) -> None:
    n_cells = len(cells_of(range(0, run.model.n_layers, STEP)))
    assert len(run.patched.frame) == 2 * 2 * 3 * n_cells
    assert run.patched.details["donor_same_relation"].all()
    rates = run.patched.success_rate()
    assert list(rates["n"]) == [2] * 6
    assert run.patched.run["model"]["sha256"] == run.model.fingerprint


@pytest.mark.real_model
def test_the_figures_are_drawn(run: Run, tmp_path: Path) -> None:
    paths = draw_figures(SCRIPTS, ["grading", "back_patching"], run.folder, tmp_path)
    assert len(paths) == 6
    table = pd.read_csv(tmp_path / "back_patching.csv")
    drawn = table[table["panel"] == "any cell"]["rate"]
    assert list(drawn) == pytest.approx(list(run.patched.success_rate()["rate"]))
