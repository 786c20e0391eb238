"""Tests of attribution_patch() beside plain patches and exact sweeps, and of its tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import loaded
from test_activation_patching import CASES, KEYS, SITES, Case, Plain, cities
from torch import nn

import hopscope as hs
from hopscope.engine.edits import Patch
from hopscope.errors import ModelError, UsageError
from hopscope.experiments.two_hop.activation_patching import activation_patch
from hopscope.experiments.two_hop.attribution import Attribution, attribution_patch
from hopscope.models.load import load_model

STEP = 3e-3


def attributed(case: Case, **settings: Any) -> Attribution:
    asked = {"positions": case.positions, "sites": SITES, "seed": 3, **settings}
    return attribution_patch(loaded(case.family), case.queries(), progress=False, **asked)


def own_state(plain: Plain, patch: Patch) -> Any:
    """What stands in the place of a patch in the query's own run."""
    from plain import site_states

    states = site_states(plain.hf, plain.ids(plain.text), patch.site)[patch.layer, patch.position]
    if patch.head is None:
        return states
    return states.reshape(plain.n_heads, -1)[patch.head]


@pytest.mark.parametrize("case", CASES[::2] + CASES[1::4], ids=str)
def test_every_estimate_is_the_slope_of_a_plain_patch(case: Case) -> None:
    """A small step from the query's own state to the partner's changes so much, times the rest."""
    result = attributed(case, exact=0)
    plain = Plain(case, result.details["partner"].iloc[0])
    table, keys = result.frame.set_index(KEYS[1:]), []
    for number, (key, patch) in enumerate(plain.cells(case)):
        keys.append(key)
        if number % 5:
            continue
        own = own_state(plain, patch)
        steps = [
            Patch(
                patch.layer, patch.position, own + s * (patch.vector - own), patch.site, patch.head
            )
            for s in (STEP, -STEP)
        ]
        ahead, behind = (plain.difference(plain.text, [each])[0] for each in steps)
        expected = (ahead - behind) / (2 * STEP)
        found = table.loc[key, "attribution"]
        assert found == pytest.approx(expected, rel=0.03, abs=0.03), key
    assert keys == list(table.index)


@pytest.mark.parametrize("case", [CASES[0], CASES[5]], ids=str)
def test_exact_effects_are_those_of_activation_patching(case: Case) -> None:
    result = attributed(case, exact=1)
    patched = activation_patch(
        loaded(case.family), case.queries(), case.positions, SITES, seed=3, progress=False
    )
    pd.testing.assert_frame_equal(result.frame[KEYS], patched.frame[KEYS])
    pd.testing.assert_frame_equal(result.details, patched.details)
    own = patched.details["logit_diff"].iloc[0]
    expected = patched.frame["logit_diff"] - np.float32(own)
    np.testing.assert_allclose(result.frame["exact"], expected, atol=1e-5)
    recovery = patched.frame["recovery"]
    np.testing.assert_allclose(result.frame["exact_recovery"], recovery, atol=1e-5)
    span = own - patched.details["partner_logit_diff"].iloc[0]
    estimated = -result.frame["attribution"] / span if span >= 0.5 else np.nan
    np.testing.assert_allclose(result.frame["recovery"], estimated, atol=1e-5)


def test_an_unchanged_state_is_estimated_to_do_nothing() -> None:
    """Before the source entity both runs are the same; so is the last block of an earlier token."""
    result = attributed(CASES[1], controls=(), exact=1)
    last = result.frame.query("layer == 3 and site == 'resid_post' and position == 't1'")
    assert last["attribution"].to_list() == last["exact"].abs().round(4).to_list() == [0.0]


def test_so_many_queries_are_swept() -> None:
    settings: dict[str, Any] = {"positions": ["t2"], "sites": ["mlp_out"], "progress": False}
    queries, model = cities(), loaded("tiny-random-llama")

    def swept(**given: Any) -> list[str]:
        frame = attribution_patch(model, queries, **settings, **given).frame
        known = frame.groupby("query")["exact"].agg(["count", "size"])
        assert set(known["count"] / known["size"]) <= {0.0, 1.0}
        return list(known.index[known["count"] > 0])

    assert swept(exact=0) == []
    assert len(swept(exact=2)) == 2
    assert len({tuple(swept(exact=2, seed=seed)) for seed in range(6)}) > 1
    assert len(swept()) == len(queries) == 4


def test_the_model_is_unchanged_and_its_parameters_have_no_gradient() -> None:
    model = load_model("tiny-random-llama", device="cpu")
    model.hf.requires_grad_(True)
    attribution_patch(model, cities(), positions=["t2"], progress=False)
    assert all(each.grad is None for each in model.hf.parameters())


