"""Provides the commands of analyses that do more than their entries in the catalogue say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hopscope.commands.options import (
    Match,
    Parity,
    QueryOptions,
    Step,
    Tokens,
    choice,
    example,
    file_option,
    with_options,
)
from hopscope.commands.printing import records, show, show_estimates, show_tables, table_text
from hopscope.errors import UsageError
from hopscope.queries.query import ENTITIES, POSITIONS

queries_app = typer.Typer()

BRIDGES = tuple(name for entity in ENTITIES[1:-1] for name in (entity, f"{entity}_type"))
"""What a probe may read."""


@queries_app.command("grade", epilog=example("grade -m smollm2-135m --limit 100 -o runs/grading"))
@with_options(QueryOptions, without=["full"])
def grade_command(
    options: QueryOptions,
    *,
    context: typer.Context,
    match: Match = "word",
    max_new_tokens: Tokens = 10,
    relation_shortcut: Annotated[
        str, choice(("whole", "cut"), help="The relation shortcut, or as the paper's code cuts it.")
    ] = "whole",
    parity: Parity = False,
) -> None:
    """Ask first hop, second hop, two hops and shortcuts: right or wrong."""
    from hopscope.experiments.estimate import estimate
    from hopscope.experiments.registry import REGISTERED
    from hopscope.experiments.two_hop.grading import grade

    run: dict[str, Any] = {"match": match, "max_new_tokens": max_new_tokens}
    run["relation_shortcut"] = relation_shortcut
    if parity:
        options, run = options.at_parity(REGISTERED["grading"], context, run)
    model, queries = options.load_both()
    run |= {name: each for name, each in options.settings().items() if name != "seed"}
    if options.dry_run:
        show_estimates({"grading": estimate(grade, model, queries, **run)}, options.as_json)
        return
    graded = grade(model, queries, **run)
    summary = graded.summary()
    found = {"summary": records(summary), "rows": records(graded.frame), "run": graded.run}
    show(found, options.as_json, lambda: table_text(summary, "%.3f"))


@queries_app.command("probe", epilog=example("probe -m smollm2-135m --layer-step 3 -o runs/probe"))
@with_options(QueryOptions, without=["shard", "dry_run"], limit=1000)
def probe_command(
    options: QueryOptions,
    *,
    target: Annotated[str, choice(BRIDGES, help="A bridge, or its type.")] = "e2",
    position: Annotated[str, choice((*POSITIONS, "e1"), help="Where states are read.")] = "t1",
    folds: Annotated[int, typer.Option(min=2, help="Number of folds of the cross-validation.")] = 5,
    layer_step: Step = 1,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Also fit a probe on all queries, and save it to this file.", callback=file_option
        ),
    ] = None,
) -> None:
    """Read the bridge off t1 with a linear probe, beside a control task.

    Source entities are drawn with all their queries, as many as make no more than --limit.
    """
    from hopscope.experiments.two_hop.probing import fit_probe, labelled, probe, sample_entities

    if save is not None and options.is_elsewhere:
        raise UsageError("the probe of --save is fitted here: leave out --save or --on")
    everything = replace(options, limit=None).load_queries()
    chosen = labelled(everything, target, folds)[0]
    if options.limit is not None:
        chosen = sample_entities(chosen, options.limit, options.seed)
    model, chosen = options.load_for(chosen)
    common = {name: each for name, each in options.settings().items() if name != "shard"}
    settings: dict[str, Any] = {"position": position, "folds": folds}
    result = probe(model, chosen, target, layer_step=layer_step, **settings, **common)
    show_tables(result, {"selectivity": result.selectivity()}, options.as_json, options.full)
    if save is not None:
        layers = range(0, model.n_layers, layer_step)
        fitted = fit_probe(model, chosen, target, layers=layers, **settings)
        print(fitted.save(save), file=sys.stderr)
