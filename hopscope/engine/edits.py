"""Provides the edits of a forward pass as plain data: what is changed, not how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hopscope.errors import UsageError, as_list, kind_of, of_type, one_of, whole_number

if TYPE_CHECKING:
    from hopscope.models.language_model import LanguageModel

RESIDUAL = "residual"
PatchSite = Literal["resid_pre", "resid_post", "attn_out", "mlp_out", "attn_in", "mlp_in", "z"]


@dataclass(frozen=True, eq=False)
class Patch:
    """Replace one vector of the model's state while it reads a prompt.

    Args:
        layer: 0-based index of the block.
        position: index of the token in the prompt; negative counts from its end.
        vector: shape (d_model,), the new value; (head_dim,) for `z`. A tensor, an array or a list.
        site: which vector of the block: the residual stream before (`resid_pre`) or after it
            (`resid_post`), what its attention (`attn_out`) or MLP (`mlp_out`) adds, the residual
            stream as its attention (`attn_in`) or its MLP (`mlp_in`) alone reads it, before its
            norm, or the output of one attention head before the output projection (`z`).
        head: the head, for `z`.

    Example:
        >>> import torch
        >>> Patch(layer=3, position=-1, vector=torch.zeros(8)).site
        'resid_post'
    """

    layer: int
    position: int
    vector: Tensor
    site: PatchSite = "resid_post"
    head: int | None = None

    def __post_init__(self) -> None:
        one_of("site", self.site, get_args(PatchSite))
        whole_number("the layer of a patch", self.layer)
        whole_number("the position of a patch", self.position)
        if self.head is not None:
            whole_number("the head of a patch", self.head)
        object.__setattr__(self, "vector", _vector_of(self.vector))
        if self.vector.ndim != 1:
            raise UsageError(
                "a patch takes one vector of shape (d_model,), or (head_dim,) for site 'z', not "
                f"{tuple(self.vector.shape)}"
            )
        if (self.head is None) == (self.site == "z"):
            raise UsageError("a head goes with site 'z' and with no other: give both or neither")

    def __str__(self) -> str:
        site = self.site if self.head is None else f"{self.site} of head {self.head}"
        return f"Patch of {site} in layer {self.layer} at token {self.position}"

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

    @property
    def first(self) -> int:
        """The first token that it changes."""
        return self.position

    def placed(self, model: LanguageModel, n_tokens: int) -> Patch:
        """The same patch with its position counted from the start; checked against a prompt.

        Raises:
            UsageError: if layer, position, head or vector do not fit.
        """
        _check("layer", [self.layer], model.n_layers)
        position = _from_start(self.position, n_tokens)
        if self.head is not None:
            _check("head", [self.head], model.n_heads)
        width, name = (
            (model.d_model, "d_model") if self.head is None else (model.head_dim, "head_dim")
        )
        if self.vector.shape[0] != width:
            raise UsageError(
                f"a vector of length {self.vector.shape[0]} cannot replace one of {name} {width}"
            )
        return self if position == self.position else replace(self, position=position)


@dataclass(frozen=True)
class Knockout:
    """Block attention from some tokens to others while the model reads a prompt.

    Attention knockout (Geva et al. 2023; Hopping Too Late, section 5). What is blocked gets no
    weight; the other weights of that token sum to 1. A token always attends to itself, since
    one that attends to nothing has no attention output.

    One layer, token or head alone is a list of one.

    Args:
        layers: 0-based indices of the blocks.
        queries: indices of the tokens that attend; negative ones count from the prompt's end.
        keys: indices of the tokens that they no longer see.
        heads: only in these heads; in all if None.

    Example:
        >>> Knockout(layers=range(3, 10), queries=[-1], keys=[5]).layers
        (3, 4, 5, 6, 7, 8, 9)
    """

    layers: Sequence[int]
    queries: Sequence[int]
    keys: Sequence[int]
    heads: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "queries", "keys", "heads"):
            given = getattr(self, name)
            if given is not None:
                each_given = as_list(given, Integral, f"{name} of a knockout", "such as [3, 4]")
                numbers = {whole_number(f"each of {name}", each) for each in each_given}
                object.__setattr__(self, name, tuple(sorted(numbers)))
            if given is not None and not getattr(self, name):
                raise UsageError(f"a knockout without {name} blocks nothing: give at least one")

    @property
    def boundary(self) -> int:
        """The first block that runs differently."""
        return self.layers[0]

    @property
    def first(self) -> int:
        """The first token whose attention changes."""
        return self.queries[0]

    def edges(self) -> Iterator[tuple[int, int]]:
        """The blocked pairs (query, key) of a placed knockout."""
        return ((q, k) for q in self.queries for k in self.keys if k < q)

    def placed(self, model: LanguageModel, n_tokens: int) -> Knockout:
        """The same knockout with its tokens counted from the start; checked against a prompt.

        Raises:
            UsageError: if layers, tokens or heads do not fit, or no token sees one of the keys.
        """
        _check("layer", self.layers, model.n_layers)
        if self.heads is not None:
            _check("head", self.heads, model.n_heads)
        placed = replace(
            self,
            queries=[_from_start(each, n_tokens) for each in self.queries],
            keys=[_from_start(each, n_tokens) for each in self.keys],
        )
        if not any(placed.edges()):
            raise UsageError(
                f"nothing to block: none of the tokens {placed.queries} comes after one of "
                f"{placed.keys}, and attention looks back only"
            )
        return placed


def _vector_of(given: object) -> Tensor:
    try:
        return torch.as_tensor(given.copy() if isinstance(given, np.ndarray) else given)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(
            f"the vector of a patch must be a tensor, an array or a list of numbers, not "
            f"{kind_of(given)}: such as torch.zeros(model.d_model)"
        ) from None


def _check(kind: str, given: Sequence[int], n: int) -> None:
    """Refuse a layer or head that the model has not."""
    for index in given:
        if not 0 <= index < n:
            raise UsageError(f"no {kind} {index}: the model has {kind}s 0 to {n - 1}")


def _from_start(position: int, n_tokens: int) -> int:
    if not -n_tokens <= position < n_tokens:
        raise UsageError(f"no position {position}: the prompt has {n_tokens} tokens")
    return position % n_tokens


Edit = Patch | Knockout
Cell = Sequence[Edit]
"""One version of a prompt: the edits that are made together."""
EDITS = "such as [hs.Patch(layer=3, position=-1, vector=vector)]"


def edits_of(given: object, name: str) -> list[Edit]:
    """Several edits, or one alone, as a list.

    Raises:
        UsageError: for anything else.
    """
    edits = as_list(given, Patch | Knockout, name, EDITS)
    return [of_type("each edit", each, Patch | Knockout, EDITS) for each in edits]


def cells_of(given: object) -> list[list[Edit]]:
    """Several cells; an edit that stands alone for a cell is a cell of one.

    Raises:
        UsageError: for anything else.
    """
    cells = as_list(given, Patch | Knockout, "cells", "[[], [an edit]] are two, the first unedited")
    return [edits_of(cell, "each cell") for cell in cells]
