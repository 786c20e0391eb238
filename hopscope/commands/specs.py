"""Provides what is known of the commands of the analyses before torch is imported.

`make readme` writes the options of each command, read off its entry in the catalogue, into
`analyses.json` beside this module; `hopscope X --help` and a mistyped option need no more.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from hopscope.experiments.registry import REGISTERED

if TYPE_CHECKING:
    from hopscope.experiments.analysis import Analysis

WRITTEN = Path(__file__).with_name("analyses.json")
Kind = Literal["bool", "int", "float", "str", "names", "numbers", "control"]
"""The type of an option: names and numbers have commas between, a control is run or not."""
LISTS = {Sequence, Mapping, Iterable, tuple, list}
"""Types of parameters that are written with commas."""


@dataclass(frozen=True)
class OptionSpec:
    """An option of one command.

    Attributes:
        parameter: of the analysis, which it is given to.
        name: of the option, with underscores.
        kind: its type.
        default: what it is if it is not given.
        help: a sentence.
        least: the smallest number it may be; None if any.
        control: what the parameter is where the control is run.
        choices: what it may be; anything if there are none.
    """

    parameter: str
    name: str
    kind: Kind
    default: Any
    help: str
    least: int | None = None
    control: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class CommandSpec:
    """A command of an analysis.

    Attributes:
        command: its name in the shell.
        summary: a sentence.
        question: what the analysis answers, with its source.
        order: its place among the others.
        module: where the analysis is registered.
        asks: of what it is.
        usual_subset: what it analyses if nothing else is said.
        usual_questions: the questions over documents that it asks if nothing else is said.
        shards: whether it can compute some parts only.
        elsewhere: whether its parts can be computed where `on` says.
        estimated: whether it can say what it would cost.
        parity: whether it has a setting of the paper's.
        own: its options that are arguments of the analysis.
        printed: its options that say what of the result is printed.
    """

    command: str
    summary: str
    question: str
    order: int
    module: str
    asks: str
    usual_subset: str
    usual_questions: str
    shards: bool
    elsewhere: bool
    estimated: bool
    parity: bool
    own: tuple[OptionSpec, ...]
    printed: tuple[OptionSpec, ...]


def list_specs() -> list[CommandSpec]:
    """The commands of all analyses, in their order; those of the package are read from the file."""
    known = {each.command: each for each in _written()}
    for entry in REGISTERED.values():
        if entry.command is not None and entry.command not in known:
            known[entry.command] = spec_of(entry)
    return sorted(known.values(), key=lambda each: (each.order, each.command))


@cache
def _written() -> tuple[CommandSpec, ...]:
    def options(rows: list[Any]) -> tuple[OptionSpec, ...]:
        lists = ("control", "choices")
        return tuple(OptionSpec(**row | {name: tuple(row[name]) for name in lists}) for row in rows)

    rows = json.loads(WRITTEN.read_text("utf-8"))
    return tuple(
        CommandSpec(**row | {name: options(row[name]) for name in ("own", "printed")})
        for row in rows
    )


def as_json() -> str:
    """What `analyses.json` holds."""
    from hopscope.experiments.catalogue import analyses

    specs = [asdict(spec_of(each)) for each in analyses() if each.command is not None]
    return json.dumps(specs, indent=1, ensure_ascii=False) + "\n"


def spec_of(entry: Analysis) -> CommandSpec:
    """The command of an analysis: its parameters and those of its result's `printed`."""
    of_layers = () if entry.layers is None else tuple(entry.layers(range(1)))
    own = [
        each
        for each in entry.own_parameters.values()
        if each.name not in of_layers and _kinds(each.annotation) != {Mapping}
    ]
    printed = inspect.signature(entry.result.printed, eval_str=True).parameters.values()
    return CommandSpec(
        str(entry.command),
        entry.help.replace("`", ""),
        entry.question_with_source,
        entry.order,
        entry.function.__module__,
        entry.asks,
        entry.usual_subset,
        entry.usual_questions,
        "shard" in entry.keywords,
        "on" in entry.keywords,
        entry.estimated,
        bool(entry.parity),
        _options(entry, own, entry.function),
        _options(
            entry,
            [each for each in printed if each.name not in ("self", "seed")],
            entry.result.printed,
        ),
    )


def _options(
    entry: Analysis, parameters: Iterable[inspect.Parameter], described: Any
) -> tuple[OptionSpec, ...]:
    """The options of some parameters, with the help of a docstring."""
    from hopscope.experiments.analysis import argument_texts

    texts = argument_texts(inspect.getdoc(described) or "")
    return tuple(_option(entry, each, texts.get(each.name, "")) for each in parameters)


def _option(entry: Analysis, parameter: inspect.Parameter, text: str) -> OptionSpec:
    """The option of a parameter."""
    from hopscope.experiments.arguments import AtLeast, Heads, ListOf

    name, default, accepts = parameter.name, parameter.default, entry.accepts.get(parameter.name)
    help, choices = _help(text), tuple(getattr(accepts, "known", ()))
    if isinstance(accepts, ListOf) and accepts.empty and len(accepts.known) == 1:
        return OptionSpec(
            name,
            name.removesuffix("s"),
            "control",
            bool(default),
            "Also run the control.",
            control=choices,
        )
    kinds = _kinds(parameter.annotation)
    if not isinstance(default, str) and kinds & LISTS:
        help = f"{help.rstrip('.').removesuffix('; () for none')}; separated by commas."
        written = None if default is None else ",".join(default)
        listed: Kind = "numbers" if isinstance(accepts, Heads) else "names"
        return OptionSpec(name, name, listed, written, help, choices=choices)
    plain: tuple[tuple[type, Kind], ...] = ((bool, "bool"), (int, "int"), (float, "float"))
    kind: Kind = next((name for each, name in plain if each in kinds), "str")
    least = accepts.least if isinstance(accepts, AtLeast) else None
    return OptionSpec(name, name, kind, default, help, least, choices=choices)


def _help(text: str) -> str:
    """What a docstring says of a parameter, as a sentence of `--help`."""
    text = re.sub(r"[;,] (see|all names are in) `hopscope\.[\w.]+`", "", text)
    if not text.startswith("`"):
        text = text[:1].upper() + text[1:]
    return text.replace("`", "").replace("if None", "by default")


def _kinds(hint: Any) -> set[Any]:
    """The types in a union, without their arguments."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return {get_origin(each) or each for each in members}


if __name__ == "__main__":
    from hopscope.files import write_text

    write_text(WRITTEN, as_json())
