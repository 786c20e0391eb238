"""Tests of the figure of claims: its numbers, counted one by one, and what it does without some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from known import known_model, known_queries
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import hopscope as hs
from hopscope.errors import ResultError
from hopscope.statistics import holm, paired
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
    for edge, at in (("t1->e1", "t1 → e1"), ("t2->t1", "t2 → t1")):
        for where, layers in (("early", (0, 1, 2)), ("late", (3, 4, 5))):
            here = blocked[(blocked["edge"] == edge) & blocked["layer"].isin(layers)]
            own, other = (
                here[here["control"] == control].groupby("query")["changed"].any()
                for control in ("none", "random")
            )
            claim = f"Blocking {at} in {where} layers changes the answer"
            row = table.loc[claim, "random edges", "correct"]
            shares = own[other.index].mean(), other.mean()
            assert (row["own"], row["base"]) == pytest.approx(shares, abs=1e-6)
    read = hs.load_result(runs / "projection.correct").frame
    read = read[(read["site"] == "mlp_out") & (read["position"] == "t2") & (read["rank"] == 0)]
    row = table.loc["An MLP at t2 has the answer", "another answer", "correct"]
    n = row["n"]
    assert row["own"] * n == read[read["target"] == "e3"]["query"].nunique()
    claim, control = "Attention at t2 has the bridge", "another bridge"
    first = hs.load_result(runs / "projection.correct").frame
    first = first[(first["site"] == "attn_out") & (first["position"] == "t2")]
    for column, target in (("own", "e2"), ("base", "e2_other")):
        found = first[(first["target"] == target) & (first["rank"] == 0)]["query"].nunique()
        assert table.loc[claim, control, "correct"][column] * n == pytest.approx(found, abs=1e-3)
    assert table["p_holm"].to_numpy() == pytest.approx(
        holm(table["p"].to_numpy()), abs=1e-5, nan_ok=True
    )
    assert (table["p_holm"] > table["p"]).any()
    patched = hs.load_result(runs / "back_patching.incorrect").repaired()
    for at in ("t1", "t2"):
        here = patched[patched["position"] == at].groupby("control")["hit"].mean()
        for control, named in (("other", "another query's state"), ("random", "a random vector")):
            row = table.loc[f"Back-patching {at} has the answer", named, "incorrect"]
            assert (row["own"], row["base"]) == pytest.approx((here["none"], here[control]))


def test_a_description_is_counted_beside_that_of_another_entity(runs: Path, tmp_path: Path) -> None:
    table = drawn(runs, tmp_path).set_index("claim")
    described = hs.load_result(runs / "description.correct").described()
    shares = described.set_index(["entity", "position"])["share"]
    for claim, entity, position in (
        ("The bridge is described at t1", "e2", "t1"),
        ("The bridge is described at t2", "e2", "t2"),
        ("The answer is described at t2", "e3", "t2"),
    ):
        row = table.loc[claim]
        wanted = shares[entity, position], shares[f"{entity}_other", position]
        assert (row["own"], row["base"]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("layer", "where"), [(2, "early"), (3, "late")])
def test_the_middle_layer_is_a_late_one(runs: Path, tmp_path: Path, layer: int, where: str) -> None:
    blocked = hs.load_result(runs / "knockout.correct")
    changed = (blocked.frame["layer"] == layer) & (blocked.frame["control"] == "none")
    made = replace(blocked, frame=blocked.frame.assign(changed=changed))
    made.save(tmp_path / "runs" / "knockout.correct")
    table = drawn(tmp_path / "runs", tmp_path)
    assert table["own"].tolist() == [float(where in claim) for claim in table["claim"]]
    assert not table["base"].any()


def test_the_picture_says_how_many_queries_show_each_claim(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(plt, "close", kept.append)
    table = drawn(runs, tmp_path)
    (ax,) = kept[0].axes
    wanted = [f"{row.own:.0%} against {row.base:.0%}" for row in table.itertuples()]
    assert sorted(each.get_text() for each in ax.texts) == sorted(wanted)
    claims = dict.fromkeys(f"{row.claim}\nover {row.control}" for row in table.itertuples())
    assert [label.get_text() for label in ax.get_yticklabels()] == list(claims)


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
