"""Provides references(): numbers that the papers report, as data, with where they stand.

Reads the package's data alone; figures and users import it.
"""

from __future__ import annotations

from importlib import resources

import pandas as pd

from hopscope.errors import one_of

TEXTS = ("subset", "position", "entity", "setting", "model", "where")
"""Columns that may be empty."""


def references(analysis: str | None = None, **chosen: str) -> pd.DataFrame:
    """What the papers report of an analysis, to be laid beside a result that follows their setting.

    The numbers are of the models and queries of the papers, not of hopscope: a difference may come
    from either. Only numbers whose source is known are there; a cell that is empty is not told.

    Args:
        analysis: such as `description`, `back_patching` or `document_order`; all if None.
        **chosen: values of columns, such as `model="Llama-3-8B-Instruct"`; others are left out.

    Returns:
        Columns `analysis, measure, subset, position, entity, setting, model, value, unit, paper,
        where, page`; the page is that of the PDF, <NA> where it is not known.

    Raises:
        UsageError: for an unknown analysis, column or value.

    Example:
        >>> references("description", measure="share", position="t1")["value"].max().item()
        0.712
    """
    table = _read()
    if analysis is not None:
        table = table[table["analysis"] == one_of("analysis", analysis, table["analysis"].unique())]
    for column, value in chosen.items():
        one_of("column", column, table.columns)
        table = table[table[column] == one_of(column, value, table[column].unique())]
    return table.reset_index(drop=True)


def _read() -> pd.DataFrame:
    text = resources.files("hopscope.data") / "references.csv"
    with text.open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"page": "Int64"}).fillna(dict.fromkeys(TEXTS, ""))
