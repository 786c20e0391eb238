"""Tests of path_patch() on known paths and beside plain hooks, and of its tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded
from known import N_LAYERS, known_model
from plain import patched, site_states
from test_activation_patching import EARLY, Case, Plain, chosen, cities
from torch import Tensor

import hopscope as hs
from hopscope.engine.edits import Cell, Patch
from hopscope.engine.sublayers import input_of
from hopscope.errors import ModelError, QueryError, UsageError
from hopscope.experiments.randomness import random_like
from hopscope.experiments.two_hop.path_patching import PathPatching, path_patch
from hopscope.prompting import query_prompts
from hopscope.prompting.capture import capture

SENDERS = ("embed", "attn_out", "mlp_out", "z")
RECEIVERS = ("logits", "attn_in", "mlp_in")
PATH = ["position", "site", "control", "layer", "head", "receiver", "receiver_layer"]
CASES = [
    Case("tiny-random-llama", 0),
    Case("tiny-random-mistral", 2),
    Case("tiny-random-gemma2", 0),
    Case("tiny-random-gpt2", 2),
    Case("tiny-random-gpt-neox", 0),
    Case("tiny-random-olmo2", 0),
]
PARALLEL = ("tiny-random-gpt-neox",)
POST_NORM = ("tiny-random-gemma2", "tiny-random-olmo2")


@cache
def run_case(case: Case) -> PathPatching:
    return path_patch(
        loaded(case.family),
        case.queries(),
        ("t1", "t2"),
        SENDERS,
        RECEIVERS,
        seed=3,
        progress=False,
    )


class PlainPaths(Plain):
    """Patches the paths of one query the plain way: one hooked forward per cell."""

    def written(self, text: str, site: str, at: int) -> Tensor:
        """What each sender writes at a token, by layer; heads give their outputs."""
        states = site_states(self.hf, self.ids(text), "resid_pre" if site == "embed" else site)
        if site == "z":
            return states[:, at].reshape(len(states), self.n_heads, -1)
        return states[:1, at] if site == "embed" else states[:, at]

    def change(
        self, site: str, layer: int, head: int, at: int, own: Tensor, sent: Tensor
    ) -> Tensor:
        """By how much what is written changes; of a head, with its output replaced in a pass."""
        if site != "z":
            return sent - own
        with patched(self.hf, [Patch(layer, at, sent, "z", head)], len(self.ids(self.text))):
            changed = site_states(self.hf, self.ids(self.text), "attn_out")[layer, at]
        return changed - site_states(self.hf, self.ids(self.text), "attn_out")[layer, at]

    def paths(self, family: str) -> Iterator[tuple[tuple[Any, ...], Patch]]:
        """The key of each row and its patch."""
        n_layers = self.hf.config.num_hidden_layers
        names = {"logits": "resid_post", "attn_in": "attn_in", "mlp_in": "mlp_in"}
        reads = {
            name: site_states(self.hf, self.ids(self.text), site) for name, site in names.items()
        }
        for site, position in itertools.product(SENDERS, ("t1", "t2")):
            at = self.position(self.text, self.query.e1_label, position)
            own = self.written(self.text, site, at)
            theirs = self.written(
                self.other, site, self.position(self.other, self.partner.e1_label, position)
            )
            random = random_like(theirs, 3, self.query.id, site, position)
            for control, states in (("none", theirs), ("random", random)):
                for number in range(len(states)):
                    layer = -1 if site == "embed" else number
                    for head in range(self.n_heads) if site == "z" else [-1]:
                        one = (states[number], own[number])
                        sent, mine = (each[head] for each in one) if site == "z" else one
                        change = self.change(site, layer, head, at, mine, sent)
                        for name, into in self.ends(family, site, layer, position, n_layers):
                            key = (position, site, control, layer, head, name, into)
                            vector = reads[name][into, at] + change
                            yield key, Patch(into % n_layers, at, vector, names[name])  # type: ignore[arg-type]

    def ends(
        self, family: str, site: str, layer: int, position: str, n_layers: int
    ) -> Iterator[tuple[str, int]]:
        """The receivers behind a sender."""
        if position == "t2":
            yield "logits", -1
        for name, into in itertools.product(("attn_in", "mlp_in"), range(n_layers)):
            beside = name == "mlp_in" and site in ("attn_out", "z") and family not in PARALLEL
            if into > layer or (beside and into == layer):
                yield name, into


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_path_equals_a_plain_hooked_forward(case: Case) -> None:
    result = run_case(case)
    plain = PlainPaths(case, result.details["partner"].iloc[0])
    own, other = (plain.difference(text, [])[0] for text in (plain.text, plain.other))
    table, keys = result.frame.set_index(PATH), []
    for number, (key, patch) in enumerate(plain.paths(case.family)):
        keys.append(key)
        if number % 5:
            continue
        difference, ranks = plain.difference(plain.text, [patch])
        row = table.loc[key]
        assert row["logit_diff"] == pytest.approx(difference, abs=1e-3), key
        recovery = (own - difference) / (own - other) if own - other >= 0.5 else np.nan
        assert row["recovery"] == pytest.approx(recovery, abs=3e-3, nan_ok=True), key
        assert 0 in ranks if row["flipped"] else ranks != range(1), key
    assert keys == list(table.index)
    moved = (result.frame["logit_diff"] - np.float32(own)).abs() > 1e-3
    assert moved.mean() > 0.3, "the comparison is idle"


KNOWN = {
    ("t1", "embed", -1, -1, "mlp_in", 1),
    ("t1", "mlp_out", 1, -1, "attn_in", 2),
    ("t2", "attn_out", 2, -1, "mlp_in", 3),
    ("t2", "z", 2, 2, "mlp_in", 3),
    ("t2", "mlp_out", 3, -1, "logits", -1),
}
"""The steps of the known circuit; each alone has the whole answer."""


@cache
def early() -> PathPatching:
    return path_patch(
        known_model(), chosen(EARLY), ("t1", "t2"), SENDERS, RECEIVERS, progress=False
    )


def test_the_known_circuit_is_found_step_by_step() -> None:
    own = early().frame.query("control == 'none'")
    places = own[[name for name in PATH if name != "control"]].itertuples(index=False, name=None)
    there = np.array([place in KNOWN for place in places])
    assert there.sum() == 2 * len(KNOWN)
    np.testing.assert_allclose(own["recovery"], there.astype(float), atol=1e-3)
    assert list(own["flipped"]) == list(there)


def test_findings_name_the_steps() -> None:
    said = early().findings()
    steps = [sentence for sentence in said if "recovery 1.00" in sentence]
    assert sorted(sentence.partition(" brings")[0] for sentence in steps) == [
        "the direct path from MLP 1 at t1 to what attention 2 reads",
        "the direct path from MLP 3 at t2 to the logits",
        "the direct path from attention 2 at t2 to what MLP 3 reads",
        "the direct path from head 2 of layer 2 at t2 to what MLP 3 reads",
        "the direct path from the embedding at t1 to what MLP 1 reads",
    ]
    assert "a random vector there: recovery" in steps[0]
    assert not any("the embedding at t2" in sentence for sentence in said), "it is the same token"
    assert said[-1].startswith("The other question by itself has its answer")


def swept(monkeypatch: pytest.MonkeyPatch, case: Case, **settings: Any) -> tuple[Any, list[Cell]]:
    """A result on one query, and the cells of that query."""
    given: list[Sequence[Cell]] = []
    sweep = query_prompts.sweep

    def recording(model: Any, ids: Any, cells: Sequence[Cell], *rest: Any, **more: Any) -> Any:
        given.append(cells)
        return sweep(model, ids, cells, *rest, **more)

    monkeypatch.setattr(query_prompts, "sweep", recording)
    settings = {"controls": (), "progress": False, **settings}
    result = path_patch(loaded(case.family), case.queries(), **settings)
    return result, list(given[1][1:])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_senders_together_give_the_partners_last_state(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The residual stream is a sum, so all direct paths together are its change."""
    result, cells = swept(monkeypatch, case, sites=SENDERS[:3])
    model, plain = loaded(case.family), PlainPaths(case, result.details["partner"].iloc[0])
    own, theirs = (
        site_states(model.hf, plain.ids(text), "resid_post")[-1, -1]
        for text in (plain.text, plain.other)
    )
    assert len(cells) == 1 + 2 * model.n_layers
    assert {(each.layer, each.site) for cell in cells for each in cell} == {  # type: ignore[union-attr]
        (model.n_layers - 1, "resid_post")
    }
    changes = torch.stack([cell[0].vector - own for cell in cells])  # type: ignore[union-attr]
    torch.testing.assert_close(own + changes.sum(dim=0), theirs, atol=1e-3, rtol=1e-4)
    together, alone = changes.sum(dim=0).norm(), changes.norm(dim=1)
    assert (alone > 0.01 * together).sum() > model.n_layers


