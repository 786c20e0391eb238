"""Provides the commands that ask a model two-hop queries: one for each experiment on them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hopscope.commands.options import (
    Asked,
    Control,
    Criterion,
    Graded,
    Match,
    Positions,
    Step,
    Tokens,
    listed,
    taking,
)
from hopscope.commands.printing import records, show, show_tables, table_text
from hopscope.errors import UsageError

queries_app = typer.Typer()


@queries_app.command("grade")
@taking(Asked)
def grade_command(options: Asked, *, match: Match = "word", max_new_tokens: Tokens = 10) -> None:
    """Ask first hop, second hop, two hops and shortcuts: right or wrong."""
    from hopscope.experiments.two_hop.grading import grade

    asked = options.load_queries()  # first, since a mistake in it is told sooner
    graded = grade(
        options.load_model(),
        asked,
        match=match,  # type: ignore[arg-type]  # grade checks it
        max_new_tokens=max_new_tokens,
        out=options.out,
        shard=options.part,
    )
    summary = graded.summary()
    found = {"summary": records(summary), "rows": records(graded.frame), "run": graded.run}
    show(found, options.as_json, lambda: table_text(summary, "%.3f"))


@queries_app.command("back-patch")
@taking(Graded, subset="incorrect")
def back_patch_command(
    options: Graded,
    *,
    positions: Annotated[str, typer.Option(help="Of t1, t2, t1->t2, e1; with commas.")] = "t1,t2",
    controls: Annotated[str, typer.Option(help="Of other, random; with commas.")] = "other,random",
    criterion: Criterion = "generation",
    layer_step: Step = 1,
    stop_early: Annotated[
        bool, typer.Option(help="Stop a cell when its answer is certain.")
    ] = True,
    parity: Annotated[
        bool, typer.Option(help="The paper's: substring match, whole generations, no few-shot.")
    ] = False,
    match: Match = "word",
    max_new_tokens: Tokens = 10,
) -> None:
    """Copy later states into earlier layers: which queries does that repair, beside chance?"""
    from hopscope.experiments.two_hop.back_patching import back_patch, check_choices
    from hopscope.study.presets import layer_cells

    if parity:
        match, stop_early, options = "substring", False, replace(options, few_shot=0)
    check_choices(listed(positions), listed(controls), criterion, match)
    model, chosen = options.load(match, max_new_tokens)
    result = back_patch(
        model,
        chosen,
        positions=listed(positions),
        controls=listed(controls),
        criterion=criterion,  # type: ignore[arg-type]
        max_new_tokens=max_new_tokens,
        match=match,  # type: ignore[arg-type]
        cells=layer_cells(model.n_layers, layer_step),
        stop_early=stop_early,
        **options.settings(),
    )
    rates = result.success_rate(options.seed)
    found: dict[str, Any] = {
        "success_rate": records(rates),
        "above_chance": records(result.above_chance(options.seed)),
        "best_cell": None,
        "run": result.run,
    }
    if result.frame["query"].nunique() > 1:
        found["best_cell"] = result.best_cell(seed=options.seed)._asdict()

    def text() -> str:
        lines = [table_text(rates, "%.3f")]
        if found["best_cell"] is not None:
            lines += ["", "best cell, chosen on one half and scored on the other:"]
            lines += [", ".join(f"{k} {_short(v)}" for k, v in found["best_cell"].items())]
        return "\n".join(lines)

    show(found, options.as_json, text)


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@queries_app.command("knockout")
@taking(Graded)
def knockout_command(
    options: Graded,
    *,
    edges: Annotated[
        str, typer.Option(help="query->key of t1, t2, e1, r1, r2, before, few_shot; with commas.")
    ] = "t2->t1,t2->e1,t2->r1,t1->e1",
    window: Annotated[int, typer.Option(min=0, help="Layers on each side of the middle.")] = 3,
    heads: Annotated[str | None, typer.Option(help="Only these heads; with commas.")] = None,
    layer_step: Step = 1,
    control: Control = True,
    criterion: Criterion = "generation",
    match: Match = "word",
    max_new_tokens: Tokens = 10,
) -> None:
    """Block attention between parts of the question: which edges carry the answer, and where?"""
    from hopscope.experiments.two_hop.attention_knockout import knockout

    only = None if heads is None else _numbers(heads)
    model, chosen = options.load(match, max_new_tokens)
    result = knockout(
        model,
        chosen,
        edges=listed(edges),
        controls=["random"] if control else [],
        window=window,
        layers=range(0, model.n_layers, layer_step),
        heads=only,
        criterion=criterion,  # type: ignore[arg-type]
        max_new_tokens=max_new_tokens,
        match=match,  # type: ignore[arg-type]
        **options.settings(),
    )
    effect, above = result.effect(seed=options.seed), result.above_chance(options.seed)
    show_tables(result, {"effect": effect, "above_chance": above}, options.as_json)


def _numbers(heads: str) -> list[int]:
    try:
        return [int(head) for head in listed(heads)]
    except ValueError:
        raise UsageError(f"heads are numbers with commas between, not {heads!r}") from None


@queries_app.command("project")
@taking(Graded)
def project_command(
    options: Graded,
    *,
    positions: Positions = "t1,t2",
    sites: Annotated[
        str, typer.Option(help="Of attn_out, mlp_out, resid_post; with commas.")
    ] = "attn_out,mlp_out,resid_post",
    rank: Annotated[int, typer.Option(min=0, help="Resolved where the rank is at most this.")] = 0,
) -> None:
    """Project attention, MLP and residual stream: where are bridge and answer resolved?"""
    from hopscope.experiments.two_hop.projection import project

    model, chosen = options.load()
    result = project(
        model,
        chosen,
        positions=listed(positions),
        sites=listed(sites),
        **options.settings(),
    )
    show_tables(result, {"summary": result.summary(rank, options.seed)}, options.as_json)


@queries_app.command("describe")
@taking(Graded)
def describe_command(
    options: Graded,
    *,
    positions: Positions = "t1,t2",
    prompts: Annotated[
        str, typer.Option(help="Of description, identity; with commas.")
    ] = "description",
    samples: Annotated[int, typer.Option(min=0, help="Texts drawn for a cell; 0: greedy.")] = 0,
    layer_step: Step = 1,
    match: Match = "word",
    max_new_tokens: Tokens = 10,
) -> None:
    """Let the model describe its own states: which entity is in them?"""
    from hopscope.experiments.two_hop.description import describe

    model, chosen = options.load(match)
    layers = range(0, model.n_layers, layer_step)
    result = describe(
        model,
        chosen,
        positions=listed(positions),
        prompts=listed(prompts),
        source_layers=layers,
        target_layers=layers,
        samples=samples,
        max_new_tokens=max_new_tokens,
        match=match,  # type: ignore[arg-type]
        **options.settings(),
    )
    tables = {
        "described": result.described(options.seed),
        "above_chance": result.above_chance(options.seed),
        "shares": result.shares(),
    }
    show_tables(result, tables, options.as_json)


@queries_app.command("stages")
@taking(Graded, without=["shard"])
def stages_command(options: Graded, *, layer_step: Step = 1) -> None:
    """Put the stages of the computation on one axis, and count the broken orders."""
    from hopscope.experiments.two_hop.stages import stages

    model, chosen = options.load()
    result = stages(model, chosen, layer_step=layer_step, seed=options.seed, out=options.out)
    tables = {"summary": result.summary(options.seed), "broken": result.broken()}
    show_tables(result, tables, options.as_json)


@queries_app.command("patch")
@taking(Graded)
def patch_command(
    options: Graded,
    *,
    positions: Positions = "t1,t2",
    sites: Annotated[
        str, typer.Option(help="Of resid_post, attn_out, mlp_out, z (heads); with commas.")
    ] = "resid_post,attn_out,mlp_out",
    control: Control = True,
) -> None:
    """Put states of another question in: which of them carry the source entity to the answer?"""
    from hopscope.experiments.two_hop.activation_patching import activation_patch

    model, chosen = options.load()
    result = activation_patch(
        model,
        chosen,
        positions=listed(positions),
        sites=listed(sites),
        controls=["random"] if control else [],
        **options.settings(),
    )
    show_tables(result, {"summary": result.summary(options.seed)}, options.as_json)


@queries_app.command("trace")
@taking(Graded)
def trace_command(
    options: Graded,
    *,
    positions: Positions = "t1,t2",
    sites: Annotated[
        str, typer.Option(help="Of resid_post, attn_out, mlp_out; with commas.")
    ] = "resid_post,attn_out,mlp_out",
    noise: Annotated[float, typer.Option(help="In standard deviations of the embeddings.")] = 3.0,
    draws: Annotated[int, typer.Option(min=1, help="Draws of noise.")] = 3,
    window: Annotated[
        int, typer.Option(min=0, help="Layers of a sublayer restored on each side.")
    ] = 2,
) -> None:
    """Noise the source entity, and put clean states back: which bring the answer back?"""
    from hopscope.experiments.two_hop.causal_tracing import trace

    model, chosen = options.load()
    result = trace(
        model,
        chosen,
        positions=listed(positions),
        sites=listed(sites),
        noise=noise,
        draws=draws,
        window=window,
        **options.settings(),
    )
    total, summary = result.total_effect(options.seed), result.summary(options.seed)
    show_tables(result, {"total_effect": total, "summary": summary}, options.as_json)


@queries_app.command("recall")
@taking(Graded)
def recall_command(options: Graded) -> None:
    """Measure how well t1 recalls the bridge (EntRec), and how it is used (CnstScore)."""
    from hopscope.experiments.two_hop.entity_recall import recall

    model, chosen = options.load()
    result = recall(model, chosen, **options.settings())
    summary, consistency = result.summary(options.seed), result.consistency(options.seed)
    show_tables(result, {"summary": summary, "consistency": consistency}, options.as_json)


@queries_app.command("probe")
@taking(Asked, without=["shard"], limit=1000)
def probe_command(
    options: Asked,
    *,
    target: Annotated[str, typer.Option(help="e2 (the bridge) or e2_type.")] = "e2",
    position: Annotated[str, typer.Option(help="t1, t2 or e1.")] = "t1",
    folds: Annotated[int, typer.Option(min=2, help="Of the cross-validation.")] = 5,
    layer_step: Step = 1,
    save: Annotated[
        Path | None, typer.Option(help="Fit a probe on all of them, and write it here.")
    ] = None,
) -> None:
    """Read the bridge off t1 with a linear probe, beside a control task.

    Source entities are drawn with all their queries, as many as make no more than --limit.
    """
    from hopscope.experiments.two_hop.probing import (
        TARGETS,
        fit_probe,
        labelled,
        probe,
        sample_entities,
    )

    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}: choose from {', '.join(TARGETS)}")
    everything = replace(options, limit=None).load_queries()
    asked = labelled(everything, target, folds)[0]  # type: ignore[arg-type]
    if options.limit is not None:
        asked = sample_entities(asked, options.limit, options.seed)
    model = options.load_model()
    layers = range(0, model.n_layers, layer_step)
    asked_for: dict[str, Any] = {"position": position, "layers": layers, "folds": folds}
    result = probe(model, asked, target, seed=options.seed, out=options.out, **asked_for)  # type: ignore[arg-type]
    show_tables(result, {"selectivity": result.selectivity()}, options.as_json)
    if save is not None:
        fitted = fit_probe(model, asked, target, **asked_for)  # type: ignore[arg-type]
        print(fitted.save(save), file=sys.stderr)
