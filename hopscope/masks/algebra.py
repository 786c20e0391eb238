"""Provides attention masks as an algebra of boolean keep-masks, and their lowering.

A mask says which tokens see which: `causal() & knock_out("question", "document 3")`. It knows
nothing of models; `lower` gives what an attention implementation takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from hopscope.documents.layout import Layout, Span, with_order
from hopscope.documents.orders import Order, arrange, order_name
from hopscope.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")


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
        from hopscope.experiments.documents import plots

        seen = self.keep(layout, layer, max(self.n_heads, head + 1))
        shown = seen[min(head, len(seen) - 1)].numpy()
        return plots.mask_grid(shown, layout, ax, self.name)


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


def _segments(layout: Layout) -> Tensor:
    return torch.as_tensor(layout.segment_of)


def _same_segment(layout: Layout) -> Tensor:
    segment = _segments(layout)
    return segment[:, None] == segment[None, :]


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


def within_window(keep: Tensor, positions: Tensor, window: int) -> Tensor:
    """A keep-mask without what lies `window` or more positions away (sliding-window attention).

    Args:
        keep: booleans of shape (..., query, key).
        positions: the position id of each key, shape (key,); the queries are the last of them.
        window: of the attention, in tokens.
    """
    distance = positions[-keep.shape[-2] :, None] - positions[None, :]
    return keep & (distance.abs() < window)


def lower(
    keep: Bool[Tensor, "row head query key"],
    implementation: str,
    dtype: torch.dtype,
) -> Any:
    """A keep-mask as an attention implementation takes it.

    Args:
        keep: booleans, True where a key is seen.
        implementation: `sdpa` takes them as they are; `eager` a float mask to add, 0 or the least
            number of `dtype`; `flex_attention` a `BlockMask`.
        dtype: of the model.

    Returns:
        A tensor of shape (row, head or 1, query, key), or a `BlockMask`.

    Raises:
        UsageError: for another implementation, another dtype than bool, or a query that sees
            nothing (softmax over nothing is not a number).
    """
    if keep.dtype != torch.bool or keep.ndim != 4:
        raise UsageError(
            f"a keep-mask is boolean with shape (row, head, query, key), not {keep.dtype} with "
            f"shape {tuple(keep.shape)}"
        )
    if not bool(keep.any(dim=-1).all()):
        raise UsageError("a query of this keep-mask sees nothing: let it see itself")
    if implementation == "sdpa":
        return keep
    if implementation == "eager":
        nothing = torch.zeros((), dtype=dtype, device=keep.device)
        return torch.where(keep, nothing, torch.finfo(dtype).min)
    if implementation == "flex_attention":
        return _block_mask(keep)
    raise UsageError(
        f"no mask for the attention implementation {implementation!r}: load the model with "
        f"attn_implementation={' or '.join(map(repr, IMPLEMENTATIONS))}"
    )


def _block_mask(keep: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    rows, heads, n_queries, n_keys = keep.shape

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return keep[row, head if heads > 1 else 0, query, key]

    return create_block_mask(
        sees, rows, heads if heads > 1 else None, n_queries, n_keys, device=str(keep.device)
    )
