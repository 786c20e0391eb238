"""Patches as plain data: where they lie, and which are refused."""

from __future__ import annotations

import pytest
import torch

from hopscope.edits import RESIDUAL, Patch, PatchSite
from hopscope.errors import UsageError

VECTOR = torch.arange(3.0)


@pytest.mark.parametrize(
    ("site", "boundary", "place"),
    [
        ("resid_pre", 2, (RESIDUAL, 2)),
        ("resid_post", 3, (RESIDUAL, 3)),
        ("attn_out", 2, ("attn_out", 2)),
        ("mlp_out", 2, ("mlp_out", 2)),
    ],
)
def test_where_a_patch_lies(site: PatchSite, boundary: int, place: tuple[str, int]) -> None:
    patch = Patch(2, 0, VECTOR, site)
    assert (patch.boundary, patch.place) == (boundary, place)
    assert patch.in_residual == site.startswith("resid")


@pytest.mark.parametrize(("position", "counted"), [(-1, 4), (-5, 0), (0, 0), (4, 4)])
def test_positions_are_counted_from_the_start(position: int, counted: int) -> None:
    patch = Patch(1, position, VECTOR, "mlp_out").placed(n_layers=2, d_model=3, n_tokens=5)
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
        Patch(layer, position, VECTOR).placed(n_layers=2, d_model=d_model, n_tokens=5)


def test_an_unknown_site_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'resid_mid'.*resid_pre, resid_post, attn_out, mlp_out"):
        Patch(0, 0, VECTOR, "resid_mid")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (1, 3)])
def test_a_patch_takes_one_vector(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"shape \(d_model,\), not \("):
        Patch(0, 0, torch.zeros(shape))
