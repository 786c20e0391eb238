"""Provides the named masks: causal, bidirectional, by documents, knock-outs and orders."""

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
from hopscope.errors import UsageError
from hopscope.masks.algebra import Mask, _Places, _Rule, _same_segment, _segments, _Switched


@dataclass(frozen=True)
class _Cut:
    """Everything is seen but some tokens by some others."""

    queries: Span
    keys: Span

    def __call__(self, layout: Layout) -> Tensor:
        n = len(layout)
        seen = torch.ones(n, n, dtype=torch.bool)
        queries, keys = (
            torch.tensor(layout.tokens(span), dtype=torch.long)
            for span in (self.queries, self.keys)
        )
        seen[queries[:, None], keys[None, :]] = False
        return seen.fill_diagonal_(True)


def _span_name(span: Span) -> str:
    return span if isinstance(span, str) else f"[{','.join(map(str, span))}]"


def _by_rank(ranks: Sequence[int]) -> Tensor:
    rank = torch.tensor(ranks)
    return rank[:, None] >= rank[None, :]


def _in_documents(layout: Layout) -> Tensor:
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
    """Every token sees itself and those before it, by rank: permuted by `way="mask"`."""
    return _Rule("causal", _causal)


def prefix_bidirectional() -> Mask:
    """Every token of the prompt sees every other; what is generated stays causal.

    Masking in Multi-hop QA, section 3.3 (the mask of a prefix language model).
    """
    return _Rule("prefix_bidirectional", _everything)


def document_bidirectional() -> Mask:
    """Causal, but inside a document every token sees every other."""
    return _Rule("document_bidirectional", _document_bidirectional)


def document_block(instruction: bool = False) -> Mask:
    """Causal, but documents are blind to each other; the question sees all.

    Args:
        instruction: whether documents see the instruction. If not, nothing that is computed of a
            document depends on where it stands, so that all orders share it.
    """
    if instruction:
        return _Rule("document_block_instruction", _blocks_with_instruction)
    return _Rule("document_block", _blocks)


def itself() -> Mask:
    """Every token sees itself alone."""
    return _Rule("itself", _itself)


def knock_out(
    query_span: Span,
    key_span: Span,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
) -> Mask:
    """Everything is seen but some tokens by some others; combine it: `causal() & knock_out(...)`.

    A token always sees itself. What is generated sees what the prompt's last token sees, so a
    span that holds it (`question`, `last`) cuts the answer off, too.

    Args:
        query_span: the tokens that no longer see; a name of `Layout.tokens`, or indices.
        key_span: the tokens that they no longer see.
        layers: 0-based indices of the blocks where that holds; all if None.
        heads: likewise.

    Raises:
        UsageError: for a negative layer or head.
    """
    queries, keys = (
        each if isinstance(each, str) else tuple(each) for each in (query_span, key_span)
    )
    ends = "->".join(_span_name(span) for span in (queries, keys))
    cut, everything = _Rule(ends, _Cut(queries, keys)), _Rule("everything", _everything)
    places = _Places.of(layers, heads)
    return _Switched(f"knock_out({ends}{places.told})", cut, everything, places)


def switched(
    inside: str | Mask,
    elsewhere: str | Mask = "causal",
    *,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
) -> Mask:
    """One mask in some layers and heads, another elsewhere.

    Args:
        inside: the mask there; a name of `MASKS`, or a mask.
        elsewhere: the mask in all others, if there are any.
        layers: 0-based indices of the blocks; all if None.
        heads: likewise.

    Raises:
        UsageError: for an unknown mask, or a negative layer or head.

    Example:
        >>> switched("document_block", layers=[3, 4], heads=[0]).name
        'switched(document_block, layers 3,4, heads 0, else causal)'
    """
    inside, elsewhere = mask_of(inside), mask_of(elsewhere)
    if layers is None and heads is None:
        return inside
    places = _Places.of(layers, heads)
    name = f"switched({inside.name}{places.told}, else {elsewhere.name})"
    return _Switched(name, inside, elsewhere, places)


def painted(seen: Bool[Tensor, "query key"], name: str = "painted") -> Mask:
    """Who sees whom, given token by token, for prompts of that many tokens.

    Args:
        seen: True where the query's token sees the key's.
        name: what tables call it.

    Raises:
        UsageError: when it meets a prompt of another length.
    """

    def rule(layout: Layout) -> Tensor:
        if len(layout) != len(seen):
            raise UsageError(
                f"the mask {name!r} was painted on {len(seen)} tokens, but the prompt has "
                f"{len(layout)}"
            )
        return seen

    return _Rule(name, rule)


def visibility_order(order: Order, seed: int = 0) -> Mask:
    """Causal in another order of the documents than that of the row; left-out ones are unseen.

    Args:
        order: of the documents; see `hopscope.documents.orders.arrange`.
        seed: of shuffles.
    """

    def rule(layout: Layout) -> Tensor:
        wanted = arrange(layout.question, order, seed)
        ranked = with_order(layout, wanted)
        hidden = torch.as_tensor(ranked.hidden)
        seen = _causal(ranked) & ~hidden[None, :]
        return seen | (hidden[:, None] & _same_segment(layout) & _causal(layout))

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
"""The masks that have a name in the shell."""


def mask_of(mask: str | Mask) -> Mask:
    """A mask by its name.

    Raises:
        UsageError: if there is none of that name.
    """
    if isinstance(mask, Mask):
        return mask
    if mask not in MASKS:
        raise UsageError(f"unknown mask {mask!r}: choose one of {', '.join(MASKS)}")
    return MASKS[mask]()
