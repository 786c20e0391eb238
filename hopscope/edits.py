"""Provides the edits of a forward pass as plain data: what is changed, not how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from hopscope.errors import UsageError

RESIDUAL = "residual"
PatchSite = Literal["resid_pre", "resid_post", "attn_out", "mlp_out"]


@dataclass(frozen=True, eq=False)
class Patch:
    """Replace one vector of the model's state while it reads a prompt.

    Args:
        layer: 0-based index of the block.
        position: index of the token in the prompt; negative counts from its end.
        vector: shape (d_model,), the new value.
        site: which vector of the block: the residual stream before (`resid_pre`) or after it
            (`resid_post`), or what its attention (`attn_out`) or MLP (`mlp_out`) adds.

    Example:
        >>> import torch
        >>> Patch(layer=3, position=-1, vector=torch.zeros(8)).site
        'resid_post'
    """

    layer: int
    position: int
    vector: Tensor
    site: PatchSite = "resid_post"

    def __post_init__(self) -> None:
        if self.site not in get_args(PatchSite):
            raise UsageError(
                f"unknown site {self.site!r}: expected one of {', '.join(get_args(PatchSite))}"
            )
        if self.vector.ndim != 1:
            raise UsageError(
                f"a patch takes one vector of shape (d_model,), not {tuple(self.vector.shape)}"
            )

    @property
    def in_residual(self) -> bool:
        """Whether it replaces the residual stream itself."""
        return self.site in ("resid_pre", "resid_post")

    @property
    def boundary(self) -> int:
        """The first block that runs on changed values; n_layers for the final norm alone."""
        return self.layer + 1 if self.site == "resid_post" else self.layer

    @property
    def place(self) -> tuple[str, int]:
        """Where the engine makes it: the residual stream at a boundary, or a block's sublayer."""
        return (RESIDUAL, self.boundary) if self.in_residual else (self.site, self.layer)

    def placed(self, n_layers: int, d_model: int, n_tokens: int) -> Patch:
        """The same patch with its position counted from the start; checked against a prompt.

        Raises:
            UsageError: if layer, position or vector do not fit.
        """
        if not 0 <= self.layer < n_layers:
            raise UsageError(f"no layer {self.layer}: the model has layers 0 to {n_layers - 1}")
        if not -n_tokens <= self.position < n_tokens:
            raise UsageError(f"no position {self.position}: the prompt has {n_tokens} tokens")
        if self.vector.shape[0] != d_model:
            raise UsageError(
                f"a vector of length {self.vector.shape[0]} cannot replace one of d_model {d_model}"
            )
        if self.position >= 0:
            return self
        return Patch(self.layer, self.position + n_tokens, self.vector, self.site)


Cell = Sequence[Patch]
"""One version of a prompt: the edits that are made together."""
