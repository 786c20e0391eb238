"""The other analyses by hopscope, beside a plain loop of one hooked forward per cell.

    python benchmarks/analyses.py                 # SmolLM2-135M, a table
    python benchmarks/analyses.py --json          # one JSON object

Each analysis runs on real two-hop questions with five demonstrations, without its control, all
layers. The plain loop makes the same edits with hooks, in a forward of its own over the whole
prompt for each cell (with a key-value cache and greedy steps where text is generated). It runs a
seeded sample of the cells, dealt into rounds between which hopscope runs all of them; seconds are
medians over the rounds, the loop's scaled up by count. For `project`, the read-out of a clean run,
a cell of the loop is one forward that reads one sublayer of one layer.

A ratio is the loop's time over hopscope's for all cells, clean runs and tables included. `agree`
says whether the sampled cells give the same log-probabilities (1e-3) and greedy tokens.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from torch import Tensor

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hopscope as hs
from benchmarks.subjects import load_average, machine, timed
from hopscope.engine.editing import recording
from hopscope.engine.edits import Cell
from hopscope.engine.logit_lens import logit_lens
from hopscope.engine.read_out import CellOutputs, ReadOut
from hopscope.engine.sweep import sweep
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.query_set import QuerySet

TOLERANCE = 1e-3
SWEPT: dict[str, tuple[str, Callable[..., Any]]] = {
    "back_patch": ("back_patching", partial(hs.back_patch, controls=())),
    "knockout": ("attention_knockout", partial(hs.knockout, controls=())),
    "describe": ("description", hs.describe),
    "activation_patch": ("patching", partial(hs.activation_patch, controls=())),
    "activation_patch_heads": ("patching", partial(hs.activation_patch, sites=["z"], controls=())),
    "trace": ("tracing", hs.trace),
}
"""The analyses that sweep over cells, and the modules that they are in."""


@dataclass(frozen=True)
class Swept:
    """One call of the engine: a prompt, its cells, and what came out."""

    ids: tuple[int, ...]
    cells: Sequence[Cell]
    what: ReadOut
    outputs: CellOutputs


@dataclass
class Measured:
    """The times of one analysis.

    Attributes:
        cells: how many there are.
        ours: seconds of hopscope for all cells, by round.
        loop: seconds of the plain loop for one cell, by round.
        compared: how many cells both have run.
        agree: whether those are the same.
    """

    cells: int = 0
    ours: list[float] = field(default_factory=list)
    loop: list[float] = field(default_factory=list)
    compared: int = 0
    agree: bool = True

    def row(self, name: str) -> dict[str, Any]:
        """As plain data."""
        ours, one = statistics.median(self.ours), statistics.median(self.loop)
        return {
            "analysis": name,
            "ratio": one * self.cells / ours,
            "cells": self.cells,
            "seconds": ours,
            "loop_seconds": one * self.cells,
            "measured_cells": self.compared,
            "agree": self.agree,
        }


@contextmanager
def watched(module: str) -> Iterator[list[Swept]]:
    """Keep what an analysis asks of the engine."""
    calls: list[Swept] = []

    def watching(
        model: LanguageModel, ids: Sequence[int], cells: Sequence[Cell], what: ReadOut, **kw: Any
    ) -> CellOutputs:
        outputs = sweep(model, ids, cells, what, **kw)
        whole = [[*kw.get("base", ()), *cell] for cell in cells]
        calls.append(Swept(tuple(ids), whole, what, outputs))
        return outputs

    with mock.patch(f"hopscope.experiments.{module}.sweep", watching):
        yield calls


@torch.inference_mode()
def plain_cell(model: LanguageModel, call: Swept, cell: Cell) -> tuple[Tensor, tuple[int, ...]]:
    """One cell by itself: its next-token log-probabilities and its greedy tokens."""
    row = torch.tensor([call.ids], device=model.device)
    generates = call.what.max_new_tokens > 0
    with hs.edit(model, cell, len(call.ids)):
        output = model.hf(input_ids=row, use_cache=generates, logits_to_keep=1)
    first, tokens = torch.log_softmax(output.logits[0, -1].float(), dim=-1), list[int]()
    while generates:
        token = int(output.logits[0, -1].argmax())
        if token in model.end_tokens:
            break
        tokens.append(token)
        stopped = call.what.stop is not None and call.what.stop(tuple(tokens))
        if stopped or len(tokens) == call.what.max_new_tokens:
            break
        past = {model.cache_argument: getattr(output, model.cache_argument)}
        row = torch.tensor([[token]], device=model.device)
        output = model.hf(input_ids=row, use_cache=True, **past)
    return first, tuple(tokens)


def same(call: Swept, index: int, found: tuple[Tensor, tuple[int, ...]]) -> bool:
    """Whether the engine's outputs of a cell are those of the plain loop."""
    logprobs, tokens = found
    close = True
    if call.what.answer_tokens:
        best = logprobs[list(call.what.answer_tokens)].max().cpu()
        close = abs(float(best - call.outputs.logprob[index])) < TOLERANCE
    if call.what.track:
        tracked = logprobs[list(call.what.track)].cpu()
        close = close and bool((tracked - call.outputs.tracked[index]).abs().max() < TOLERANCE)
    return close and (not call.what.max_new_tokens or tokens == call.outputs.tokens[index])


