"""Provides the commands that run many analyses at once: a study with its page, and the figures."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hopscope.commands.options import (
    ENGINE,
    Need,
    Preset,
    QueryOptions,
    choice,
    example,
    folder_option,
    with_options,
)
from hopscope.commands.printing import AsJson, records, show, table_text
from hopscope.errors import ResultError
from hopscope.files import check_place

if TYPE_CHECKING:
    from hopscope.study.presets import Preset as Size

studies_app = typer.Typer()


@studies_app.command("study", epilog=example("study -m smollm2-135m --limit 100 -o study"))
@with_options(QueryOptions, without=["limit", "out", "shard", "full"])
def study_command(
    options: QueryOptions,
    *,
    preset: Preset = "quick",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Grade this many queries, and analyse every one that falls into a subset."
        ),
    ] = None,
    need: Need = 16,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the report; an interrupted study is continued.",
            callback=folder_option,
        ),
    ] = Path("study"),
) -> None:
    """Grade, run every analysis, and write figures, tables and a page that says what was found."""
    from hopscope.experiments.estimate import duration, overview
    from hopscope.study import presets, report, study

    size = replace(presets.preset(preset), need=need)
    options = options.zero_shot() if size.setting else options
    if limit is not None:
        size = replace(size, limit=limit, most=max(limit, need), questions=limit, probed=limit)
    model, queries = options.load_both()
    if options.dry_run:
        costs = study.estimate_study(model, queries, out / "runs", size, seed=options.seed)
        total = sum(each.seconds for each in costs.values())
        show(
            {name: asdict(each) for name, each in costs.items()},
            options.as_json,
            lambda: f"{table_text(overview(costs))}\n\nin all {duration(total)}",
        )
        return
    found = study.run_study(
        model, queries, out / "runs", size, seed=options.seed, on=options.engine
    )
    sections = report.sections(found)
    page, findings = report.write(found, out, sections), report.sentences(sections)
    show(
        {"report": str(page), "findings": findings},
        options.as_json,
        lambda: "\n".join([*findings, "", str(page)]),
    )


@studies_app.command("accuracy-table", epilog=example("accuracy-table runs/0.5b runs/1.5b"))
def accuracy_table_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of permute.")],
    *,
    metric: Annotated[
        str | None,
        choice(
            ("contained", "matched", "exact_match", "paper", "f1"),
            help="By default what suits the template.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Lay the accuracy of several runs side by side: a row a model and mask, a column an order."""
    from hopscope.experiments.documents.permutation import Permutation, accuracy_table

    table = accuracy_table([Permutation.load(run) for run in runs], metric).reset_index()
    show({"accuracy": records(table)}, as_json, lambda: table_text(table, "%.2f"))


@studies_app.command("figures", epilog=example("figures back_patching -m smollm2-135m --limit 100"))
@with_options(QueryOptions, without=["out", "shard", *ENGINE, "dry_run", "full", "as_json"])
def figures_command(
    options: QueryOptions,
    *,
    names: Annotated[
        list[str] | None, typer.Argument(help="Figures to draw; all if none is named.")
    ] = None,
    preset: Preset = "quick",
    runs: Annotated[Path, typer.Option(help="Folder in which results are kept.")] = Path("runs"),
    scripts: Annotated[
        Path | None,
        typer.Option(help="Folder of figure scripts; `figures` here, or those of the package."),
    ] = None,
    rendered: Annotated[
        Path | None,
        typer.Option(help="Where pictures go; `rendered` in the scripts' folder or in `figures`."),
    ] = None,
    from_runs: Annotated[
        Path | None,
        typer.Option("--from", help="Draw the results in this folder without running a model."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(help="Draw nothing; report the numbers that changed, and fail if any did."),
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Relative tolerance of --check."),
    ] = 1e-3,
) -> None:
    """Run what the figures need, unless it is there, and draw them.

    Figures for which models are trained or fetched are run only if they are named. Those over
    several trainings take seeds 0, 1 and 2, whatever --seed is. Those that bring their own models
    take no --chat, and no --dtype or --quantization but for pretrained models.
    """
    from hopscope.study import figure_check
    from hopscope.study import figures as study_figures
    from hopscope.study.presets import preset as preset_named

    size = preset_named(preset)
    options = options.zero_shot() if size.setting else options
    committed, strict = rendered or (scripts or Path("figures")) / "rendered", bool(names)
    scripts = scripts or study_figures.scripts_folder()
    chosen = list(study_figures.figure_scripts(scripts, names or []))
    if check:
        figure_check.check_committed(committed, names or [])
    for place in [*([] if check else [committed]), *([] if from_runs else [runs])]:
        check_place(place)
    parts = [preset]
    if options.limit is not None:
        size = replace(
            size,
            limit=options.limit,
            probed=options.limit,
            of_world=min(options.limit, size.of_world),
        )
        parts.append(str(options.limit))
    label = "-".join([*parts, f"seed-{options.seed}", *options.precision])
    with tempfile.TemporaryDirectory() as beside:
        pictures = Path(beside) if check else committed
        if from_runs is not None:
            drawn = study_figures.redraw(scripts, chosen, from_runs, pictures, strict=strict)
        else:
            drawn = _run_and_draw(options, chosen, size, runs, label, scripts, pictures, strict)
        if not check:
            for path in drawn:
                print(path)
            return
        figures = [path.stem for path in drawn if path.suffix == ".csv"]
        moved = figure_check.moved(committed, pictures, figures, tolerance)
    if len(moved):
        print(table_text(moved))
        raise ResultError(f"{len(moved)} numbers moved by more than {tolerance}")
    print(f"{', '.join(figures)}: no number moved by more than {tolerance}")


def _run_and_draw(
    options: QueryOptions,
    names: list[str],
    size: Size,
    runs: Path,
    label: str,
    scripts: Path,
    pictures: Path,
    strict: bool,
) -> list[Path]:
    """Run what some figures are drawn from, unless it is there, and draw them."""
    from hopscope.study.figures import draw_figures
    from hopscope.study.standalone_figures import (
        STANDALONE_FIGURES,
        Settings,
        check_options,
        draw_standalone,
    )
    from hopscope.study.study import COMPOSED, run_study, study_analyses, study_folder

    if strict:
        check_options(names, chat=options.chat, precision=options.precision)
    settings = Settings(runs / f"alone.{label}", size, options.seed, **options.loading)
    drawn = draw_standalone(names, settings, scripts, pictures, costly=strict)
    others = [name for name in names if name not in STANDALONE_FIGURES]
    if others:
        model, queries = replace(options, limit=None).load_both()
        folder = study_folder(runs, model, queries, label)
        steps = [each.name for each in study_analyses(others)]

        def draw(name: str) -> None:
            if name in others:  # each picture as soon as it can be drawn
                with suppress(ResultError):
                    drawn.extend(draw_figures(scripts, [name], folder, pictures))
                    others.remove(name)

        found = run_study(model, queries, folder, size, steps, seed=options.seed, finished=draw)
        for name in COMPOSED:
            draw(name)
        print(table_text(found.grading.summary(), "%.3f"))
        if others and (strict or not drawn):
            drawn += draw_figures(scripts, others, folder, pictures, strict=strict)
    return drawn