@pytest.mark.parametrize("case", CASES, ids=str)
def test_heads_add_up_to_attention(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    result, cells = swept(monkeypatch, case, sites=["attn_out", "z"], receivers=["mlp_in"])
    vectors = [cell[0].vector for cell in cells]  # type: ignore[union-attr]
    model = loaded(case.family)
    read = capture(model, case.queries().prompts(), ["mlp_in"], ["t2"])["mlp_in"][0, 0]
    frame = result.frame.assign(vector=vectors)
    for (layer, into), paths in frame.groupby(["layer", "receiver_layer"]):
        changes = {
            site: torch.stack([vector - read[into] for vector in rows["vector"]]).sum(dim=0)
            for site, rows in paths.groupby("site")
        }
        same = torch.allclose(changes["z"], changes["attn_out"], atol=1e-4)
        assert same == (case.family not in POST_NORM), layer


def test_random_vectors_have_the_norms_of_what_the_partner_sends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = CASES[0]
    settings: dict[str, Any] = {"sites": ["mlp_out"], "controls": ["random"], "seed": 3}
    result, cells = swept(monkeypatch, case, **settings)
    plain = PlainPaths(case, result.details["partner"].iloc[0])
    own = site_states(plain.hf, plain.ids(plain.text), "mlp_out")[:, -1]
    theirs = site_states(plain.hf, plain.ids(plain.other), "mlp_out")[:, -1]
    last = site_states(plain.hf, plain.ids(plain.text), "resid_post")[-1, -1]
    drawn = [cell[0].vector - last for (cell,) in zip(cells[len(theirs) :], strict=True)]  # type: ignore[union-attr]
    sent = torch.stack(drawn) + own
    torch.testing.assert_close(sent.norm(dim=1), theirs.norm(dim=1), rtol=1e-3, atol=1e-4)


def test_a_receiver_never_lies_before_its_sender() -> None:
    frame = early().frame.query("receiver != 'logits'")
    before = frame[frame["receiver_layer"] <= frame["layer"]]
    assert (before["receiver_layer"] == before["layer"]).all()
    assert set(before["receiver"]) == {"mlp_in"}
    assert set(before["site"]) == {"attn_out", "z"}
    neox = run_case(CASES[4]).frame.query("receiver != 'logits'")
    assert (neox["receiver_layer"] > neox["layer"]).all(), "its sublayers run side by side"
    assert not input_of(loaded(CASES[4].family), 0, "mlp_in").after_attention
    assert set(early().frame.query("receiver == 'logits'")["position"]) == {"t2"}


NO_PATH: list[dict[str, Any]] = [
    {"positions": ["t1"]},
    {"sites": ["mlp_out"], "receivers": ["attn_in", "mlp_in"], "receiver_layers": [0]},
    {"positions": ["t1"], "receivers": ["logits", "attn_in"], "receiver_layers": [0]},
]


@pytest.mark.parametrize("settings", NO_PATH, ids=str)
def test_where_there_is_no_path_it_is_told(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no path from .* a receiver reads what is written before"
    ):
        path_patch(known_model(), chosen(EARLY), out=tmp_path / "run", progress=False, **settings)
    assert not (tmp_path / "run").exists()


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"positions": ("t1", "t3")}, "unknown position 't3'"),
    ({"sites": ("resid_post",)}, "unknown site 'resid_post': choose one of attn_out, mlp_out, z"),
    ({"receivers": ["q"]}, "unknown receiver 'q': choose one of logits, attn_in, mlp_in"),
    ({"receiver_layers": [N_LAYERS]}, "layer"),
    ({"controls": ("other",)}, "unknown control 'other'"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=str)