def race_sweep(
    name: str, model: LanguageModel, queries: QuerySet, sample: int, rounds: int
) -> Measured:
    """An analysis that sweeps, and the plain loop, in turn."""
    module, run = SWEPT[name]
    measured, device = Measured(), model.device
    for turn in range(rounds):
        with watched(module) as calls:
            _, seconds = timed(partial(run, model, queries, progress=False), device)
        measured.ours.append(seconds)
        places = [(c, i) for c, call in enumerate(calls) for i in range(len(call.cells))]
        measured.cells = len(places)
        chosen = random.Random(turn).sample(places, min(sample // rounds, len(places)))
        found, seconds = timed(
            lambda chosen=chosen, calls=calls: [  # type: ignore[misc]
                plain_cell(model, calls[c], calls[c].cells[i]) for c, i in chosen
            ],
            device,
        )
        measured.loop.append(seconds / len(chosen))
        measured.compared += len(chosen)
        measured.agree &= all(
            same(calls[c], i, each) for (c, i), each in zip(chosen, found, strict=True)
        )
    return measured


@torch.inference_mode()
def plain_projection(
    model: LanguageModel, prompt: TokenizedPrompt, site: str, layer: int, at: Sequence[int]
) -> Tensor:
    """Logit-lens log-probabilities of one sublayer at some tokens, by one hooked forward."""
    into: dict[str, list[Tensor | None]] = {site: [None] * model.n_layers}
    with recording(model, [site], into):
        row = torch.tensor([prompt.ids], device=model.device)
        model.hf(input_ids=row, use_cache=False, logits_to_keep=1)
    states = into[site][layer]
    assert states is not None
    return torch.log_softmax(logit_lens(model)(states[0, list(at)]).float(), dim=-1)


def race_projection(model: LanguageModel, queries: QuerySet, sample: int, rounds: int) -> Measured:
    """`project`, and one hooked forward for each sublayer and layer, in turn."""
    sites = ("attn_out", "mlp_out", "resid_post")
    grid = [(q, site, layer) for q in queries for site in sites for layer in range(model.n_layers)]
    measured = Measured(cells=len(grid))
    prompts = {prompt.query_id: TokenizedPrompt.of(model, prompt) for prompt in queries.prompts()}
    for turn in range(rounds):
        result, seconds = timed(partial(hs.project, model, queries, progress=False), model.device)
        measured.ours.append(seconds)
        chosen = random.Random(turn).sample(grid, min(sample // rounds, len(grid)))

        def loop(chosen: Sequence[Any] = chosen) -> list[Tensor]:
            return [
                plain_projection(
                    model,
                    prompts[query.id],
                    site,
                    layer,
                    [prompts[query.id].position(name) for name in ("t1", "t2")],
                )
                for query, site, layer in chosen
            ]

        found, seconds = timed(loop, model.device)
        measured.loop.append(seconds / len(chosen))
        measured.compared += len(chosen)
        table = result.frame.set_index(["query", "site", "layer", "position", "target"])["logprob"]
        for (query, site, layer), logprobs in zip(chosen, found, strict=True):
            tokens = list(model.first_tokens(query.names("e2"), variants=True))
            for place, position in enumerate(("t1", "t2")):
                ours = table[query.id, site, layer, position, "e2"]
                difference = abs(float(logprobs[place, tokens].max()) - float(ours))
                measured.agree &= difference < TOLERANCE
    return measured


def main(
    model: Annotated[str, typer.Option(help="What hopscope.load_model takes.")] = "smollm2-135m",
    only: Annotated[str | None, typer.Option(help="Names with commas; all if left out.")] = None,
    n: Annotated[int, typer.Option("--queries", help="Questions in a round.")] = 2,
    sample: Annotated[int, typer.Option(help="Cells that the loop runs, in all.")] = 24,
    rounds: Annotated[int, typer.Option(help="How often they take turns.")] = 2,
    device: Annotated[str | None, typer.Option()] = None,
    dtype: Annotated[str | None, typer.Option()] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch; its default if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time each analysis beside the plain loop."""
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = hs.load_model(model, device=device, dtype=dtype)
    queries = hs.load_queries("world").sample(n)
    names = [*SWEPT, "project"] if only is None else only.split(",")
    before, rows = load_average(), []
    for name in names:
        print(f"{name} ...", file=sys.stderr)
        if name == "project":
            measured = race_projection(loaded, queries, sample, rounds)
        else:
            measured = race_sweep(name, loaded, queries, sample, rounds)
        rows.append(measured.row(name))
    found = {"rows": rows, "machine": machine(loaded), "load_average": before}
    if as_json:
        print(json.dumps(found))
    else:
        for row in rows:
            print(
                f"{row['analysis']:<24}{row['ratio']:>7.1f}x  {row['cells']:>5} cells  "
                f"{row['seconds']:>7.1f} s  loop {row['loop_seconds']:>8.1f} s  "
                f"{'agree' if row['agree'] else 'DIFFER'} on {row['measured_cells']}"
            )
    raise typer.Exit(0 if all(row["agree"] for row in rows) else 1)


if __name__ == "__main__":
    typer.run(main)
