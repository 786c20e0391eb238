"""What it costs to compute a run elsewhere: `python -m benchmarks.scale`.

Four numbers: how much faster two workers of one thread are than one; what a part costs beyond its
computing; how long ten thousand parts take to be planned and told; and how the memory of the driver
grows with the number of parts.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hopscope as hs
from hopscope.distributed import ray_cluster
from hopscope.distributed.job import Outcome
from hopscope.queries.query_set import QuerySet
from hopscope.results.run_folder import Tables, write_part
from hopscope.results.run_record import provenance
from hopscope.results.runs import Pending, open_run, rehearsing, run_over
from hopscope.results.status import status_of

TINY: Any = "tiny-random-llama"
PARTS = 10_000


def timed(run: Callable[[], Any]) -> float:
    """Seconds that something takes."""
    begun = perf_counter()
    run()
    return perf_counter() - begun


def many(n: int) -> QuerySet:
    """As many queries as are asked for; those of the bundled set over and over."""
    world = hs.load_queries("world", few_shot=0)
    rows = [replace(world[i % len(world)], id=f"q{i}") for i in range(n)]
    return QuerySet(tuple(rows), "many")


def throughput(model: Any, n: int, settings: dict[str, Any]) -> dict[str, float]:
    """Seconds that a run of `n` queries takes one and two workers that have loaded the model.

    `busy` is the share of the time in which workers computed. Where other programs take the cores,
    the ratio says little, and twice the share of two workers over that of one says what it would be
    on cores of their own.
    """
    queries, found = many(n), {}
    outcomes: list[Outcome] = []
    note = ray_cluster._Run._note

    def noting(run: Any, outcome: Outcome, bar: Any) -> None:
        outcomes.append(outcome)
        note(run, outcome, bar)

    ray_cluster._Run._note = noting  # type: ignore[method-assign, assignment]
    for workers in (1, 2):
        on = hs.Ray(workers=workers)
        with on.held():
            hs.back_patch(model, queries[: 4 * workers], on=on, **settings)
            outcomes.clear()
            found[f"seconds_{workers}"] = wall = timed(
                lambda: hs.back_patch(model, queries, on=on, **settings)  # noqa: B023
            )
            found[f"busy_{workers}"] = sum(each.seconds for each in outcomes) / wall / workers
    ray_cluster._Run._note = note  # type: ignore[method-assign]
    return {
        "queries": n,
        **found,
        "ratio": found["seconds_1"] / found["seconds_2"],
        "ratio_by_busy": 2 * found["busy_2"] / found["busy_1"],
    }


def cost_of_a_part(n: int, settings: dict[str, Any]) -> dict[str, float]:
    """Milliseconds that a part takes one worker of Ray more than this process."""
    queries, on = many(n), hs.Ray(workers=1)
    model = hs.load_model(TINY, device="cpu")
    settings = {**settings, "cells": [(2, 1)]}
    with tempfile.TemporaryDirectory() as folder, on.held():
        here, there = Path(folder) / "here", Path(folder) / "there"
        hs.back_patch(model, queries[:2], on=on, **settings)
        elsewhere = timed(lambda: hs.back_patch(model, queries, on=on, out=there, **settings))
        own = timed(lambda: hs.back_patch(model, queries, out=here, **settings))
    parts = n / 2
    return {
        "parts": parts,
        "ms_here": 1000 * own / parts,
        "ms_elsewhere": 1000 * elsewhere / parts,
        "ms_more": 1000 * (elsewhere - own) / parts,
    }


def planning() -> dict[str, float]:
    """Seconds that ten thousand parts, half of them done, take to be planned and told."""
    queries, model = many(2 * PARTS), hs.load_model(TINY, device="cpu")
    run = provenance(model, queries, "grading", {})
    table = pd.DataFrame({"query": ["q"], "form": ["two_hop"]})
    tables: Tables = {"frame": table, "details": table}
    with tempfile.TemporaryDirectory() as folder:
        path = open_run(Path(folder) / "run", run, dict.fromkeys(range(0, 2 * PARTS, 2), 2))
        for part in range(0, PARTS, 2):
            write_part(path, part, tables)
        found: list[Pending] = []

        def plan() -> None:
            with rehearsing(found.append):
                run_over(queries, lambda _: tables, run, per_part=2, out=path)

        planned, told = timed(plan), timed(lambda: status_of(path))
    assert len(found[0].sizes) == PARTS / 2
    return {"parts": PARTS, "seconds_to_plan": planned, "seconds_to_tell": told}


def memory(sizes: tuple[int, ...], settings: dict[str, Any]) -> dict[str, float]:
    """Megabytes that the driver has taken at most, after runs of more and more parts."""
    on, found = hs.Ray(workers=2), {}
    settings = {**settings, "cells": [(2, 1)]}
    with tempfile.TemporaryDirectory() as folder, on.held():
        for parts in sizes:
            hs.back_patch(TINY, many(2 * parts), on=on, out=f"{folder}/{parts}", **settings)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            found[f"mb_after_{parts}_parts"] = peak
    return found


def on_paper(n_layers: int = 80, step: int = 8, n: int = 4) -> dict[str, float]:
    """Layer-tokens and rows of the unembedding that a query takes of a model with many layers.

    They are counted on a narrow model with random weights, whose answers are never cut short by
    their meaning; what a layer-token costs depends on the width, which it has not.
    """
    small = hs.load_model("smollm2-135m", device="cpu")
    config = LlamaConfig(
        vocab_size=small.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = hs.load_model(LlamaForCausalLM(config), tokenizer=small.tokenizer, name="narrow")
    queries, found = hs.load_queries("world").sample(n), {}
    settings = {"seconds": 0, "layer_step": step}
    analyses: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "grade": (hs.grade, {"seconds": 0}),
        "back_patch": (hs.back_patch, settings),
        "describe": (hs.describe, settings),
        "knockout": (hs.knockout, {"seconds": 0}),
        "project": (hs.project, {"seconds": 0}),
    }
    for name, (analysis, given) in analyses.items():
        told = hs.estimate(analysis, model, queries, **given)
        found[f"{name}_layer_tokens"] = told.layer_tokens / told.n
        found[f"{name}_logit_rows"] = told.logit_rows / told.n
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="of the throughput")
    parser.add_argument("--queries", type=int, default=24, help="of the throughput")
    parser.add_argument("--parts", type=int, default=100, help="of the cost of a part")
    parser.add_argument("--only", choices=("throughput", "part", "planning", "memory", "paper"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"positions": ["t1"], "controls": [], "progress": False}
    settings |= {"max_new_tokens": 1, "layer_step": 3}
    plain = {key: value for key, value in settings.items() if key != "layer_step"}
    measures: dict[str, Callable[[], dict[str, float]]] = {
        "throughput": lambda: throughput(given.model, given.queries, settings),
        "part": lambda: cost_of_a_part(2 * given.parts, plain),
        "planning": planning,
        "paper": on_paper,
        "memory": lambda: memory((50, 200, 800), plain),
    }
    for name, measure in measures.items():
        if given.only in (None, name):
            found = {key: round(value, 2) for key, value in measure().items()}
            print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main()
