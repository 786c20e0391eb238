"""Patches as plain data: where they lie, and which are refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hopscope.engine.edits import RESIDUAL, Knockout, Patch, PatchSite
from hopscope.errors import UsageError
from hopscope.models.language_model import LanguageModel

VECTOR = torch.arange(3.0)


def model(d_model: int = 3) -> LanguageModel:
    """What edits ask of a model: two blocks of four heads."""
    sizes = {"n_layers": 2, "d_model": d_model, "n_heads": 4, "head_dim": 3}
    return SimpleNamespace(**sizes)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("site", "boundary", "place"),
    [
        ("resid_pre", 2, (RESIDUAL, 2)),
        ("resid_post", 3, (RESIDUAL, 3)),
        ("attn_out", 2, ("attn_out", 2)),
        ("mlp_out", 2, ("mlp_out", 2)),
        ("attn_in", 2, ("attn_in", 2)),
        ("mlp_in", 2, ("mlp_in", 2)),
    ],
)
def test_where_a_patch_lies(site: PatchSite, boundary: int, place: tuple[str, int]) -> None:
    patch = Patch(2, 0, VECTOR, site)
    assert (patch.boundary, patch.place) == (boundary, place)
    assert patch.in_residual == site.startswith("resid")


@pytest.mark.parametrize(("position", "counted"), [(-1, 4), (-5, 0), (0, 0), (4, 4)])
def test_positions_are_counted_from_the_start(position: int, counted: int) -> None:
    patch = Patch(1, position, VECTOR, "mlp_out").placed(model(), n_tokens=5)
    assert (patch.layer, patch.position, patch.site) == (1, counted, "mlp_out")
    assert torch.equal(patch.vector, VECTOR)


@pytest.mark.parametrize(
    ("layer", "position", "d_model", "message"),
    [
        (2, 0, 3, "no layer 2: the model has layers 0 to 1"),
        (-1, 0, 3, "no layer -1"),
        (0, 5, 3, "no position 5: the prompt has 5 tokens"),
        (0, -6, 3, "no position -6"),
        (0, 0, 4, "length 3 cannot replace one of d_model 4"),
    ],
)
def test_a_patch_must_fit(layer: int, position: int, d_model: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Patch(layer, position, VECTOR).placed(model(d_model), n_tokens=5)


def test_an_unknown_site_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'resid_mid'.*resid_pre, resid_post, attn_out, mlp_out"):
        Patch(0, 0, VECTOR, "resid_mid")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (1, 3)])
def test_a_patch_takes_one_vector(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"shape \(d_model,\), .* not \("):
        Patch(0, 0, torch.zeros(shape))


@pytest.mark.parametrize(("site", "head"), [("z", None), ("resid_post", 1)])
def test_a_head_goes_with_z_alone(site: PatchSite, head: int | None) -> None:
    with pytest.raises(UsageError, match="a head goes with site 'z'"):
        Patch(0, 0, VECTOR, site, head)


def test_a_head_must_be_there() -> None:
    assert Patch(0, -1, VECTOR, "z", 3).placed(model(d_model=12), 5).position == 4
    with pytest.raises(UsageError, match="no head 4: the model has heads 0 to 3"):
        Patch(0, 0, VECTOR, "z", 4).placed(model(), 5)
    with pytest.raises(UsageError, match="length 2 cannot replace one of head_dim 3"):
        Patch(0, 0, VECTOR[:2], "z", 0).placed(model(), 5)


def test_where_a_knockout_lies() -> None:
    knockout = Knockout(layers=[1, 0], queries=[-1, 2], keys=range(4)).placed(model(), 5)
    assert (knockout.boundary, knockout.first) == (0, 2)
    assert list(knockout.edges()) == [(2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3)]


@pytest.mark.parametrize(
    ("layers", "queries", "keys", "heads", "message"),
    [
        ([2], [-1], [0], None, "no layer 2"),
        ([0], [5], [0], None, "no position 5"),
        ([0], [-1], [-6], None, "no position -6"),
        ([0], [-1], [0], [4], "no head 4"),
        ([0], [1, 2], [2, 3], None, "attention looks back only"),
    ],
)
def test_a_knockout_must_fit(
    layers: list[int], queries: list[int], keys: list[int], heads: list[int] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Knockout(layers, queries, keys, heads).placed(model(), 5)


@pytest.mark.parametrize("missing", ["layers", "queries", "keys", "heads"])
def test_a_knockout_blocks_something(missing: str) -> None:
    given = {"layers": [0], "queries": [1], "keys": [0], "heads": [0], missing: []}
    with pytest.raises(UsageError, match=f"a knockout without {missing} blocks nothing"):
        Knockout(**given)
