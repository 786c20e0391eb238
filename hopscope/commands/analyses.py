"""Provides the commands of the analyses, each made from what is known of it.

The options are the parameters of the analysis and of its result's `printed`, with their defaults;
the help is that of the docstrings. An analysis is imported when its command is run.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hopscope.commands.options import (
    ENGINE,
    CommonOptions,
    DocumentOptions,
    Parity,
    QueryOptions,
    SubsetOptions,
    choice,
    example,
    split_commas,
    with_options,
)
from hopscope.commands.printing import show_estimates, show_tables
from hopscope.commands.specs import CommandSpec, OptionSpec, list_specs
from hopscope.errors import UsageError
from hopscope.experiments.registry import REGISTERED

if TYPE_CHECKING:
    from hopscope.experiments.analysis import Analysis

OPTIONS: Mapping[str, type[CommonOptions]] = {
    "subset": SubsetOptions,
    "queries": QueryOptions,
    "documents": DocumentOptions,
}
"""What a command takes, by what its analysis asks for."""
TYPES = {"bool": bool, "control": bool, "int": int, "float": float}
"""The types of options that are no text."""


class CatalogueGroup(TyperGroup):
    """The commands that are written out, and one for each analysis of the catalogue."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The analyses in their order, then everything else."""
        analyses = [each.command for each in list_specs()]
        return [*analyses, *(name for name in super().list_commands(ctx) if name not in analyses)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command that is written out, or that of an analysis."""
        known = {each.command: each for each in list_specs()}
        written = super().get_command(ctx, cmd_name)
        if written is None and cmd_name in known:
            return command_of(known[cmd_name])
        return written


def command_of(spec: CommandSpec) -> Any:
    """The command of an analysis."""
    options = OPTIONS[spec.asks]
    offered = {
        "shard": spec.shards,
        "dry_run": spec.estimated,
        **dict.fromkeys(ENGINE, spec.elsewhere),
    }
    without = [name for name, is_offered in offered.items() if not is_offered]
    usual = {
        "subset": {"subset": spec.usual_subset},
        "documents": {"questions": spec.usual_questions},
    }.get(spec.asks, {})

    def run(options: Any, context: typer.Context, **given: Any) -> None:
        entry = _registered(spec)
        shown = {each.name: given[each.name] for each in spec.printed}
        arguments = {each.parameter: _read(each, given[each.name]) for each in spec.own}
        rule: dict[str, Any] = {}
        if given.get("parity"):
            names = {each.parameter: each.name for each in spec.own}
            options, arguments = options.at_parity(entry, context, arguments, **names)
            rule = _grading_parity() if entry.asks == "subset" else {}
        rule |= {name: arguments[name] for name in entry.grades}
        entry.check({**arguments, **shown})  # before anything is loaded
        common = {k: v for k, v in options.settings().items() if k in entry.keywords}
        if options.dry_run:
            show_estimates(_estimates(entry, options, arguments, common, rule), options.as_json)
            return
        with options.holding():
            model, inputs = _loaded(entry, options, arguments, rule)
            result = entry.function(model, inputs, **arguments, **common)
        show_tables(
            result, result.printed(seed=options.seed, **shown), options.as_json, options.full
        )

    own = [_keyword(each.name, each.default, _hint(each)) for each in (*spec.own, *spec.printed)]
    parameters = [_keyword("context", inspect.Parameter.empty, typer.Context), *own]
    if spec.parity:
        parameters.append(_keyword("parity", False, Parity))
    first = inspect.Parameter("options", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
    run.__doc__ = f"{spec.summary}\n\n{spec.question}"
    app = typer.Typer(add_completion=False)
    command = with_options(options, without, **usual)(run)
    app.command(spec.command, epilog=example(_example(spec)))(command)
    return typer.main.get_command(app)


def _example(spec: CommandSpec) -> str:
    """A call of a command that takes minutes."""
    limit = "20" if spec.asks == "documents" else "100"
    step = " --layer-step 3" if any(each.name == "layer_step" for each in spec.own) else ""
    return f"{spec.command} -m smollm2-135m --limit {limit}{step} -o runs/{spec.command}"


def _registered(spec: CommandSpec) -> Analysis:
    """The analysis of a command, whose module is imported."""
    importlib.import_module(spec.module)
    entry: Analysis = next(each for each in REGISTERED.values() if each.command == spec.command)
    return entry


def _grading_parity() -> dict[str, Any]:
    """How the paper's code grades."""
    importlib.import_module("hopscope.experiments.two_hop.grading")
    return dict(REGISTERED["grading"].parity)


def _loaded(
    entry: Analysis, options: Any, arguments: Mapping[str, Any], rule: Mapping[str, Any]
) -> tuple[Any, Any]:
    """The model and its inputs; `rule` says how queries are graded."""
    if entry.asks == "documents":
        return options.load(arguments.get("orders") or [arguments.get("order", "original")])  # type: ignore[no-any-return]
    if entry.asks == "subset":
        return options.load(**rule)  # type: ignore[no-any-return]
    return options.load_both()  # type: ignore[no-any-return]


def _estimates(
    entry: Analysis,
    options: Any,
    arguments: Mapping[str, Any],
    common: Mapping[str, Any],
    rule: Mapping[str, Any],
) -> dict[str, Any]:
    """What a command would cost: grading, how many queries that leaves, and the analysis.

    If the queries are not graded yet, a few are, to tell how many will be left; the analysis is
    measured on any of them, since its costs do not depend on what they are.
    """
    from hopscope.experiments.estimate import estimate
    from hopscope.files import temporary_path

    found: dict[str, Any] = {}
    if entry.asks == "subset" and options.subset != "all":
        from hopscope.experiments.analysis import limited
        from hopscope.study.estimates import GradedSample

        model, queries = options.load_candidates()
        at_least = options.limit if options.goes_on else len(queries)
        sample = GradedSample.of(options.grade, model, queries, options.needed, at_least, **rule)
        inputs = limited(sample.subset(options.subset), options.most, options.seed)
        if sample.cost is not None:
            found["grading"] = sample.cost  # the folder is of queries that are not known yet
            common = {**common, "out": options.out and temporary_path(options.out)}
        found[options.subset] = sample.expected(options.subset, options.most)
    else:
        model, inputs = _loaded(entry, options, arguments, rule)
    found[entry.name] = estimate(entry.function, model, inputs, **arguments, **common)
    return found


def _hint(option: OptionSpec) -> Any:
    """The type of an option, with its help, as typer reads it."""
    plain: Any = TYPES.get(option.kind, str)
    hint = plain | None if option.default is None else plain
    shown: dict[str, Any] = {"help": option.help}
    if isinstance(option.default, str) and "," in option.default:
        shown["show_default"] = option.default.replace(",", ", ")  # a line can end there
    if option.choices:
        return Annotated[hint, choice(option.choices, **shown)]
    # What is off needs no option that leaves it off, which would take a column from the help.
    on = (f"--{option.name.replace('_', '-')}",) if option.default is False else ()
    return Annotated[hint, typer.Option(*on, min=option.least, **shown)]


def _read(option: OptionSpec, value: Any) -> Any:
    """What the analysis takes for what typer gives."""
    if option.kind == "control":
        return list(option.control) if value else []
    if value is None or option.kind not in ("names", "numbers"):
        return value
    names = split_commas(value)
    if option.kind == "names":
        return names
    try:
        return [int(each) for each in names]
    except ValueError:
        raise UsageError(f"heads are numbers with commas between, not {value!r}") from None


def _keyword(name: str, default: Any, hint: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=hint)
