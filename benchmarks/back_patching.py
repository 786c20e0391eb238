"""Back-patching by hopscope, beside everything else it could be run with.

    python benchmarks/back_patching.py                    # SmolLM2-135M, a table
    python benchmarks/back_patching.py --json             # one JSON object
    python benchmarks/back_patching.py --config llama-8b --device cuda --dtype bfloat16

A cell (a, b) puts the clean output of block a in the place of that of block b, at one token of
the prompt. All cells with a > b are asked for, in one process, with the same model, the same
types and the same number of threads. A ratio is

    the other's time for all cells / hopscope's time for the same read-out of all cells

where hopscope's time has its clean run in it, and the others' has not:

- `plain_first_token`: plain transformers, one hooked forward per cell; the log-probability of
  the answer's first token.
- `plain_generation`: plain transformers, a hooked prefill and a greedy loop per cell; 10 tokens.
- `paper_generation`: a batch of prompts per cell and `generate`, for all L × L cells, as the
  paper's code has it; seconds per prompt, against hopscope's for the cells a > b of the same
  prompts.
- `transformer_lens_first_token`: `TransformerBridge.run_with_hooks` per cell.
- `nnsight_first_token`: one trace per cell.

The others run a seeded sample of their cells, scaled up by count (`measured_cells`, `scaled`),
or all of them with `--full`. The sample is dealt into rounds, between which hopscope runs all
of its cells; seconds are medians over the rounds. `floor_ratio` (first token) and
`floor_ratio_generation` are hopscope's time over the floor of `benchmarks/floor.py`.

A contender that fails is null, with the reason under `failures`. `agree` says whether all
others read the same from the cells they ran (`benchmarks/agreement.py`); one that does not has
no ratio, and the exit code is 1.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.race import Race
from benchmarks.report import report, table
from benchmarks.subjects import (
    CONFIGS,
    TINY,
    Task,
    Where,
    build_model,
    random_subjects,
    real_subjects,
    subject_of,
)


def build_task(
    model: str = "smollm2-135m",
    config: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    prompt: str | None = None,
    first_hop: str | None = None,
    answer: str | None = None,
    few_shot: bool = False,
    position: Where = "t2",
    layer_step: int = 1,
    batch: int = 8,
    max_new_tokens: int = 10,
) -> Task:
    """What is to be run; the options are those of the command."""
    loaded = build_model(model, config, device, dtype)
    make = real_subjects if config is None else random_subjects
    subjects, answers = make(loaded, position, few_shot, batch)
    if prompt is not None:
        given = subject_of(loaded, prompt, first_hop if position == "t1" else None)
        subjects = (given, *subjects[1:])
        answers = loaded.first_tokens([answer]) if answer else answers
    layers = tuple(range(0, loaded.n_layers, layer_step))
    return Task(loaded, subjects, layers, answers, max_new_tokens)


def main(
    model: Annotated[str, typer.Option(help="What hopscope.load_model takes.")] = "smollm2-135m",
    config: Annotated[
        str | None,
        typer.Option(help=f"Random weights instead: {', '.join(CONFIGS)} or {TINY}."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Such as bfloat16.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Another first prompt.")] = None,
    first_hop: Annotated[
        str | None, typer.Option(help="The phrase of --prompt that ends at t1.")
    ] = None,
    answer: Annotated[str | None, typer.Option(help="The answer to --prompt.")] = None,
    few_shot: Annotated[bool, typer.Option(help="Four demonstrations, some 60 tokens.")] = False,
    position: Annotated[str, typer.Option(help="The patched token: t1 or t2.")] = "t2",
    layer_step: Annotated[int, typer.Option(min=1, help="Only every n-th layer.")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=16, help="Prompts in the paper's batch.")] = 8,
    sample: Annotated[int, typer.Option(min=1, help="Cells that the others run.")] = 48,
    full: Annotated[bool, typer.Option(help="Let the others run every cell.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that all take.")] = 3,
    threads: Annotated[int | None, typer.Option(help="Of torch; its own choice if not given.")] = (
        None
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time back-patching by hopscope and by everything else; exit with 1 if they disagree."""
    _check(config, position, prompt, first_hop, few_shot)
    if threads is not None:
        torch.set_num_threads(threads)
    where: Where = "t1" if position == "t1" else "t2"
    task = build_task(
        model, config, device, dtype, prompt, first_hop, answer, few_shot, where, layer_step, batch
    )
    if len(task.layers) < 2:
        raise typer.BadParameter(f"--layer-step {layer_step} leaves one layer; cells need two")
    race = Race(task, None if full else sample, rounds, partial(typer.echo, err=True))
    race.run()
    result = report(race)
    typer.echo(json.dumps(result, indent=2) if as_json else table(result))
    if not result["agree"]:
        raise typer.Exit(1)


def _check(
    config: str | None, position: str, prompt: str | None, first_hop: str | None, few_shot: bool
) -> None:
    """Refuse options that do not go together."""
    known = (*CONFIGS, TINY)
    if config is not None and config not in known:
        raise typer.BadParameter(f"--config is one of {', '.join(known)}, not {config!r}")
    if position not in ("t1", "t2"):
        raise typer.BadParameter(f"--position is t1 or t2, not {position!r}")
    if prompt is not None and config is not None:
        raise typer.BadParameter("--prompt needs a model with words; leave --config out")
    if prompt is not None and few_shot:
        raise typer.BadParameter("--few-shot is for the built-in prompts; put lines into --prompt")
    if prompt is not None and position == "t1" and (not first_hop or first_hop not in prompt):
        raise typer.BadParameter("--position t1 needs --first-hop, a phrase of --prompt")


if __name__ == "__main__":
    typer.run(main)
