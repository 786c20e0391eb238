"""Provides the result of a race, for machines and for people."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.agreement import Agreement, as_json
from benchmarks.floor import UnitTimes, Work, median_of
from benchmarks.race import AGAINST, BATCH, FIRST_TOKEN, GENERATION, Race
from benchmarks.subjects import Task, machine


def report(race: Race) -> dict[str, Any]:
    """The whole result as plain data; see the module's docstring."""
    rounds, agreements = race.seconds_by_round(), race.agreements()
    seconds = {
        name: None if times is None else statistics.median(times) for name, times in rounds.items()
    }
    prompt, generation = race.work()
    unit = median_of(race.units)
    records, task = race.records, race.task
    return {
        "ratios": {name: _ratio(name, seconds, agreements) for name in records},
        "floor_ratio": _over(seconds[FIRST_TOKEN], prompt.seconds(unit)),
        "floor_ratio_generation": _over(seconds[GENERATION], generation.seconds(unit)),
        "agree": bool(agreements) and all(one.agree for one in agreements.values()),
        "agreement": {name: as_json(one) for name, one in agreements.items()},
        "failures": {name: r.failure for name, r in records.items() if r.failure is not None},
        "seconds": seconds,
        "seconds_by_round": rounds,
        "cells": len(task.pairs),
        "measured_cells": {name: len(record.told) for name, record in records.items()},
        "scaled": any(len(record.told) < len(record.cells) for record in records.values()),
        "floor": {
            "first_token": _floor(prompt, unit),
            "generation": _floor(generation, unit),
            "seconds_per_layer_token": unit.layer_token,
            "seconds_per_unembedding_row": unit.unembedding_row,
            "measured_on_rows": unit.rows,
        },
        "task": _described(task),
        "peak_memory_bytes": {**race.ours.peak, **{n: r.peak for n, r in records.items()}},
        "machine": {**machine(task.model), "load_before": race.load_before},
    }


def _over(seconds: float | None, other: float | None) -> float | None:
    return None if seconds is None or other is None else seconds / other


def _ratio(
    name: str, seconds: dict[str, float | None], agreements: dict[str, Agreement]
) -> float | None:
    if name not in agreements or not agreements[name].agree:
        return None
    return _over(seconds[name], seconds[AGAINST[name]])


def _floor(work: Work, unit: UnitTimes) -> dict[str, float]:
    return {
        "seconds": work.seconds(unit),
        "layer_tokens": work.layer_tokens,
        "unembedding_rows": work.unembedding_rows,
    }


def _described(task: Task) -> dict[str, Any]:
    return {
        "model": task.model.name,
        "layers": task.model.n_layers,
        "prompt_tokens": len(task.subject.ids),
        "position": task.subject.position,
        "prompts_in_batch": len(task.subjects),
        "max_new_tokens": task.max_new_tokens,
    }


def table(result: dict[str, Any]) -> str:
    """The same for people."""
    task, computer, seconds = result["task"], result["machine"], result["seconds"]
    lines = [
        f"{task['model']}, {result['cells']} cells at token {task['position']} of "
        f"{task['prompt_tokens']}, {computer['dtype']} on {computer['device']}, "
        f"{computer['threads']} threads ({computer['cpu']})",
        "",
        f"{'':30}{'cells run':>10}{'seconds':>10}{'ratio':>9}  agrees",
    ]
    for name in (FIRST_TOKEN, GENERATION, BATCH):
        lines.append(f"{name:30}{result['cells']:>10}{seconds[name]:>10.2f}{'1':>9}")
    for name, ratio in result["ratios"].items():
        if name in result["failures"]:
            lines.append(f"{name:30}{'failed: ' + result['failures'][name]}")
            continue
        agreed = "yes" if result["agreement"][name]["agree"] else "NO"
        shown = f"{ratio:.1f}" if ratio is not None else "-"
        cells = result["measured_cells"][name]
        lines.append(f"{name:30}{cells:>10}{seconds[name]:>10.2f}{shown:>9}  {agreed}")
    for name, key in (("first_token", "floor_ratio"), ("generation", "floor_ratio_generation")):
        floor = result["floor"][name]["seconds"]
        lines.append(f"{'floor of ' + name:30}{'':10}{floor:>10.2f}   hopscope {result[key]:.2f}x")
    return "\n".join(lines)
