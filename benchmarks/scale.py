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

import hopscope as hs
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
    """Seconds that a run of `n` queries takes one and two workers that have loaded the model."""
    queries, found = many(n), {}
    for workers in (1, 2):
        on = hs.Ray(workers=workers)
        with on.held():
            hs.back_patch(model, queries[: 2 * workers], on=on, **settings)
            found[f"seconds_{workers}"] = timed(
                lambda: hs.back_patch(model, queries, on=on, **settings)  # noqa: B023
            )
    return {"queries": n, **found, "ratio": found["seconds_1"] / found["seconds_2"]}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="of the throughput")
    parser.add_argument("--queries", type=int, default=24, help="of the throughput")
    parser.add_argument("--parts", type=int, default=100, help="of the cost of a part")
    parser.add_argument("--only", choices=("throughput", "part", "planning", "memory"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"positions": ["t1"], "controls": [], "progress": False}
    settings |= {"criterion": "first_token", "layer_step": 3}
    plain = {key: value for key, value in settings.items() if key != "layer_step"}
    measures: dict[str, Callable[[], dict[str, float]]] = {
        "throughput": lambda: throughput(given.model, given.queries, settings),
        "part": lambda: cost_of_a_part(2 * given.parts, plain),
        "planning": planning,
        "memory": lambda: memory((50, 200, 800), plain),
    }
    for name, measure in measures.items():
        if given.only in (None, name):
            found = {key: round(value, 2) for key, value in measure().items()}
            print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main()
