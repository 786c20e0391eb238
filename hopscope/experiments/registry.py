"""The registry of analyses, and what is known of a command before its module is imported.

Imports nothing that takes time, so that `hopscope --help` is there at once.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple

from hopscope import experiments

REGISTERED: dict[str, Any] = {}
"""The analyses (`Analysis`) of the modules that are imported, by name."""


class CommandInfo(NamedTuple):
    """What is known of a command before its module is imported, which takes seconds.

    Attributes:
        command: of the shell.
        help: a sentence.
        order: its place among the others.
        module: where it is registered.
    """

    command: str
    help: str
    order: int
    module: str


def list_commands() -> list[CommandInfo]:
    """The commands of all analyses, in their order; no module of the package is imported."""
    known = {each.command: each for each in _in_sources()}
    for each in REGISTERED.values():
        if each.command is not None and each.command not in known:
            module = each.function.__module__
            known[each.command] = CommandInfo(each.command, each.help, each.order, module)
    return sorted(known.values(), key=lambda each: (each.order, each.command))


def load_command(info: CommandInfo) -> Any:
    """The `Analysis` of a command."""
    importlib.import_module(info.module)
    return next(each for each in REGISTERED.values() if each.command == info.command)


@cache
def _in_sources() -> tuple[CommandInfo, ...]:
    """The commands that the modules of the package register, read off their sources."""
    sources = _sources(resources.files(experiments), experiments.__name__)
    return tuple(info for name, source in sources for info in _in_source(name, source))


def _in_source(module: str, source: str) -> Iterator[CommandInfo]:
    """The commands that a module registers."""
    for node in ast.parse(source).body if "@analysis(" in source else ():
        for call in getattr(node, "decorator_list", ()):
            named = isinstance(call, ast.Call) and getattr(call.func, "id", "") == "analysis"
            if not named or not call.args or ast.literal_eval(call.args[0]) is None:
                continue
            order = [each.value for each in call.keywords if each.arg == "order"]
            doc = ast.get_docstring(node) or ""  # type: ignore[arg-type]
            yield CommandInfo(
                ast.literal_eval(call.args[0]),
                doc.partition("\n")[0],
                ast.literal_eval(order[0]) if order else 1000,
                module,
            )


def _sources(folder: Traversable, package: str) -> Iterator[tuple[str, str]]:
    """The names and the text of the modules in a folder and below it."""
    for each in folder.iterdir():
        if each.is_dir():
            yield from _sources(each, f"{package}.{each.name}")
        elif each.name.endswith(".py"):
            yield f"{package}.{each.name.removesuffix('.py')}", each.read_text("utf-8")
