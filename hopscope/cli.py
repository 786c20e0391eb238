"""Provides the `hopscope` command."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopscope import __version__
from hopscope.errors import HopscopeError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from hopscope.models import LanguageModel
    from hopscope.queries import QuerySet

app = typer.Typer(
    no_args_is_help=True,
    help="How does a language model answer a question that takes two hops, and why does it fail?",
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(no_args_is_help=True, help="The models that hopscope knows by name.")
app.add_typer(models_app, name="models")

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
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


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
    _show({"models": entries}, as_json, lambda: _table(entries))


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
    found = {"summary": _records(summary), "rows": _records(graded.frame), "run": graded.run}
    _show(found, as_json, lambda: summary.to_string(index=False, float_format="%.3f"))


@app.command("back-patch")
def back_patch_command(
    model: Model = "smollm2-135m",
    queries: Queries = "world",
    subset: Annotated[
        str, typer.Option(help="incorrect or correct (graded first), or all.")
    ] = "incorrect",
    limit: Limit = None,
    most: Annotated[int | None, typer.Option(min=1, help="Back-patch only this many.")] = None,
    few_shot: FewShot = None,
    positions: Annotated[str, typer.Option(help="Of t1, t2, t1->t2, e1; with commas.")] = "t1,t2",
    controls: Annotated[str, typer.Option(help="Of other, random; with commas.")] = "other,random",
    criterion: Annotated[str, typer.Option(help="generation or first_token.")] = "generation",
    layer_step: Annotated[int, typer.Option(min=1, help="Only every so many layers.")] = 1,
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
    from hopscope.experiments import back_patch, grade
    from hopscope.experiments.back_patching import check_choices
    from hopscope.study import layer_cells, limited

    if subset not in ("incorrect", "correct", "all"):
        raise UsageError(f"unknown subset {subset!r}: choose incorrect, correct or all")
    if parity:
        match, stop_early, few_shot = "substring", False, 0
    check_choices(_names(positions), _names(controls), criterion, match)
    part = _shard(shard)
    asked = _queries(queries, few_shot, limit, seed)
    loaded = _model(model, device, dtype)
    if subset != "all":
        folder = None if out is None else out.with_name(f"{out.name}.grading")
        graded = grade(
            loaded,
            asked,
            match=match,  # type: ignore[arg-type]
            max_new_tokens=max_new_tokens,
            out=folder,
        )
        asked = graded.incorrect() if subset == "incorrect" else graded.correct()
    result = back_patch(
        loaded,
        limited(asked, most, seed),
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
        "success_rate": _records(rates),
        "above_chance": _records(result.above_chance(seed)),
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

    _show(found, as_json, text)


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
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Run what the figures need, unless it is there, and draw them."""
    from dataclasses import replace

    from hopscope import study

    size = study.preset(preset)
    if limit is not None:
        size = replace(size, limit=limit)
    study.figure_scripts(scripts, names or [])
    asked = _queries(queries, few_shot, None, seed)
    loaded = _model(model, device, dtype)
    label = preset if limit is None else f"{preset}-{limit}"
    folder = study.study_folder(runs, loaded, asked, f"{label}-seed-{seed}")
    graded = study.run_study(loaded, asked, folder, size, seed=seed)
    print(graded.summary().to_string(index=False, float_format="%.3f"))
    for path in study.draw_figures(scripts, names or [], folder, rendered or scripts / "rendered"):
        print(path)


def _model(name: str, device: str | None, dtype: str | None) -> LanguageModel:
    from hopscope.models import load_model

    return load_model(name, device=device, dtype=dtype)


def _queries(source: str, few_shot: int | None, limit: int | None, seed: int) -> QuerySet:
    from hopscope.queries import load_queries
    from hopscope.study import limited

    loaded = load_queries(source, few_shot=few_shot)
    return limited(loaded.with_few_shot(loaded.few_shot, seed), limit, seed)


def _shard(text: str | None) -> tuple[int, int] | None:
    from hopscope.results import parse_shard

    return None if text is None else parse_shard(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain values; NaN becomes null."""
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    import pandas as pd

    return pd.DataFrame(rows).to_string(index=False)


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _show(found: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    if as_json:
        print(json.dumps(_without_nan(found), ensure_ascii=False))
    else:
        print(text())


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and value != value else value


if __name__ == "__main__":
    main()
