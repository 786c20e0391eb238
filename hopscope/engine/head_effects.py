"""Provides head_effects(): what a block's attention writes when one head gives something else."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hopscope.engine.editing import recording, require, same, tried
from hopscope.engine.sublayers import writer_of
from hopscope.models.language_model import LanguageModel
from hopscope.models.linear import outputs_of, without_bias


def check_head_effects(model: LanguageModel) -> None:
    """Refuse families whose attention writes something else than its projection of the heads.

    Raises:
        ModelError: names the family.
    """
    for layer in range(model.n_layers):
        writer_of(model, layer, "attn_out")
    require(model, "effects of heads on attn_out", _effects_hold)


@torch.no_grad()
def head_effects(
    model: LanguageModel,
    layer: int,
    own: Float[Tensor, "head head_dim"],
    others: Float[Tensor, "head head_dim"],
) -> Float[Tensor, "head d_model"]:
    """By how much `attn_out` changes when one head gives something else, for each head.

    That is the change of the head's output times the head's part of the output projection, and what
    a norm behind the projection, as that of Gemma 2, makes of it beside the other heads. No weight
    is read: quantised projections do what they are.

    Args:
        model: the model, of which `check_head_effects` must hold.
        layer: 0-based index of the block.
        own: each head's output (`z`).
        others: what stands in its place, in one head at a time.

    Returns:
        In float32, on the device of `own`.
    """
    projection, scale = model.head_projection(layer), writer_of(model, layer, "attn_out").scale
    alone = torch.diag_embed((others - own).T)  # (head_dim, head, head): one head, the others 0
    changes = without_bias(projection, rearrange(alone, "d head other -> head (other d)")).float()
    norm = _norm_behind(model, layer)
    if norm is not None:
        before = outputs_of(projection, rearrange(own, "head d -> 1 (head d)")).float()
        changes = outputs_of(norm, before + changes) - outputs_of(norm, before)
    return changes * scale


def _norm_behind(model: LanguageModel, layer: int) -> nn.Module | None:
    """What the heads' projection passes before it is written to the stream, outside attention."""
    module = writer_of(model, layer, "attn_out").module
    return None if module in set(model.attention(layer).modules()) else module


@torch.no_grad()
def _effects_hold(model: LanguageModel) -> bool:
    """Whether projection and norm make of the heads what attention writes."""
    ids, _, _ = tried(model)
    into: dict[str, list[Tensor | None]] = {
        site: [None] * model.n_layers for site in ("head_input", "attn_out")
    }
    with recording(model, list(into), into):
        model.forward(input_ids=ids)
    for layer, (heads, written) in enumerate(zip(*into.values(), strict=True)):
        assert heads is not None
        assert written is not None
        found, norm = outputs_of(model.head_projection(layer), heads), _norm_behind(model, layer)
        found = found if norm is None else outputs_of(norm, found)
        scale = writer_of(model, layer, "attn_out").scale
        if not same(found.view(written.shape) * scale, written, model.dtype):
            return False
    return True
