"""Provides what commands print: tables for people, or one JSON object for machines."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from hopscope.results.result import Result

SCREEN_ROWS = 40
"""As many rows are printed of all tables together, unless --full is given."""
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Full = Annotated[bool, typer.Option("--full", help="Print tables with all their rows.")]


def show(found: Mapping[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """Print what was found: as JSON, or the text that is made of it."""
    print(json.dumps(_without_nan(found), ensure_ascii=False) if as_json else text())


def show_tables(
    result: Result, found: Mapping[str, Any], as_json: bool, full: bool = False
) -> None:
    """Print what a result gives by name; as JSON with the run's provenance.

    Args:
        result: of an analysis.
        found: tables; named tuples, each a row whose docstring says what it is; None for nothing.
        as_json: whether it is one JSON object.
        full: whether tables are printed with all rows; at most a screen in all if not.
    """
    plain = {
        name: records(each) if hasattr(each, "to_json") else each and each._asdict()
        for name, each in found.items()
    }
    show({**plain, "run": result.run}, as_json, lambda: "\n\n".join(_texts(found, full)))


def show_estimates(found: Mapping[str, Any], as_json: bool) -> None:
    """Print what a run would cost, by what it consists of: dataclasses that tell it as a text."""
    plain = {name: asdict(each) for name, each in found.items()}
    show(plain, as_json, lambda: "\n\n".join(f"{name}\n{each}" for name, each in found.items()))


def _texts(found: Mapping[str, Any], full: bool) -> Iterator[str]:
    """What was found as tables with headings."""
    from hopscope.results.wording import as_shown

    several = [each for each in found.values() if hasattr(each, "to_json")]
    most = None if full else SCREEN_ROWS // max(1, len(several))
    for name, each in found.items():
        heading = name.replace("_", " ")
        if hasattr(each, "_asdict"):
            yield f"{heading}: {inspect.getdoc(each)}\n{table_text([each._asdict()], '%.3f')}"
        elif each is not None:
            left_out = max(0, len(each) - len(each[:most]))
            more = f"\n… {left_out} more rows: --full prints them" if left_out else ""
            yield f"{heading}\n{table_text(as_shown(each[:most]), '%.3f')}{more}"


def table_text(table: pd.DataFrame | list[dict[str, Any]], number: str | None = None) -> str:
    """A table, or rows, with text on the left and numbers on the right.

    Args:
        table: what is shown, but for its index.
        number: how a float is written, such as `%.3f`; as pandas does by default. What is unknown,
            such as the interval of a single number, is a dash.
    """
    import pandas as pd

    columns = {}
    for name, column in pd.DataFrame(table).items():
        if not pd.api.types.is_numeric_dtype(column):
            texts = column.map(str).str
            width = max([len(str(name)), *texts.len()])
            name, column = str(name).ljust(width), texts.ljust(width)
        columns[name] = column
    lines = (
        pd.DataFrame(columns).to_string(index=False, float_format=number, na_rep="—").splitlines()
    )
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
