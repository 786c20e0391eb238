"""Provides moved(): which numbers of a figure are not what they were when it was last drawn.

Reads the tables that lie beside the pictures; knows nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hopscope.errors import ResultError, UsageError

TOLERANCE = 1e-3
"""How far a number may be from the committed one, as a part of it: the same run on another machine
rounds in another order."""
NEAR_ZERO = 1e-5
"""How far it may be in any case."""
COLUMNS = ["figure", "row", "column", "committed", "now"]


def check_committed(committed: Path, names: Sequence[str]) -> None:
    """Check that there is something to compare with, before anything is run.

    Args:
        committed: folder of the committed tables, a CSV file a figure.
        names: of the figures that must have one; if empty, any will do.

    Raises:
        UsageError: if there is none, or one cannot be read.
    """
    absent = [f"{name}.csv" for name in names if not (committed / f"{name}.csv").is_file()]
    if not names and not any(committed.glob("*.csv")):
        absent = ["table of numbers"]
    if absent:
        raise UsageError(
            f"no numbers to compare with: {committed} holds no {absent[0]}. Run this in a checkout "
            "of hopscope, name a folder in which figures were drawn with --rendered, or draw them "
            "once without --check"
        )
    for name in names or [path.stem for path in sorted(committed.glob("*.csv"))]:
        _read(committed / f"{name}.csv")


def _read(path: Path) -> pd.DataFrame:
    """A table of numbers.

    Raises:
        UsageError: if the file is none.
    """
    try:
        return pd.read_csv(path)
    except (ValueError, OSError) as error:  # includes parse errors of pandas
        raise UsageError(
            f"{path} holds no table of numbers: {error}. Draw the figure once without --check"
        ) from error


def moved(
    committed: Path, drawn: Path, names: list[str], tolerance: float = TOLERANCE
) -> pd.DataFrame:
    """Compare the numbers of figures with those that were committed.

    Args:
        committed: folder of the committed tables, a CSV file a figure.
        drawn: folder of the tables that were drawn now.
        names: of the figures.
        tolerance: how far a number may have moved; text must be the same.

    Returns:
        Columns figure, row (its number; -1 for the table's shape), column, committed, now: one row
        a value that moved; none if all is as it was.

    Raises:
        ResultError: if a figure has no committed table.
    """
    rows: list[dict[str, object]] = []
    for name in names:
        before, after = committed / f"{name}.csv", drawn / f"{name}.csv"
        if not before.is_file():
            raise ResultError(
                f"{before} is not there: draw the figure once without --check, and commit it"
            )
        rows += _differences(name, _read(before), _read(after), tolerance)
    return pd.DataFrame(rows, columns=COLUMNS)


def _differences(
    name: str, before: pd.DataFrame, after: pd.DataFrame, tolerance: float
) -> list[dict[str, object]]:
    if list(before) != list(after) or len(before) != len(after):
        shapes = [f"{len(each)} rows of {', '.join(map(str, each))}" for each in (before, after)]
        return [dict(zip(COLUMNS, (name, -1, "", *shapes), strict=True))]
    found = []
    for column in before.columns.tolist():
        one, other = before[column], after[column]
        if all(pd.api.types.is_numeric_dtype(each) for each in (one, other)):
            a, b = one.to_numpy(dtype=float), other.to_numpy(dtype=float)
            same = np.isclose(a, b, rtol=tolerance, atol=NEAR_ZERO, equal_nan=True)
        else:
            same = ((one == other) | (one.isna() & other.isna())).to_numpy()
        for row in np.flatnonzero(~same):
            values = (name, int(row), column, one.iloc[row], other.iloc[row])
            found.append(dict(zip(COLUMNS, values, strict=True)))
    return found
