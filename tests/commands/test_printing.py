"""What commands print: tables for people, one object for machines."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from hopscope.commands.printing import show, table_text


def test_text_stands_on_the_left_and_numbers_on_the_right() -> None:
    rows = [
        {"n": 5, "name": "a", "seeds": [], "share": 0.25},
        {"n": 120, "name": "longer", "seeds": [0, 1], "share": 1.0},
    ]
    assert table_text(rows).splitlines() == [
        "  n name   seeds   share",
        "  5 a      []       0.25",
        "120 longer [0, 1]   1.00",
    ]
    short = table_text(pd.DataFrame(rows, index=[7, 8])[["name", "share"]], "%.1f")
    assert short.splitlines() == ["name    share", "a         0.2", "longer    1.0"]
    assert table_text(pd.DataFrame({"name": pd.Series(dtype=str), "n": []}))


def test_what_is_no_number_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    show({"rows": [{"low": float("nan")}], "n": (1, 2)}, as_json=True, text=lambda: "not this")
    assert json.loads(capsys.readouterr().out) == {"rows": [{"low": None}], "n": [1, 2]}
