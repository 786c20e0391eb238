"""Provides attention masks as an algebra of boolean keep-masks, and their lowering.

A mask says which tokens see which: `causal() & knock_out("question", "document 3")`. It knows
nothing of models; `lower` gives what an attention implementation takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from hopscope.documents.layout import Layout
from hopscope.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Mask(ABC):
    """Which tokens of a prompt see which; combine masks with `&`, `|` and `~`.

    Attributes:
        name: what tables call it.
        layers: the blocks in which it is not what it is elsewhere.
        n_heads: how many heads a model must have for the heads that it names; 0 if heads do not
            differ.

    Example:
        >>> (causal() & knock_out("question", "gold 1", layers=[3, 4])).name
        'causal & knock_out(question->gold 1, layers 3,4)'
    """

    name: str
    layers: frozenset[int] = frozenset()
    n_heads: int = 0

    @property
    def by_head(self) -> bool:
        """Whether heads differ."""
        return self.n_heads > 0

    @abstractmethod
    def _seen(self, layout: Layout, layer: int, n_heads: int) -> Tensor:
        """Booleans of shape (head or 1, query, key) over all tokens."""

    def keep(
        self, layout: Layout, layer: int = 0, n_heads: int | None = None
    ) -> Bool[Tensor, "head query key"]:
        """Who sees whom in one block: True where the query's token sees the key's.

        Documents that the layout does not show are seen by themselves alone. The tokens of an
        answer see of the prompt what its last token sees, and of the answer what came before; the
        prompt does not see the answer.

        Args:
            layout: the tokens.
            layer: 0-based index of the block.
            n_heads: number of query heads of the model; as many as the mask names if None.

        Returns:
            Booleans; the head axis has length 1 where all heads see the same.

        Raises:
            UsageError: if a token would see nothing, or the model lacks a head that is named.
        """
        n_heads = max(1, self.n_heads) if n_heads is None else n_heads
        if self.n_heads > n_heads:
            raise UsageError(
                f"the mask {self.name!r} names head {self.n_heads - 1}, but there are heads 0 to "
                f"{n_heads - 1}"
            )
        seen = self._seen(layout, layer, n_heads)
        if layout.hidden.any():
            hidden = torch.as_tensor(layout.hidden)
            seen = seen & (~hidden[None, :] | (_same_segment(layout) & hidden[:, None]))
        if layout.answered:
            start = layout.segments[-1][0]
            seen = seen.clone()
            seen[:, start:, :start] = seen[:, start - 1 : start, :start]
            seen[:, start:, start:] = torch.ones_like(seen[0, start:, start:]).tril()
            seen[:, :start, start:] = False  # no prompt knows its answer
        blind = (~seen.any(dim=-1)).nonzero()
        if len(blind):
            token = int(blind[0, -1])
            raise UsageError(
                f"under the mask {self.name!r} token {token} sees nothing at all, and softmax over "
                "nothing is undefined; let every token see itself (| itself())"
            )
        return seen

    def __and__(self, other: Mask) -> Mask:
        return _Joined(self, other, " & ", torch.logical_and)

    def __or__(self, other: Mask) -> Mask:
        return _Joined(self, other, " | ", torch.logical_or)

    def __invert__(self) -> Mask:
        return _Not(self)

    def __repr__(self) -> str:
        return f"Mask({self.name})"

    def show(self, layout: Layout, ax: Axes | None = None, layer: int = 0, head: int = 0) -> Axes:
        """Draw who sees whom, a row a token, with the parts of the prompt along both sides.

        Args:
            layout: the tokens.
            ax: where to draw.
            layer, head: of which the mask is shown, where it differs.
        """
        from hopscope.plots import mask_grid

        seen = self.keep(layout, layer, max(self.n_heads, head + 1))
        shown = seen[min(head, len(seen) - 1)].numpy()
        return mask_grid.mask_grid(shown, layout, ax, self.name)


@dataclass(frozen=True, repr=False)
class _Rule(Mask):
    """The same in all layers and heads."""

    name: str
    rule: Callable[[Layout], Tensor]

    def _seen(self, layout: Layout, layer: int, n_heads: int) -> Tensor:
        return self.rule(layout)[None]


@dataclass(frozen=True, repr=False)
class _Joined(Mask):
    a: Mask
    b: Mask
    sign: str
    join: Callable[[Tensor, Tensor], Tensor]

    @property
    def name(self) -> str:  # type: ignore[override]
        inner = [f"({each.name})" if _mixes(each, self.sign) else each.name for each in self.parts]
        return self.sign.join(inner)

    @property
    def parts(self) -> tuple[Mask, Mask]:
        return self.a, self.b

    @property
    def layers(self) -> frozenset[int]:  # type: ignore[override]
        return self.a.layers | self.b.layers

    @property
    def n_heads(self) -> int:  # type: ignore[override]
        return max(self.a.n_heads, self.b.n_heads)

    def _seen(self, layout: Layout, layer: int, n_heads: int) -> Tensor:
        return self.join(*(each._seen(layout, layer, n_heads) for each in self.parts))


def _mixes(mask: Mask, sign: str) -> bool:
    return isinstance(mask, _Joined) and mask.sign != sign


@dataclass(frozen=True, repr=False)
class _Not(Mask):
    of: Mask

    @property
    def name(self) -> str:  # type: ignore[override]
        inner = f"({self.of.name})" if isinstance(self.of, _Joined) else self.of.name
        return f"~{inner}"

    @property
    def layers(self) -> frozenset[int]:  # type: ignore[override]
        return self.of.layers

    @property
    def n_heads(self) -> int:  # type: ignore[override]
        return self.of.n_heads

    def _seen(self, layout: Layout, layer: int, n_heads: int) -> Tensor:
        return ~self.of._seen(layout, layer, n_heads)


@dataclass(frozen=True, repr=False)
class _Switched(Mask):
    """One mask in some layers and heads, another elsewhere."""

    name: str
    inside: Mask
    elsewhere: Mask
    places: _Places

    @property
    def layers(self) -> frozenset[int]:  # type: ignore[override]
        return (self.places.layers or frozenset()) | self.inside.layers | self.elsewhere.layers

    @property
    def n_heads(self) -> int:  # type: ignore[override]
        named = 1 + max(self.places.heads or (), default=-1)
        return max(named, self.inside.n_heads, self.elsewhere.n_heads)

    def _seen(self, layout: Layout, layer: int, n_heads: int) -> Tensor:
        layers, heads, _ = self.places
        if layers is not None and layer not in layers:
            return self.elsewhere._seen(layout, layer, n_heads)
        seen = self.inside._seen(layout, layer, n_heads)
        if heads is None:
            return seen
        here = torch.zeros(n_heads, 1, 1, dtype=torch.bool)
        here[list(heads)] = True
        return torch.where(here, seen, self.elsewhere._seen(layout, layer, n_heads))


class _Places(NamedTuple):
    """Layers and heads, None for all of them, and how a mask's name tells them."""

    layers: frozenset[int] | None
    heads: tuple[int, ...] | None
    told: str

    @classmethod
    def of(cls, layers: Iterable[int] | None, heads: Iterable[int] | None) -> _Places:
        """Layers and heads in order, each once.

        Raises:
            UsageError: for a negative one.
        """
        found: list[tuple[int, ...] | None] = []
        told = ""
        for what, given in (("layer", layers), ("head", heads)):
            numbers = None if given is None else tuple(sorted({int(each) for each in given}))
            if numbers and numbers[0] < 0:
                raise UsageError(f"{what}s are counted from 0; there is no {what} {numbers[0]}")
            if numbers is not None:
                told += f", {what}s {','.join(map(str, numbers))}"
            found.append(numbers)
        in_layers, in_heads = found
        return cls(None if in_layers is None else frozenset(in_layers), in_heads, told)


def _segments(layout: Layout) -> Tensor:
    return torch.as_tensor(layout.segment_of)


def _same_segment(layout: Layout) -> Tensor:
    segment = _segments(layout)
    return segment[:, None] == segment[None, :]