def test_a_mistake_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        path_patch(known_model(), chosen(EARLY), progress=False, **settings)


def test_no_partner_is_told() -> None:
    with pytest.raises(QueryError, match="no query of known has a partner"):
        path_patch(known_model(), chosen(["early-1"]), progress=False)


def test_a_family_whose_sublayers_are_not_known_is_refused(tmp_path: Path) -> None:
    from families import model_of

    for settings in ({"sites": ["z"]}, {"sites": ["embed"], "receivers": ["attn_in"]}):
        with pytest.raises(ModelError, match=r"cannot be read or changed in opt"):
            path_patch(model_of("opt"), cities(), out=tmp_path / "run", progress=False, **settings)
    assert not (tmp_path / "run").exists()


def test_every_second_receiver() -> None:
    settings: dict[str, Any] = {"receivers": ["mlp_in"], "controls": (), "progress": False}
    result = path_patch(known_model(), chosen(EARLY), layer_step=2, **settings)
    assert set(result.frame["receiver_layer"]) == {0, 2, 4}


def test_tables_of_paths_and_heads() -> None:
    result = early()
    summary = result.summary()
    assert list(summary.columns[:7]) == PATH
    assert len(summary) == len(result.frame) / 2
    row = summary.query("site == 'mlp_out' and receiver == 'logits' and layer == 3").iloc[0]
    assert (row["n"], row["recovery"], row["flip_rate"]) == (2, pytest.approx(1, abs=1e-3), 1.0)
    table = result.paths("t2")
    assert list(table.index)[:3] == [("embed", -1), ("attn_out", 0), ("attn_out", 1)]
    assert list(table.columns)[-2:] == [("mlp_in", 5), ("logits", -1)]
    assert table.shape == (1 + 2 * N_LAYERS, 1 + 2 * N_LAYERS)
    assert table.loc[("attn_out", 2), ("mlp_in", 3)] == pytest.approx(1, abs=1e-3)
    assert np.isnan(table.loc[("mlp_out", 3), ("attn_in", 3)])
    assert "logits" not in result.paths("t1").columns.get_level_values(0)
    heads = result.heads("t2", "mlp_in", 3)
    assert heads.loc[2, 2] == pytest.approx(1, abs=1e-3)
    assert heads.abs().sum().sum() == pytest.approx(1, abs=1e-2)
    with pytest.raises(UsageError, match="no receiver_layer 7"):
        result.heads("t2", "mlp_in", 7)
    gains = result.above_chance()
    assert list(gains.columns) == [n for n in PATH if n != "control"] + list(gains.columns[6:])


