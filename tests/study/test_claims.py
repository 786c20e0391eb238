"""Tests of the figure of claims: its numbers, counted one by one, and what it does without some."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from known import known_model, known_queries

import hopscope as hs
from hopscope.errors import ResultError
from hopscope.statistics import paired
from hopscope.study.figures import draw_figures
from hopscope.study.study import COMPOSED, study_analyses

SCRIPTS = Path(__file__).parents[2] / "figures"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    model, queries = known_model(), known_queries()
    late = queries.filter(lambda query: query.id.startswith("late"))
    hs.back_patch(model, late, progress=False, out=folder / "back_patching.incorrect")
    hs.back_patch(model, late, progress=False, out=folder / "back_patching.correct")
    edges = ["t1->e1", "t2->t1"]
    hs.knockout(model, queries, edges=edges, window=0, progress=False).save(
        folder / "knockout.correct"
    )
    hs.project(model, queries, progress=False).save(folder / "projection.correct")
    hs.describe(model, queries, progress=False).save(folder / "description.correct")
    return folder


def drawn(runs: Path, rendered: Path) -> pd.DataFrame:
    paths = draw_figures(SCRIPTS, ["claims"], runs, rendered)
    assert {path.suffix for path in paths} == {".csv", ".png", ".svg"}
    return pd.read_csv(rendered / "claims.csv")


def test_claims_are_counted_query_by_query(runs: Path, tmp_path: Path) -> None:
    table = drawn(runs, tmp_path).set_index(["claim", "control", "subset"])
    patched = hs.load_result(runs / "back_patching.incorrect").frame.query("position == 't1'")
    hits = patched.groupby(["query", "control"])["hit"].any().unstack()
    row = table.loc["Back-patching t1 has the answer", "a random vector", "incorrect"]
    wanted = paired(hits["random"].to_numpy(), hits["none"].to_numpy())
    assert (row["own"], row["base"]) == (hits["none"].mean(), hits["random"].mean())
    assert (row["difference"], row["p"]) == pytest.approx((wanted["difference"], wanted["p"]))
    blocked = hs.load_result(runs / "knockout.correct").frame
    late = blocked[(blocked["edge"] == "t2->t1") & (blocked["layer"] >= 3)]
    own = late[late["control"] == "none"].groupby("query")["changed"].any()
    claim = "Blocking t2 → t1 in late layers changes the answer"
    row = table.loc[claim, "random edges", "correct"]
    other = late[late["control"] == "random"].groupby("query")["changed"].any()
    assert row["own"] == own[other.index].mean()
    read = hs.load_result(runs / "projection.correct").frame
    read = read[(read["site"] == "mlp_out") & (read["position"] == "t2") & (read["rank"] == 0)]
    row = table.loc["An MLP at t2 has the answer", "another answer", "correct"]
    n = row["n"]
    assert row["own"] * n == read[read["target"] == "e3"]["query"].nunique()
    assert (table["p_holm"] >= table["p"]).all()


def test_a_right_answer_that_some_cell_keeps_is_no_claim(runs: Path, tmp_path: Path) -> None:
    table = drawn(runs, tmp_path)
    assert set(table[table["claim"].str.startswith("Back")]["subset"]) == {"incorrect"}


def test_what_is_missing_is_left_out(runs: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    some.mkdir()
    (some / "projection.correct").symlink_to(runs / "projection.correct")
    assert set(drawn(some, tmp_path)["claim"]) == {
        "Attention at t2 has the bridge",
        "An MLP at t2 has the answer",
    }
    with pytest.raises(ResultError, match="holds none of"):
        draw_figures(SCRIPTS, ["claims"], tmp_path / "nothing", tmp_path)


def test_its_analyses_are_run_for_it() -> None:
    assert {each.name for each in study_analyses(["claims"])} >= set(COMPOSED["claims"])
    assert {each.name for each in study_analyses(["recall"])} == {"recall"}
