"""What commands print: tables for people, one object for machines."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from hopscope.commands.printing import SCREEN_ROWS, show, show_tables, table_text
from hopscope.results.result import Result
from hopscope.results.wording import as_shown


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


def printed(capsys: pytest.CaptureFixture[str], found: dict[str, pd.DataFrame], **how: bool) -> str:
    result = Result(pd.DataFrame(), pd.DataFrame(), {"kind": "none"})
    show_tables(result, found, **{"as_json": False, **how})
    return capsys.readouterr().out


def test_tables_fill_a_screen_at_most_unless_all_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = pd.DataFrame({"layer": range(100, 160)})
    found = {"first": long, "second": long, "third": long[:4]}
    text = printed(capsys, found)
    most = SCREEN_ROWS // 3
    assert text.count(f"… {60 - most} more rows: --full prints them") == 2
    assert (text.count(str(100 + most - 1)), text.count(str(100 + most))) == (2, 0)
    assert text.count("103") == 3, "a table that fits is whole"
    full = printed(capsys, found, full=True)
    assert full.count("159") == 2
    assert "more rows" not in full
    assert len(json.loads(printed(capsys, found, as_json=True))["first"]) == 60


def test_the_control_that_is_none_is_called_own_where_it_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = pd.DataFrame({"control": ["none", "other"], "layer": ["none", "1"]})
    found = {"summary": table}
    lines = printed(capsys, found).splitlines()
    assert [line.split() for line in lines[2:]] == [["own", "none"], ["other", "1"]]
    rows = json.loads(printed(capsys, found, as_json=True))["summary"]
    assert [row["control"] for row in rows] == ["none", "other"], "the numbers stay"
    assert list(as_shown(table)["control"]) == ["own", "other"]
    assert list(table["control"]) == ["none", "other"], "the table itself stays"
    result = Result(table, table)
    pd.testing.assert_frame_equal(result.rows_with(table, control="own"), table[:1])