def test_it_is_saved_drawn_and_shown(tmp_path: Path) -> None:
    result = early()
    read = hs.load_result(result.save(tmp_path / "run"))
    assert isinstance(read, PathPatching)
    pd.testing.assert_frame_equal(read.frame, result.frame)
    assert result.frame.dtypes.astype(str).to_dict() == dict(PathPatching.columns)
    ax = result.plot_paths("t2")
    assert (ax.get_xlabel(), ax.get_title()) == ("", "paths at t2")
    assert len(ax.lines) == 4, "between three kinds of senders and of receivers"
    labels = [each.get_text() for axis in ax.child_axes for each in axis.get_xticklabels()]
    assert [label for label in labels if label.isalpha()][:3] == ["attention", "MLP", "logits"]
    assert result.plot_heads("t2", receiver="mlp_in", receiver_layer=3).get_title() == (
        "heads at t2 to MLP 3"
    )
    lines = result.plot_lines().get_lines()
    assert [each.get_label() for each in lines if not str(each.get_label()).startswith("_")] == [
        *("random vector", "embedding", "attention", "MLP"),
    ]
    grid = result.grid()
    assert grid is not None
    assert grid.x.names[-1] == "logits"
    assert grid.y.names[:2] == ("embedding", "attention 0")
    cells = grid.slice({"query": "*", "position": "t2", "control": "none"}).cells
    at = grid.y.names.index("attention 2"), grid.x.names.index("MLP 3")
    assert cells.loc[at, "recovery"] == pytest.approx(1, abs=1e-3)
    assert result.to_html(tmp_path / "paths.html").exists()


def test_heads_alone_are_drawn_and_shown_as_heads() -> None:
    settings: dict[str, Any] = {"sites": ["z"], "receivers": ["mlp_in", "logits"]}
    result = path_patch(known_model(), chosen(EARLY), progress=False, **settings)
    assert result.plot().get_xlabel() == "head"
    with pytest.raises(UsageError, match=r"nothing but heads: see heads\(\)"):
        result.paths()
    grid = result.grid()
    assert grid is not None
    assert grid.title.startswith("Path patching of heads")
    (*_, receiver) = grid.choices
    assert [each.value for each in receiver.options][-2:] == ["MLP 5", "logits"]
    chosen_cells = {"query": "*", "position": "t2", "control": "none", "receiver": "MLP 3"}
    cells = grid.slice(chosen_cells).cells
    assert cells.loc[(2, 2), "recovery"] == pytest.approx(1, abs=1e-3)


def test_logits_alone_are_lines_and_have_no_layer() -> None:
    result = path_patch(known_model(), chosen(EARLY), progress=False)
    assert result.plot().get_xlabel() == "layer of the sender"
    assert set(result.frame["receiver_layer"]) == {-1}
    assert set(zip(result.frame["site"], result.frame["position"], strict=True)) == {
        ("attn_out", "t2"),
        ("mlp_out", "t2"),
    }