def test_a_model_without_gradients_is_refused_before_anything_runs(tmp_path: Any) -> None:
    model = load_model("tiny-random-llama", device="cpu")

    class Packed(nn.Linear):
        def forward(self, hidden: Any) -> Any:
            return super().forward(hidden).detach()

    mlp: Any = model.mlp(1)
    mlp.down_proj.__class__ = Packed
    with pytest.raises(ModelError, match=r"its Packed has no gradient.*such as activation_patch"):
        attribution_patch(model, cities(), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def made(estimates: dict[str, list[float]], exact: dict[str, list[float]]) -> Attribution:
    """A result with these changes of each query, one a layer."""
    rows = [
        (query, "t2", "mlp_out", "none", layer, -1, estimate, -estimate / 10, change, -change / 10)
        for query in estimates
        for layer, (estimate, change) in enumerate(zip(estimates[query], exact[query], strict=True))
    ]
    frame = pd.DataFrame(rows, columns=list(Attribution.columns))
    details = pd.DataFrame({"query": list(estimates), "prompt": list(estimates)})
    return Attribution(frame, details)


NAN = float("nan")
SWEPT = made(
    {"a": [-1.0, -2.0, 3.0, 0.5] * 3, "b": [-1.0, 2.0, 3.0, 4.0] * 3, "c": [1.0] * 12},
    {"a": [-2.0, -4.0, 6.0, 1.0] * 3, "b": [-1.0, -2.0, 3.0, 0.05] * 3, "c": [NAN] * 12},
)


def test_the_error_is_a_mean_over_swept_queries() -> None:
    table = SWEPT.error().set_index("measure")
    assert list(table["n"]) == [2] * 6
    assert table.loc["sign", "value"] == pytest.approx((1 + 2 / 3) / 2)
    assert table.loc["error", "value"] == pytest.approx(((1 + 2 + 3 + 0.5) / 4 + 7.95 / 4) / 2)
    assert table.loc["effect", "value"] == pytest.approx((13 / 4 + 6.05 / 4) / 2)
    assert table.loc["chance", "value"] == pytest.approx(2 / 12)
    ranks = np.corrcoef([1, 2, 3, 4], [2, 1, 4, 3])[0, 1]
    assert table.loc["spearman", "value"] == pytest.approx((1 + ranks) / 2)
    # Of "a" the same two of twelve are the largest; of "b" layers 3 and 7, not 2 and 6.
    assert table.loc["strongest", "value"] == pytest.approx(0.5)
    assert table[["low", "high"]].isna().all(axis=None), "two queries are too few"


def test_findings_tell_the_error_or_that_it_is_not_known() -> None:
    best, error = SWEPT.findings()
    assert "the MLP at t2 brings the other question's answer most in layer 0" in best
    assert "against the exact patches of 2 queries, the estimates of the MLP" in error
    assert "by chance 17 %" in error
    unknown = made({"a": [1.0, 2.0]}, {"a": [NAN, NAN]})
    assert "how far the estimates are off is not known" in unknown.findings()[-1]
    assert unknown.error().empty
    with pytest.raises(UsageError, match="no query was swept: give exact=8"):
        unknown.plot_error()


def test_it_is_saved_drawn_and_shown(tmp_path: Any) -> None:
    result = attributed(CASES[1], exact=1)
    read = hs.load_result(result.save(tmp_path / "run"))
    assert isinstance(read, Attribution)
    pd.testing.assert_frame_equal(read.frame, result.frame)
    assert result.frame.dtypes.astype(str).to_dict() == dict(Attribution.columns)
    labels = [each.get_text() for each in result.plot().get_xticklabels()]
    assert labels == ["t1\nresidual", "t2\n", "t1\nattention", "t2\n", "t1\nMLP", "t2\n"]
    place = result.by_place()
    means = result.frame.query("control == 'none'").set_index(["layer", "site", "position"])
    for (site, position), column in place.items():
        expected = [means.loc[(layer, site, position), "recovery"] for layer in place.index]
        np.testing.assert_allclose(column, expected)
    points = result.plot_error().get_lines()
    assert sum(len(line.get_xdata()) for line in points[:4]) == len(means)
    grid = result.grid()
    assert grid is not None
    assert grid.x.names[:3] == ("residual t1", "residual t2", "attention t1")
    cells = grid.slice({"query": result.details["query"].iloc[0], "control": "none"}).cells
    assert cells.loc[(2, 1), "attribution"] == means.loc[(2, "resid_post", "t2"), "attribution"]


def test_heads_alone_are_drawn_as_heads() -> None:
    result = attributed(CASES[0], sites=["z"], positions=["t2"])
    assert result.heads().shape == (4, 4), "also where no query has a recovery"
    assert result.frame["recovery"].isna().all()
    assert result.plot().get_xlabel() == "head"
    grid = result.grid()
    assert grid is not None
    assert grid.title.startswith("Attribution patching of heads")
    cells = grid.slice({"query": "*", "position": "t2", "control": "none"}).cells
    assert list(cells.columns) == ["recovery", "exact_recovery", "attribution", "exact"]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"positions": ("t1", "t3")}, "unknown position 't3'"),
    ({"sites": ("resid_pre",)}, "unknown site 'resid_pre'"),
    ({"controls": ("other",)}, "unknown control 'other'"),
    ({"exact": -1}, "exact must be 0 or more, not -1"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=str)
def test_a_mistake_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attribution_patch(loaded("tiny-random-llama"), cities(), progress=False, **settings)
