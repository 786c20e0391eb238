"""Provides the commands of the analyses, each made from its entry in the catalogue.

The options are the parameters of the analysis and of its result's `printed`, with their defaults;
the help is that of the docstrings. An analysis is imported when its command is used.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from hopscope.commands.options import (
    CommonOptions,
    DocumentOptions,
    QueryOptions,
    Step,
    SubsetOptions,
    split_commas,
    with_options,
)
from hopscope.commands.printing import show_back_patching, show_tables
from hopscope.errors import UsageError

if TYPE_CHECKING:
    from hopscope.experiments.analysis import Analysis

OPTIONS: Mapping[str, type[CommonOptions]] = {
    "subset": SubsetOptions,
    "queries": QueryOptions,
    "documents": DocumentOptions,
}
"""What a command takes, by what its analysis asks for."""
SHOWN = {"back-patch": show_back_patching}
"""The commands that print more than tables."""


class CatalogueGroup(TyperGroup):
    """The commands that are written out, and one for each analysis of the catalogue."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The analyses in their order, then everything else."""
        from hopscope.experiments.registry import list_commands

        analyses = [info.command for info in list_commands()]
        return [*analyses, *(name for name in super().list_commands(ctx) if name not in analyses)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command; that of an analysis knows no more than its help until it is run."""
        from hopscope.experiments.registry import list_commands, load_command

        written = super().get_command(ctx, cmd_name)
        known = {info.command: info for info in list_commands()}
        if written is not None or cmd_name not in known:
            return written
        info = known[cmd_name]
        return LazyCommand(cmd_name, info.help, lambda: command_of(load_command(info)))


class LazyCommand(TyperCommand):
    """A command that is made when it is run, since that imports torch."""

    def __init__(self, name: str, help: str, make: Callable[[], Any]) -> None:
        super().__init__(name, help=help)
        self.make = make

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        return self.make().make_context(info_name, args, parent, **extra)


def command_of(entry: Analysis) -> Any:
    """The command of an analysis."""
    own = {each.name: each for each in _own_options(entry)}
    printed = {each.name: each for each in _printed_options(entry)}
    options = OPTIONS[entry.asks]
    without = [name for name in ("shard",) if name not in entry.keywords]
    usual = {"subset": entry.usual_subset} if entry.asks == "subset" else {}

    def run(options: Any, **given: Any) -> None:
        shown = {name: given[name] for name in printed}
        arguments = {each.parameter: each.read(given[name]) for name, each in own.items()}
        if given.get("parity"):
            arguments |= entry.parity
            options = replace(options, few_shot=0)
        entry.check({**arguments, **shown})  # before anything is loaded
        model, inputs = _loaded(entry, options, arguments)
        arguments |= entry.at_layers(model, given.get("layer_step", 1))
        common = {k: v for k, v in options.settings().items() if k in entry.keywords}
        result = entry.function(model, inputs, **arguments, **common)
        if entry.command in SHOWN:
            SHOWN[entry.command](result, options.seed, options.as_json)
        else:
            show_tables(result, result.printed(seed=options.seed, **shown), options.as_json)

    parameters = [each.as_parameter() for each in (*own.values(), *printed.values())]
    if entry.layers is not None:
        parameters.append(_keyword("layer_step", 1, Step))
    if entry.parity:
        parameters.append(_keyword("parity", False, Annotated[bool, typer.Option(help=PARITY)]))
    first = inspect.Parameter("options", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
    run.__doc__ = f"{entry.help}\n\n{entry.question_with_source}"
    app = typer.Typer(add_completion=False)
    app.command(entry.command)(with_options(options, without, **usual)(run))
    return typer.main.get_command(app)


LISTS = {Sequence, Mapping, Iterable, tuple, list}
"""Types of parameters that are written as names with commas between."""
PARITY = "The paper's own setting, with no demonstrations."


def _loaded(entry: Analysis, options: Any, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """The model and its inputs."""
    if entry.asks == "documents":
        return options.load(arguments.get("orders") or [arguments.get("order", "original")])  # type: ignore[no-any-return]
    if entry.asks == "subset":
        return options.load(**{name: arguments[name] for name in entry.grades})  # type: ignore[no-any-return]
    queries = options.load_queries()  # first, so that a mistake is reported before the model loads
    return options.load_model(), queries


@dataclass(frozen=True)
class _Option:
    """An option of one command.

    Attributes:
        parameter: of the analysis, which it is given to.
        name: of the option, with underscores.
        default: what it is if it is not given.
        hint: its type, with its help.
        read: turns what typer gives into what the analysis takes.
    """

    parameter: str
    name: str
    default: Any
    hint: Any
    read: Callable[[Any], Any]

    def as_parameter(self) -> inspect.Parameter:
        return _keyword(self.name, self.default, self.hint)


def _keyword(name: str, default: Any, hint: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=hint)


def _own_options(entry: Analysis) -> Iterator[_Option]:
    """The options that are parameters of an analysis, but for those that name layers."""
    from hopscope.experiments.analysis import argument_texts

    texts = argument_texts(inspect.getdoc(entry.function) or "")
    of_layers = () if entry.layers is None else tuple(entry.layers(range(1)))
    for name, parameter in entry.own_parameters.items():
        if name not in of_layers:
            yield _option(entry, parameter, texts.get(name, ""))


def _printed_options(entry: Analysis) -> Iterator[_Option]:
    """The options that say what of a result is printed."""
    from hopscope.experiments.analysis import argument_texts

    texts = argument_texts(inspect.getdoc(entry.result.printed) or "")
    signature = inspect.signature(entry.result.printed, eval_str=True)
    for name, parameter in signature.parameters.items():
        if name not in ("self", "seed"):
            yield _option(entry, parameter, texts.get(name, ""))


def _option(entry: Analysis, parameter: inspect.Parameter, text: str) -> _Option:
    """The option of a parameter; a list is written with commas."""
    from hopscope.experiments.arguments import AtLeast, Heads, ListOf

    name, default, accepts = parameter.name, parameter.default, entry.accepts.get(parameter.name)
    help = _help(text, accepts)
    if isinstance(accepts, ListOf) and accepts.empty and len(accepts.known) == 1:
        known = list(accepts.known)
        flag = Annotated[bool, typer.Option(help="Run the control, too.")]
        return _Option(
            name, name.removesuffix("s"), bool(default), flag, lambda on: known if on else []
        )
    kinds = _kinds(parameter.annotation)
    if not isinstance(default, str) and kinds & LISTS:
        hint: Any = str if default is not None else str | None
        help = f"{help.rstrip('.').removesuffix('; () for none')}; with commas."
        read = _numbers if isinstance(accepts, Heads) else _names_or_none
        written = None if default is None else ",".join(default)
        return _Option(name, name, written, Annotated[hint, typer.Option(help=help)], read)
    plain = next((kind for kind in (bool, int, float) if kind in kinds), str)
    hint = plain | None if default is None else plain
    least = accepts.least if isinstance(accepts, AtLeast) else None
    return _Option(
        name, name, default, Annotated[hint, typer.Option(min=least, help=help)], lambda it: it
    )


def _help(text: str, accepts: Any) -> str:
    """What a docstring says of a parameter, and what it may be where that is not said."""
    known = tuple(getattr(accepts, "known", ()))
    if not text.startswith("`"):
        text = text[:1].upper() + text[1:]
    help = text.replace("`", "")
    if any(each not in help for each in known):
        help = f"{help.rstrip('.')}: {', '.join(known)}."
    return help


def _kinds(hint: Any) -> set[Any]:
    """The types in a union, without their arguments."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return {get_origin(each) or each for each in members}


def _names_or_none(text: str | None) -> list[str] | None:
    return None if text is None else split_commas(text)


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(each) for each in split_commas(text)]
    except ValueError:
        raise UsageError(f"heads are numbers with commas between, not {text!r}") from None
