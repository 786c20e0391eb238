"""Tests of headlines: which are told apart, after Holm's correction over those that are tested."""

from __future__ import annotations

import pandas as pd

from hopscope.results.headline import Headline, compared, how_sure


def test_how_sure_a_headline_is_depends_on_the_others() -> None:
    clear, close = Headline("a.", "chance", 10, 0.001), Headline("b.", "chance", 10, 0.03)
    no_control, few = Headline("c.", "", 10, float("nan")), Headline("d.", "chance", 3, 0.001)
    assert how_sure([clear, close, no_control, few]) == [
        "Told apart from chance (p = 0.002 after Holm over 2 tests).",
        "Told apart from chance (p = 0.030 after Holm over 2 tests).",
        "It has no control: its interval alone says how sure it is.",
        "Too few queries to tell it apart from chance (n = 3).",
    ]
    assert how_sure([close, close])[0].startswith("Not told apart from chance (p = 0.060")
    assert how_sure([Headline("a.", "chance", 10, 1e-9)]) == [
        "Told apart from chance (p < 0.001 after Holm over 1 tests)."
    ]


def test_own_states_are_compared_with_a_control_query_by_query() -> None:
    rows = [(f"q{q}", own, own == "none" and q < 8) for q in range(10) for own in ("none", "other")]
    table = pd.DataFrame(rows, columns=["query", "control", "hit"])
    found = compared(table, "hit", "other")
    assert found is not None
    assert (found["n"], found["difference"], found["better"]) == (10, 0.8, 8)
    assert found["p"] == 2 * 0.5**8
    assert compared(table, "hit", "random") is None
