"""Provides the `hopscope` command."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopscope import __version__
from hopscope.errors import HopscopeError, ResultError, UsageError
from hopscope.printing import AsJson, records, show, show_tables, table_text
from hopscope.worlds_commands import worlds_app

if TYPE_CHECKING:
    from hopscope.documents import QuestionSet
    from hopscope.models import EncoderDecoder, LanguageModel
    from hopscope.queries import QuerySet

app = typer.Typer(
    no_args_is_help=True,
    help="How does a language model answer a question that takes two hops, and why does it fail?",
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(no_args_is_help=True, help="The models that hopscope knows by name.")
app.add_typer(models_app, name="models")
app.add_typer(worlds_app, name="worlds")

INTERRUPTED = 130

Model = Annotated[
    str, typer.Option("--model", "-m", help="Zoo name, hub id, folder or .gguf file.")
]
Queries = Annotated[
    str, typer.Option("--queries", "-q", help="Bundled set, .csv/.parquet/.jsonl, or hub id.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Grade only this many, drawn by seed.")]
FewShot = Annotated[
    int | None, typer.Option(min=0, help="Demonstrations in a prompt; the set's own if not given.")
]
Seed = Annotated[int, typer.Option(help="Seed of all that is drawn.")]
Match = Annotated[str, typer.Option(help="word, or substring (the paper's).")]
Tokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens to generate.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Run folder; a run that was stopped there goes on."),
]
Shard = Annotated[str | None, typer.Option(help="i/n: only every n-th part of the queries.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, ...")]
Subset = Annotated[str, typer.Option(help="incorrect or correct (graded first), or all.")]
Most = Annotated[int | None, typer.Option(min=1, help="Run at most this many of them.")]
Positions = Annotated[str, typer.Option(help="Of t1, t2, e1; with commas.")]
Controls = Annotated[bool, typer.Option(help="Run the control, too.")]
Step = Annotated[int, typer.Option("--layer-step", min=1, help="Only every so many layers.")]


def main() -> None:
    """Run the command; 2 for a user's mistake, 1 for a failure, 130 when interrupted."""
    # Read when torch is imported: threads that wait must not spin, or a machine whose cores are
    # shared becomes ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except UsageError as error:
        _fail(error, 2)
    except HopscopeError as error:
        _fail(error, 1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer has swallowed the KeyboardInterrupt
            print("stopped; with -o, the same command goes on from here", file=sys.stderr)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(error: HopscopeError, code: int) -> None:
    print(f"hopscope: {error}", file=sys.stderr)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the models of the zoo."""
    from hopscope.models.zoo import model_dir, zoo

    entries = [
        {
            "name": entry.name,
            "hub_id": entry.hub_id,
            "licence": entry.licence,
            "here": model_dir(entry.name).is_dir(),
            "description": entry.description,
        }
        for entry in zoo().values()
    ]
    show({"models": entries}, as_json, lambda: table_text(entries))


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="A name of `hopscope models list`.")],
    force: Annotated[bool, typer.Option(help="Fetch it again.")] = False,
) -> None:
    """Fetch a model of the zoo into the cache."""
    from hopscope.models.zoo import pull

    print(pull(name, force=force))


@app.command("grade")
def grade_command(
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    limit: Limit = None,
    few_shot: FewShot = None,
    seed: Seed = 0,
    match: Match = "word",
    max_new_tokens: Tokens = 10,
    out: Out = None,
    shard: Shard = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Ask first hop, second hop, two hops and shortcuts: right or wrong."""
    from hopscope.experiments import grade

    asked = _queries(queries, few_shot, limit, seed)
    graded = grade(
        _model(model, device, dtype),
        asked,
        match=match,  # type: ignore[arg-type]  # grade checks it
        max_new_tokens=max_new_tokens,
        out=out,
        shard=_shard(shard),
    )
    summary = graded.summary()
    found = {"summary": records(summary), "rows": records(graded.frame), "run": graded.run}
    show(found, as_json, lambda: summary.to_string(index=False, float_format="%.3f"))


@app.command("back-patch")
def back_patch_command(
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    subset: Subset = "incorrect",
    limit: Limit = None,
    most: Most = None,
    few_shot: FewShot = None,
    positions: Annotated[str, typer.Option(help="Of t1, t2, t1->t2, e1; with commas.")] = "t1,t2",
    controls: Annotated[str, typer.Option(help="Of other, random; with commas.")] = "other,random",
    criterion: Annotated[str, typer.Option(help="generation or first_token.")] = "generation",
    layer_step: Step = 1,
    stop_early: Annotated[
        bool, typer.Option(help="Stop a cell when its answer is certain.")
    ] = True,
    parity: Annotated[
        bool, typer.Option(help="The paper's: substring match, whole generations, no few-shot.")
    ] = False,
    seed: Seed = 0,
    match: Match = "word",
    max_new_tokens: Tokens = 10,
    out: Out = None,
    shard: Shard = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Copy later states into earlier layers: which queries does that repair, beside chance?"""
    from hopscope.experiments import back_patch
    from hopscope.experiments.back_patching import check_choices
    from hopscope.study import layer_cells

    _check_subset(subset)
    if parity:
        match, stop_early, few_shot = "substring", False, 0
    check_choices(_names(positions), _names(controls), criterion, match)
    part = _shard(shard)
    asked = _queries(queries, few_shot, limit, seed)
    loaded = _model(model, device, dtype)
    chosen = _chosen(loaded, asked, subset, most, seed, match, max_new_tokens, out)
    result = back_patch(
        loaded,
        chosen,
        positions=_names(positions),
        controls=_names(controls),
        criterion=criterion,  # type: ignore[arg-type]
        max_new_tokens=max_new_tokens,
        match=match,  # type: ignore[arg-type]
        cells=layer_cells(loaded.n_layers, layer_step),
        stop_early=stop_early,
        seed=seed,
        out=out,
        shard=part,
    )
    rates = result.success_rate(seed)
    found: dict[str, Any] = {
        "success_rate": records(rates),
        "above_chance": records(result.above_chance(seed)),
        "best_cell": None,
        "run": result.run,
    }
    if result.frame["query"].nunique() > 1:
        found["best_cell"] = result.best_cell(seed=seed)._asdict()

    def text() -> str:
        lines = [rates.to_string(index=False, float_format="%.3f")]
        if found["best_cell"] is not None:
            lines += ["", "best cell, chosen on one half and scored on the other:"]
            lines += [", ".join(f"{k} {_short(v)}" for k, v in found["best_cell"].items())]
        return "\n".join(lines)

    show(found, as_json, text)


@app.command("knockout")
def knockout_command(
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    subset: Subset = "correct",
    limit: Limit = None,
    most: Most = None,
    few_shot: FewShot = None,
    edges: Annotated[
        str, typer.Option(help="query->key of t1, t2, e1, r1, r2, before, few_shot; with commas.")
    ] = "t2->t1,t2->e1,t2->r1,t1->e1",
    window: Annotated[int, typer.Option(min=0, help="Layers on each side of the middle.")] = 3,
    heads: Annotated[str | None, typer.Option(help="Only these heads; with commas.")] = None,
    layer_step: Step = 1,
    control: Controls = True,
    criterion: Annotated[str, typer.Option(help="generation or first_token.")] = "generation",
    seed: Seed = 0,
    match: Match = "word",
    max_new_tokens: Tokens = 10,
    out: Out = None,
    shard: Shard = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Block attention between parts of the question: which edges carry the answer, and where?"""
    from hopscope.experiments import knockout

    _check_subset(subset)
    part, asked = _shard(shard), _queries(queries, few_shot, limit, seed)
    loaded = _model(model, device, dtype)
    result = knockout(
        loaded,
        _chosen(loaded, asked, subset, most, seed, match, max_new_tokens, out),
        edges=_names(edges),
        controls=["random"] if control else [],
        window=window,
        layers=range(0, loaded.n_layers, layer_step),
        heads=_numbers(heads, "heads"),
        criterion=criterion,  # type: ignore[arg-type]
        max_new_tokens=max_new_tokens,
        match=match,  # type: ignore[arg-type]
        seed=seed,
        out=out,
        shard=part,
    )
    show_tables(
        result,
        {"effect": result.effect(seed=seed), "above_chance": result.above_chance(seed)},
        as_json,
    )


@app.command("project")
def project_command(
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    subset: Subset = "correct",
    limit: Limit = None,
    most: Most = None,
    few_shot: FewShot = None,
    positions: Positions = "t1,t2",
    sites: Annotated[
        str, typer.Option(help="Of attn_out, mlp_out, resid_post; with commas.")
    ] = "attn_out,mlp_out,resid_post",
    rank: Annotated[int, typer.Option(min=0, help="Resolved where the rank is at most this.")] = 0,
    seed: Seed = 0,
    out: Out = None,
    shard: Shard = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Project attention, MLP and residual stream: where are bridge and answer resolved?"""
    from hopscope.experiments import project

    _check_subset(subset)
    part, asked = _shard(shard), _queries(queries, few_shot, limit, seed)
    loaded = _model(model, device, dtype)
    result = project(
        loaded,
        _chosen(loaded, asked, subset, most, seed, "word", 10, out),
        positions=_names(positions),
        sites=_names(sites),
        seed=seed,
        out=out,
        shard=part,
    )
    show_tables(result, {"summary": result.summary(rank, seed)}, as_json)


@app.command("describe")
def describe_command(
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    subset: Subset = "correct",
    limit: Limit = None,
    most: Most = None,
    few_shot: FewShot = None,
    positions: Positions = "t1,t2",
    prompts: Annotated[
        str, typer.Option(help="Of description, identity; with commas.")
    ] = "description",
    samples: Annotated[int, typer.Option(min=0, help="Texts drawn for a cell; 0: greedy.")] = 0,
    layer_step: Step = 1,
    seed: Seed = 0,
    match: Match = "word",
    max_new_tokens: Tokens = 10,
    out: Out = None,
    shard: Shard = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Let the model describe its own states: which entity is in them?"""
    from hopscope.experiments import describe

    _check_subset(subset)
    part, asked = _shard(shard), _queries(queries, few_shot, limit, seed)
    loaded = _model(model, device, dtype)
    layers = range(0, loaded.n_layers, layer_step)
    result = describe(
        loaded,
        _chosen(loaded, asked, subset, most, seed, match, 10, out),
        positions=_names(positions),
        prompts=_names(prompts),
        source_layers=layers,
        target_layers=layers,
        samples=samples,
        max_new_tokens=max_new_tokens,
        match=match,  # type: ignore[arg-type]
        seed=seed,
        out=out,
        shard=part,
    )
    tables = {
        "described": result.described(seed),
        "above_chance": result.above_chance(seed),
        "shares": result.shares(),
    }
    show_tables(result, tables, as_json)


@app.command("stages")
def stages_command(
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    subset: Subset = "correct",
    limit: Limit = None,
    most: Most = None,
    few_shot: FewShot = None,
    layer_step: Step = 1,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Put the stages of the computation on one axis, and count the broken orders."""
    from hopscope.experiments import stages

    _check_subset(subset)
    asked = _queries(queries, few_shot, limit, seed)
    loaded = _model(model, device, dtype)
    chosen = _chosen(loaded, asked, subset, most, seed, "word", 10, out)
    result = stages(loaded, chosen, layer_step=layer_step, seed=seed, out=out)
    tables = {"summary": result.summary(seed), "broken": result.broken()}
    show_tables(result, tables, as_json)


@app.command("patch")
def patch_command(
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    subset: Subset = "correct",
    limit: Limit = None,
    most: Most = None,
    few_shot: FewShot = None,
    positions: Positions = "t1,t2",
    sites: Annotated[
        str, typer.Option(help="Of resid_post, attn_out, mlp_out, z (heads); with commas.")
    ] = "resid_post,attn_out,mlp_out",
    control: Controls = True,
    seed: Seed = 0,
    out: Out = None,
    shard: Shard = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Put states of another question in: which of them carry the source entity to the answer?"""
    from hopscope.experiments import activation_patch

    _check_subset(subset)
    part, asked = _shard(shard), _queries(queries, few_shot, limit, seed)
    loaded = _model(model, device, dtype)
    result = activation_patch(
        loaded,
        _chosen(loaded, asked, subset, most, seed, "word", 10, out),
        positions=_names(positions),
        sites=_names(sites),
        controls=["random"] if control else [],
        seed=seed,
        out=out,
        shard=part,
    )
    show_tables(result, {"summary": result.summary(seed)}, as_json)


@app.command("trace")
def trace_command(
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    subset: Subset = "correct",
    limit: Limit = None,
    most: Most = None,
    few_shot: FewShot = None,
    positions: Positions = "t1,t2",
    sites: Annotated[
        str, typer.Option(help="Of resid_post, attn_out, mlp_out; with commas.")
    ] = "resid_post,attn_out,mlp_out",
    noise: Annotated[float, typer.Option(help="In standard deviations of the embeddings.")] = 3.0,
    draws: Annotated[int, typer.Option(min=1, help="Draws of noise.")] = 3,
    window: Annotated[
        int, typer.Option(min=0, help="Layers of a sublayer restored on each side.")
    ] = 2,
    seed: Seed = 0,
    out: Out = None,
    shard: Shard = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Noise the source entity, and put clean states back: which bring the answer back?"""
    from hopscope.experiments import trace

    _check_subset(subset)
    part, asked = _shard(shard), _queries(queries, few_shot, limit, seed)
    loaded = _model(model, device, dtype)
    result = trace(
        loaded,
        _chosen(loaded, asked, subset, most, seed, "word", 10, out),
        positions=_names(positions),
        sites=_names(sites),
        noise=noise,
        draws=draws,
        window=window,
        seed=seed,
        out=out,
        shard=part,
    )
    tables = {"total_effect": result.total_effect(seed), "summary": result.summary(seed)}
    show_tables(result, tables, as_json)


@app.command("recall")
def recall_command(
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    subset: Subset = "correct",
    limit: Limit = None,
    most: Most = None,
    few_shot: FewShot = None,
    seed: Seed = 0,
    out: Out = None,
    shard: Shard = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well t1 recalls the bridge (EntRec), and how it is used (CnstScore)."""
    from hopscope.experiments import recall

    _check_subset(subset)
    part, asked = _shard(shard), _queries(queries, few_shot, limit, seed)
    loaded = _model(model, device, dtype)
    chosen = _chosen(loaded, asked, subset, most, seed, "word", 10, out)
    result = recall(loaded, chosen, seed=seed, out=out, shard=part)
    tables = {"summary": result.summary(seed), "consistency": result.consistency(seed)}
    show_tables(result, tables, as_json)


@app.command("probe")
def probe_command(
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many; all of a source entity's.")
    ] = 1000,
    few_shot: FewShot = None,
    target: Annotated[str, typer.Option(help="e2 (the bridge) or e2_type.")] = "e2",
    position: Annotated[str, typer.Option(help="t1, t2 or e1.")] = "t1",
    folds: Annotated[int, typer.Option(min=2, help="Of the cross-validation.")] = 5,
    layer_step: Step = 1,
    seed: Seed = 0,
    save: Annotated[
        Path | None, typer.Option(help="Fit a probe on all of them, and write it here.")
    ] = None,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Read the bridge off t1 with a linear probe, beside a control task."""
    from hopscope.experiments import fit_probe, probe
    from hopscope.experiments.probing import TARGETS, labelled, sample_entities

    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}: choose from {', '.join(TARGETS)}")
    asked = labelled(_queries(queries, few_shot, None, seed), target, folds)[0]  # type: ignore[arg-type]
    if limit is not None:
        asked = sample_entities(asked, limit, seed)
    loaded = _model(model, device, dtype)
    layers = range(0, loaded.n_layers, layer_step)
    asked_for: dict[str, Any] = {"position": position, "layers": layers, "folds": folds}
    result = probe(loaded, asked, target, seed=seed, out=out, **asked_for)  # type: ignore[arg-type]
    show_tables(result, {"selectivity": result.selectivity()}, as_json)
    if save is not None:
        fitted = fit_probe(loaded, asked, target, **asked_for)  # type: ignore[arg-type]
        print(fitted.save(save), file=sys.stderr)


Questions = Annotated[
    str,
    typer.Option("--questions", "-q", help="world-docs, world-docs-real, a file, or a hub id."),
]
Masks = Annotated[
    str | None,
    typer.Option(
        help="Of causal, prefix_bidirectional, document_bidirectional, document_block, "
        "document_block_instruction; with commas. The model's usual one if not given."
    ),
]
PromptTemplate = Annotated[
    str | None,
    typer.Option("--template", help="answer_only, cot, plain or chat; what suits the set."),
]
DocumentLabel = Annotated[
    str, typer.Option("--label", help="Numbers of documents: position, fixed or none.")
]
Distractors = Annotated[
    int, typer.Option(min=0, help="Documents beside the gold ones, in the bundled sets.")
]
Shots = Annotated[
    int | None,
    typer.Option("--few-shot", min=0, help="Demonstrations; the set's own if not given."),
]
AnswerTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="The template's if not given.")
]
SkipImpossible = Annotated[
    bool, typer.Option(help="Leave out questions that cannot have one of the orders.")
]


@app.command("permute")
def permute_command(
    model: Model = "smollm2-135m",
    questions: Questions = "world-docs",
    orders: Annotated[
        str,
        typer.Option(
            help="Of original, forward, backward, forward_G, backward_G, rm_first, gold, "
            "shuffle_K; with commas."
        ),
    ] = "original,forward,backward",
    masks: Masks = None,
    permuting: Annotated[
        str, typer.Option(help="Of text, positions, mask, positions+mask; with commas.")
    ] = "text",
    metric: Annotated[
        str, typer.Option(help="contained, matched, exact_match or f1.")
    ] = "contained",
    limit: Limit = None,
    distractors: Distractors = 4,
    few_shot: Shots = None,
    template: PromptTemplate = None,
    label: DocumentLabel = "position",
    max_new_tokens: AnswerTokens = None,
    skip_impossible: SkipImpossible = False,
    seed: Seed = 0,
    out: Out = None,
    shard: Shard = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Permute documents and change the mask: how do multi-hop answers change?"""
    from hopscope.experiments import permute_documents
    from hopscope.experiments.document_asking import check_metric

    check_metric(metric)
    wanted = _names(orders)
    asked = _questions(questions, few_shot, limit, distractors, seed, wanted, skip_impossible)
    result = permute_documents(
        _reader(model, device, dtype),
        asked,
        wanted,
        None if masks is None else _names(masks),
        _names(permuting),  # type: ignore[arg-type]  # it checks them
        template=template,
        label=label,  # type: ignore[arg-type]
        max_new_tokens=max_new_tokens,
        seed=seed,
        out=out,
        shard=_shard(shard),
    )
    tables = {"rows": result.accuracy(metric, seed), "compare": result.compare(None, metric, seed)}
    show_tables(result, tables, as_json)


@app.command("attention")
def attention_command(
    model: Model = "smollm2-135m",
    questions: Questions = "world-docs",
    orders: Annotated[str, typer.Option(help="As for permute; with commas.")] = "original",
    masks: Masks = None,
    read: Annotated[
        str, typer.Option(help="Whose attention: answer, or last (token of the prompt).")
    ] = "answer",
    metric: Annotated[str, typer.Option(help="contained, matched or exact_match.")] = "contained",
    limit: Limit = None,
    distractors: Distractors = 4,
    few_shot: Shots = None,
    template: PromptTemplate = None,
    label: DocumentLabel = "position",
    max_new_tokens: AnswerTokens = None,
    skip_impossible: SkipImpossible = False,
    seed: Seed = 0,
    out: Out = None,
    shard: Shard = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Read how much the answer looks at each document: does a right one look harder?"""
    from hopscope.experiments import attention_to_documents
    from hopscope.experiments.document_asking import VERDICTS, check_metric

    check_metric(metric, VERDICTS)
    wanted = _names(orders)
    asked = _questions(questions, few_shot, limit, distractors, seed, wanted, skip_impossible)
    result = attention_to_documents(
        _reader(model, device, dtype),
        asked,
        wanted,
        None if masks is None else _names(masks),
        read=read,
        template=template,
        label=label,  # type: ignore[arg-type]  # it checks it
        max_new_tokens=max_new_tokens,
        seed=seed,
        out=out,
        shard=_shard(shard),
    )
    tables = {"rows": result.compare(metric), "peaks": result.peaks(metric)}
    show_tables(result, tables, as_json)


@app.command("study")
def study_command(
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    preset: Annotated[str, typer.Option(help="quick (minutes) or paper (everything).")] = "quick",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Grade this many, and analyse all of them that fit.")
    ] = None,
    few_shot: FewShot = None,
    seed: Seed = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the report; a stopped study goes on.")
    ] = Path("study"),
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Grade, run every analysis, and write figures, tables and a page that says what was found."""
    from dataclasses import replace

    from hopscope import report, study

    size = study.preset(preset)
    if limit is not None:
        size = replace(size, limit=limit, most=limit, questions=limit)
    asked = _queries(queries, few_shot, None, seed)
    loaded = _model(model, device, dtype)
    found = study.run_study(loaded, asked, out / "runs", size, seed=seed)
    told = report.sections(found)
    page, findings = report.write(found, out, told), report.findings(told)
    show(
        {"report": str(page), "findings": findings},
        as_json,
        lambda: "\n".join([*findings, "", str(page)]),
    )


@app.command("figures")
def figures_command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Figures to draw; all if none is named.")
    ] = None,
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    preset: Annotated[str, typer.Option(help="quick (minutes) or paper (everything).")] = "quick",
    limit: Limit = None,
    few_shot: FewShot = None,
    seed: Seed = 0,
    runs: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("runs"),
    scripts: Annotated[Path, typer.Option(help="Folder of figure scripts.")] = Path("figures"),
    rendered: Annotated[
        Path | None, typer.Option(help="Where pictures go; `rendered` in the scripts' folder.")
    ] = None,
    from_runs: Annotated[
        Path | None,
        typer.Option("--from", help="Draw what lies in this folder of runs; no model is run."),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Draw nothing; say which numbers moved, and fail if any did.")
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="How far numbers may move, as a part of them."),
    ] = 1e-3,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Run what the figures need, unless it is there, and draw them.

    Figures for which models are trained or fetched are run only if they are named.
    """
    import tempfile
    from dataclasses import replace

    from hopscope import figure_check, figure_runs, study

    size = study.preset(preset)
    chosen = list(study.figure_scripts(scripts, names or []))
    committed, strict = rendered or scripts / "rendered", bool(names)
    if limit is not None:
        size = replace(size, limit=limit, of_world=min(limit, size.of_world))
    label = f"{preset if limit is None else f'{preset}-{limit}'}-seed-{seed}"
    with tempfile.TemporaryDirectory() as beside:
        pictures = Path(beside) if check else committed
        if from_runs is not None:
            drawn = study.redraw(scripts, chosen, from_runs, pictures, strict=strict)
        else:
            how = figure_runs.Setting(runs / f"alone.{label}", size, seed, device)
            drawn = figure_runs.draw_alone(chosen, how, scripts, pictures, costly=strict)
            others = [name for name in chosen if name not in figure_runs.ALONE]
            if others:
                asked = _queries(queries, few_shot, None, seed)
                loaded = _model(model, device, dtype)
                folder = study.study_folder(runs, loaded, asked, label)
                steps = study.needed(others)
                found = study.run_study(loaded, asked, folder, size, steps, seed=seed)
                print(found.grading.summary().to_string(index=False, float_format="%.3f"))
                drawn += study.draw_figures(scripts, others, folder, pictures, strict=strict)
        if not check:
            for path in drawn:
                print(path)
            return
        figures = [path.stem for path in drawn if path.suffix == ".csv"]
        moved = figure_check.moved(committed, pictures, figures, tolerance)
    if len(moved):
        print(table_text(records(moved)))
        raise ResultError(f"{len(moved)} numbers moved by more than {tolerance}")
    print(f"{', '.join(figures)}: no number moved by more than {tolerance}")


def _model(name: str, device: str | None, dtype: str | None) -> LanguageModel:
    from hopscope.models import load_model

    return load_model(name, device=device, dtype=dtype)


def _reader(name: str, device: str | None, dtype: str | None) -> LanguageModel | EncoderDecoder:
    from hopscope.models import load_any

    return load_any(name, device=device, dtype=dtype)


def _queries(source: str, few_shot: int | None, limit: int | None, seed: int) -> QuerySet:
    from hopscope.queries import load_queries
    from hopscope.study import limited

    loaded = load_queries(source, few_shot=few_shot)
    return limited(loaded.with_few_shot(loaded.few_shot, seed), limit, seed)


def _questions(
    source: str,
    few_shot: int | None,
    limit: int | None,
    distractors: int,
    seed: int,
    orders: list[str],
    skip_impossible: bool,
) -> QuestionSet:
    from hopscope.documents import load_questions
    from hopscope.orders import that_allow
    from hopscope.study import limited

    loaded = load_questions(source, distractors=distractors, seed=seed)
    loaded = loaded.with_few_shot(loaded.few_shot if few_shot is None else few_shot, seed)
    return limited(that_allow(loaded, orders) if skip_impossible else loaded, limit, seed)


def _check_subset(subset: str) -> None:
    if subset not in ("incorrect", "correct", "all"):
        raise UsageError(f"unknown subset {subset!r}: choose incorrect, correct or all")


def _chosen(
    model: LanguageModel,
    queries: QuerySet,
    subset: str,
    most: int | None,
    seed: int,
    match: str,
    max_new_tokens: int,
    out: Path | None,
) -> QuerySet:
    """The queries of a subset, graded first into a folder beside `out`."""
    from hopscope.experiments import grade
    from hopscope.study import limited

    if subset == "all":
        return limited(queries, most, seed)
    folder = None if out is None else out.with_name(f"{out.name}.grading")
    graded = grade(
        model,
        queries,
        match=match,  # type: ignore[arg-type]  # grade checks it
        max_new_tokens=max_new_tokens,
        out=folder,
    )
    return limited(graded.incorrect() if subset == "incorrect" else graded.correct(), most, seed)


def _numbers(text: str | None, what: str) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(number) for number in _names(text)]
    except ValueError:
        raise UsageError(f"{what} are numbers with commas between, not {text!r}") from None


def _shard(text: str | None) -> tuple[int, int] | None:
    from hopscope.results import parse_shard

    return None if text is None else parse_shard(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
