"""Provides the masks that have a name: causal, bidirectional, per document, knockouts, orders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool
from torch import Tensor

from hopscope.documents.lay_out import with_order
from hopscope.documents.layout import Layout, Span
from hopscope.documents.orders import Order, arrange, order_name
from hopscope.errors import UsageError, one_of
from hopscope.masks.algebra import Mask, _Rule, _same_segment, _Scope, _segments, _Switched


@dataclass(frozen=True)
class _Knockout:
    """Every token attends to every other, except the query tokens to the key tokens."""

    queries: Span
    keys: Span

    def __call__(self, layout: Layout) -> Tensor:
        n = len(layout)
        keep = torch.ones(n, n, dtype=torch.bool)
        queries, keys = (
            torch.tensor(layout.tokens(span), dtype=torch.long)
            for span in (self.queries, self.keys)
        )
        keep[queries[:, None], keys[None, :]] = False
        return keep.fill_diagonal_(True)


def _span_name(span: Span) -> str:
    return span if isinstance(span, str) else f"[{','.join(map(str, span))}]"


def _by_rank(ranks: Sequence[int]) -> Tensor:
    """Return the keep-mask in which each token attends to tokens of at most its own rank."""
    rank = torch.tensor(ranks)
    return rank[:, None] >= rank[None, :]


def _in_documents(layout: Layout) -> Tensor:
    """Return whether each token belongs to a document, shape (token,)."""
    segment = _segments(layout)
    return (segment >= 1) & (segment <= len(layout.order))


def _causal(layout: Layout) -> Tensor:
    return _by_rank(layout.rank)


def _everything(layout: Layout) -> Tensor:
    n = len(layout)
    return torch.ones(n, n, dtype=torch.bool)


def _document_bidirectional(layout: Layout) -> Tensor:
    within = _same_segment(layout) & _in_documents(layout)[:, None]
    return _causal(layout) | within


def _blocks(layout: Layout) -> Tensor:
    return _causal(layout) & (_same_segment(layout) | ~_in_documents(layout)[:, None])


def _blocks_with_instruction(layout: Layout) -> Tensor:
    return _blocks(layout) | (_causal(layout) & (_segments(layout) == 0)[None, :])


def _itself(layout: Layout) -> Tensor:
    return torch.eye(len(layout), dtype=torch.bool)


def causal() -> Mask:
    """Each token attends to itself and to the tokens before it.

    "Before" goes by the rank of tokens, which `lay_out(..., way="mask")` permutes.
    """
    return _Rule("causal", _causal)


def prefix_bidirectional() -> Mask:
    """The mask of a prefix language model: the prompt is bidirectional, the answer causal.

    Huang et al. 2025 (Masking in Multi-hop QA), section 3.3.
    """
    return _Rule("prefix_bidirectional", _everything)


def document_bidirectional() -> Mask:
    """Causal between documents, bidirectional within each document."""
    return _Rule("document_bidirectional", _document_bidirectional)


def document_block(instruction: bool = False) -> Mask:
    """Causal, but documents do not attend to each other; the question attends to all of them.

    Args:
        instruction: whether documents attend to the instruction. If not, the states of a document
            do not depend on its place in the prompt, so that all orders can share them.
    """
    if instruction:
        return _Rule("document_block_instruction", _blocks_with_instruction)
    return _Rule("document_block", _blocks)


def itself() -> Mask:
    """Each token attends to itself only."""
    return _Rule("itself", _itself)


def knock_out(
    query_span: Span,
    key_span: Span,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
) -> Mask:
    """Block attention from some query tokens to some key tokens, and allow everything else.

    Combine it with another mask: `causal() & knock_out(...)`. A token can always attend to itself.
    Generated tokens attend to what the last prompt token attends to, so that a query span with
    that token (`question`, `last`) also cuts off the answer.

    Args:
        query_span: the query tokens; a name of `Layout.tokens`, or token indices.
        key_span: the key tokens, likewise.
        layers: 0-based indices of the blocks in which attention is blocked; all if None.
        heads: 0-based indices of the query heads in which it is blocked; all if None.

    Raises:
        UsageError: for a negative layer or head.
    """
    queries, keys = (
        each if isinstance(each, str) else tuple(each) for each in (query_span, key_span)
    )
    ends = "->".join(_span_name(span) for span in (queries, keys))
    blocked, everything = _Rule(ends, _Knockout(queries, keys)), _Rule("everything", _everything)
    scope = _Scope.of(layers, heads)
    return _Switched(f"knock_out({ends}{scope.label})", blocked, everything, scope)


def switched(
    inside: str | Mask,
    elsewhere: str | Mask = "causal",
    *,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
) -> Mask:
    """Use one mask in some layers and heads, and another in all others.

    Args:
        inside: the mask in the given layers and heads; a name of `MASKS`, or a mask.
        elsewhere: the mask in all other layers and heads, likewise.
        layers: 0-based indices of the blocks; all if None.
        heads: 0-based indices of the query heads; all if None.

    Raises:
        UsageError: for an unknown mask, or a negative layer or head.

    Example:
        >>> switched("document_block", layers=[3, 4], heads=[0]).name
        'switched(document_block, layers 3,4, heads 0, else causal)'
    """
    inside, elsewhere = mask_of(inside), mask_of(elsewhere)
    if layers is None and heads is None:
        return inside
    scope = _Scope.of(layers, heads)
    name = f"switched({inside.name}{scope.label}, else {elsewhere.name})"
    return _Switched(name, inside, elsewhere, scope)


def painted(seen: Bool[Tensor, "query key"], name: str = "painted") -> Mask:
    """A mask that is given token by token, for prompts of exactly that length.

    Args:
        seen: True where the query token may attend to the key token, shape (query, key).
        name: the name of the mask in tables.

    Raises:
        UsageError: when the mask is used on a prompt of another length.
    """

    def rule(layout: Layout) -> Tensor:
        if len(layout) != len(seen):
            raise UsageError(
                f"the mask {name!r} was painted on {len(seen)} tokens, but the prompt has "
                f"{len(layout)}; use it on the prompt that it was made for"
            )
        return seen

    return _Rule(name, rule)


def visibility_order(order: Order, seed: int = 0) -> Mask:
    """Causal attention as if the documents stood in another order than they do in the prompt.

    Documents that the order leaves out are invisible to all other tokens.

    Args:
        order: order of the documents; see `hopscope.documents.orders.arrange`.
        seed: seed of shuffled orders.
    """

    def rule(layout: Layout) -> Tensor:
        ranked = with_order(layout, arrange(layout.question, order, seed))
        hidden = torch.as_tensor(ranked.hidden)
        keep = _causal(ranked) & ~hidden[None, :]
        return keep | (hidden[:, None] & _same_segment(layout) & _causal(layout))

    name = order_name(order)
    drawn = f", seed {seed}" if name.startswith("shuffle") else ""
    return _Rule(f"visibility_order({name}{drawn})", rule)


MASKS: Mapping[str, Callable[[], Mask]] = MappingProxyType(
    {
        "causal": causal,
        "prefix_bidirectional": prefix_bidirectional,
        "document_bidirectional": document_bidirectional,
        "document_block": document_block,
        "document_block_instruction": lambda: document_block(instruction=True),
    }
)
"""The masks without arguments, by the names that the shell and `mask_of` accept."""


def mask_of(mask: str | Mask) -> Mask:
    """Return a mask by its name in `MASKS`; a mask is returned as it is.

    Raises:
        UsageError: for an unknown name.
    """
    if isinstance(mask, Mask):
        return mask
    return MASKS[one_of("mask", mask, MASKS)]()
