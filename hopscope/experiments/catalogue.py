"""Provides the catalogue of analyses: studies, reports and the README read it."""

from __future__ import annotations

import importlib
import pkgutil

from hopscope import experiments
from hopscope.experiments.analysis import Analysis
from hopscope.experiments.registry import REGISTERED


def import_all() -> None:
    """Import every module of analyses, so that they and their kinds of results are known."""
    for module in pkgutil.walk_packages(experiments.__path__, f"{experiments.__name__}."):
        importlib.import_module(module.name)


def registered() -> list[Analysis]:
    """The analyses of the modules that are imported."""
    return [each for each in REGISTERED.values() if isinstance(each, Analysis)]


def analyses() -> list[Analysis]:
    """All analyses, in their order."""
    import_all()
    return sorted(registered(), key=lambda each: (each.order, each.name))


def as_markdown() -> str:
    """The catalogue as a table for the README and the documentation."""
    rows = ["| question | in Python | in a shell | control |", "|---|---|---|---|"]
    for each in analyses():
        source = f" ({each.source})" if each.source else ""
        call = f"`hs.{each.function.__name__}`"
        shell = f"`hopscope {each.command}`" if each.command else ""
        rows.append(f"| {each.question}{source} | {call} | {shell} | {each.control} |")
    return "\n".join(rows)
