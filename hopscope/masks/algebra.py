"""Provides attention masks that combine with `&`, `|` and `~`.

A mask says to which key tokens each query token may attend, as in
`causal() & knock_out("question", "document 3")`. It does not depend on a model; `masks.lowering`
turns it into the form that an attention implementation expects.
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
    """An attention mask over the tokens of a prompt; combine masks with `&`, `|` and `~`.

    Attributes:
        name: the name of the mask in tables.
        layers: 0-based indices of the blocks in which the mask differs from the other blocks.
        n_heads: the least number of heads that a model needs to have all heads that the mask
            mentions; 0 if the mask is the same for all heads.

    Example:
        >>> (causal() & knock_out("question", "gold 1", layers=[3, 4])).name
        'causal & knock_out(question->gold 1, layers 3,4)'
    """

    name: str
    layers: frozenset[int] = frozenset()
    n_heads: int = 0

    @property
    def by_head(self) -> bool:
        """Whether the mask differs between heads."""
        return self.n_heads > 0

    @abstractmethod
    def _rule_mask(self, layout: Layout, layer: int, n_heads: int) -> Tensor:
        """Return the keep-mask by the rule alone, shape (head or 1, query, key).

        `keep` adds what holds for every mask: hidden documents and the tokens of answers.
        """

    def keep(
        self, layout: Layout, layer: int = 0, n_heads: int | None = None
    ) -> Bool[Tensor, "head query key"]:
        """Return the keep-mask of one block: True where the query token may attend to the key.

        Documents that the layout hides are visible to themselves only. Each token of an answer
        attends to the part of the prompt that the last prompt token attends to, and causally to
        the answer; the prompt never attends to the answer.

        Args:
            layout: the tokenised prompt.
            layer: 0-based index of the block.
            n_heads: number of query heads of the model; None for as many as the mask mentions.

        Returns:
            Booleans of shape (head, query, key); the head axis has length 1 if all heads share
            the mask.

        Raises:
            UsageError: if a query token could attend to no key, or if the mask mentions a head
                that the model does not have.
        """
        n_heads = max(1, self.n_heads) if n_heads is None else n_heads
        if self.n_heads > n_heads:
            raise UsageError(
                f"the mask {self.name!r} names head {self.n_heads - 1}, but the model has heads 0 "
                f"to {n_heads - 1}"
            )
        keep = self._rule_mask(layout, layer, n_heads)
        if layout.hidden.any():
            hidden = torch.as_tensor(layout.hidden)
            keep = keep & (~hidden[None, :] | (_same_segment(layout) & hidden[:, None]))
        if layout.answered:
            start = layout.segments[-1][0]
            keep = keep.clone()
            keep[:, start:, :start] = keep[:, start - 1 : start, :start]
            keep[:, start:, start:] = torch.ones_like(keep[0, start:, start:]).tril()
            keep[:, :start, start:] = False  # the prompt must not attend to its answer
        without_keys = (~keep.any(dim=-1)).nonzero()
        if len(without_keys):
            token = int(without_keys[0, -1])
            raise UsageError(
                f"under the mask {self.name!r} token {token} sees nothing at all: the softmax over "
                "no keys is undefined; let every token attend to itself (| itself())"
            )
        return keep

    def __and__(self, other: Mask) -> Mask:
        return _Combined(self, other, " & ", torch.logical_and)

    def __or__(self, other: Mask) -> Mask:
        return _Combined(self, other, " | ", torch.logical_or)

    def __invert__(self) -> Mask:
        return _Negated(self)

    def __repr__(self) -> str:
        return f"Mask({self.name})"

    def show(self, layout: Layout, ax: Axes | None = None, layer: int = 0, head: int = 0) -> Axes:
        """Draw the keep-mask: query tokens as rows, key tokens as columns.

        The parts of the prompt are labelled along both axes.

        Args:
            layout: the tokenised prompt.
            ax: the axes to draw on; new ones if None.
            layer, head: the block and head whose mask is drawn, where masks differ.

        Returns:
            The axes.
        """
        from hopscope.plots.mask_grid import mask_grid

        keep = self.keep(layout, layer, max(self.n_heads, head + 1))
        return mask_grid(keep[min(head, len(keep) - 1)].numpy(), layout, ax, self.name)


@dataclass(frozen=True, repr=False)
class _Rule(Mask):
    """A mask that is the same in all layers and heads."""

    name: str
    rule: Callable[[Layout], Tensor]

    def _rule_mask(self, layout: Layout, layer: int, n_heads: int) -> Tensor:
        return self.rule(layout)[None]


@dataclass(frozen=True, repr=False)
class _Combined(Mask):
    """Two masks combined element by element."""

    a: Mask
    b: Mask
    sign: str
    combine: Callable[[Tensor, Tensor], Tensor]

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.sign.join(
            f"({each.name})" if _needs_parentheses(each, self.sign) else each.name
            for each in self.parts
        )

    @property
    def parts(self) -> tuple[Mask, Mask]:
        return self.a, self.b

    @property
    def layers(self) -> frozenset[int]:  # type: ignore[override]
        return self.a.layers | self.b.layers

    @property
    def n_heads(self) -> int:  # type: ignore[override]
        return max(self.a.n_heads, self.b.n_heads)

    def _rule_mask(self, layout: Layout, layer: int, n_heads: int) -> Tensor:
        return self.combine(*(each._rule_mask(layout, layer, n_heads) for each in self.parts))


def _needs_parentheses(mask: Mask, sign: str) -> bool:
    return isinstance(mask, _Combined) and mask.sign != sign


@dataclass(frozen=True, repr=False)
class _Negated(Mask):
    """The complement of a mask."""

    of: Mask

    @property
    def name(self) -> str:  # type: ignore[override]
        inner = f"({self.of.name})" if isinstance(self.of, _Combined) else self.of.name
        return f"~{inner}"

    @property
    def layers(self) -> frozenset[int]:  # type: ignore[override]
        return self.of.layers

    @property
    def n_heads(self) -> int:  # type: ignore[override]
        return self.of.n_heads

    def _rule_mask(self, layout: Layout, layer: int, n_heads: int) -> Tensor:
        return ~self.of._rule_mask(layout, layer, n_heads)


@dataclass(frozen=True, repr=False)
class _Switched(Mask):
    """One mask in some layers and heads, and another in all others."""

    name: str
    inside: Mask
    elsewhere: Mask
    scope: _Scope

    @property
    def layers(self) -> frozenset[int]:  # type: ignore[override]
        return (self.scope.layers or frozenset()) | self.inside.layers | self.elsewhere.layers

    @property
    def n_heads(self) -> int:  # type: ignore[override]
        needed = 1 + max(self.scope.heads or (), default=-1)
        return max(needed, self.inside.n_heads, self.elsewhere.n_heads)

    def _rule_mask(self, layout: Layout, layer: int, n_heads: int) -> Tensor:
        layers, heads, _ = self.scope
        if layers is not None and layer not in layers:
            return self.elsewhere._rule_mask(layout, layer, n_heads)
        inside = self.inside._rule_mask(layout, layer, n_heads)
        if heads is None:
            return inside
        in_scope = torch.zeros(n_heads, 1, 1, dtype=torch.bool)
        in_scope[list(heads)] = True
        return torch.where(in_scope, inside, self.elsewhere._rule_mask(layout, layer, n_heads))


class _Scope(NamedTuple):
    """The layers and heads in which a mask holds (None for all), and their part of its name."""

    layers: frozenset[int] | None
    heads: tuple[int, ...] | None
    label: str

    @classmethod
    def of(cls, layers: Iterable[int] | None, heads: Iterable[int] | None) -> _Scope:
        """Sort layers and heads, without repeats.

        Raises:
            UsageError: for a negative layer or head.
        """
        sorted_layers, sorted_heads = _indices(layers, "layer"), _indices(heads, "head")
        label = "".join(
            f", {name} {','.join(map(str, numbers))}"
            for name, numbers in (("layers", sorted_layers), ("heads", sorted_heads))
            if numbers is not None
        )
        in_layers = None if sorted_layers is None else frozenset(sorted_layers)
        return cls(in_layers, sorted_heads, label)


def _indices(given: Iterable[int] | None, name: str) -> tuple[int, ...] | None:
    """Sort 0-based indices, without repeats; None stays None."""
    if given is None:
        return None
    numbers = tuple(sorted({int(each) for each in given}))
    if numbers and numbers[0] < 0:
        raise UsageError(f"{name}s are counted from 0; there is no {name} {numbers[0]}")
    return numbers


def _segments(layout: Layout) -> Tensor:
    """Return the index of the segment of each token, shape (token,)."""
    return torch.as_tensor(layout.segment_of)


def _same_segment(layout: Layout) -> Tensor:
    """Return whether two tokens lie in the same segment, shape (query, key)."""
    segment = _segments(layout)
    return segment[:, None] == segment[None, :]
