"""Provides what commands print: tables for people, or one JSON object for machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from hopscope.experiments.two_hop.back_patching import BackPatching
    from hopscope.results.result import Result

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def show(found: Mapping[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """Print what was found: as JSON, or the text that is made of it."""
    print(json.dumps(_without_nan(found), ensure_ascii=False) if as_json else text())


def show_tables(result: Result, tables: Mapping[str, pd.DataFrame], as_json: bool) -> None:
    """Print named tables; as JSON with the run's provenance."""

    def text() -> str:
        return "\n\n".join(
            f"{name.replace('_', ' ')}\n{table_text(table, '%.3f')}"
            for name, table in tables.items()
        )

    found = {name: records(table) for name, table in tables.items()}
    show({**found, "run": result.run}, as_json, text)


def table_text(table: pd.DataFrame | list[dict[str, Any]], number: str | None = None) -> str:
    """A table, or rows, with text on the left and numbers on the right.

    Args:
        table: what is shown, but for its index.
        number: how a float is written, such as `%.3f`; as pandas does by default.
    """
    import pandas as pd

    columns = {}
    for name, column in pd.DataFrame(table).items():
        if not pd.api.types.is_numeric_dtype(column):
            texts = column.map(str).str
            width = max([len(str(name)), *texts.len()])
            name, column = str(name).ljust(width), texts.ljust(width)
        columns[name] = column
    lines = pd.DataFrame(columns).to_string(index=False, float_format=number).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain values; NaN becomes null."""
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    return rows


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and value != value else value


def show_back_patching(result: BackPatching, seed: int, as_json: bool) -> None:
    """Print the rates, and the best single cell with its rate on the other half of the queries."""
    best = result.best_cell(seed=seed)._asdict() if result.n_queries > 1 else None
    printed = result.printed(seed)
    tables = {name: records(table) for name, table in printed.items()}

    def text() -> str:
        lines = [table_text(printed["success_rate"], "%.3f")]
        if best is not None:
            shown = {k: f"{v:.3f}" if isinstance(v, float) else str(v) for k, v in best.items()}
            lines += ["", "best cell, chosen on one half and scored on the other:"]
            lines += [", ".join(f"{name} {value}" for name, value in shown.items())]
        return "\n".join(lines)

    show({**tables, "best_cell": best, "run": result.run}, as_json, text)
