"""Masks against booleans written out by loops, the laws of their algebra, and their lowering."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multidoc import QUESTION, by_characters
from torch import Tensor

from hopscope.documents.lay_out import lay_out
from hopscope.documents.layout import Layout
from hopscope.documents.question_set import Document
from hopscope.documents.templates import Template
from hopscope.errors import UsageError
from hopscope.masks.algebra import Mask
from hopscope.masks.lowering import lower, within_window
from hopscope.masks.named import (
    MASKS,
    causal,
    document_bidirectional,
    document_block,
    itself,
    knock_out,
    mask_of,
    prefix_bidirectional,
    switched,
    visibility_order,
)

mpl.use("Agg")

QUESTION_OF_LETTERS = replace(
    QUESTION,
    documents=tuple(Document(n * c, c) for n, c in ((1, "a"), (3, "b"), (2, "c"), (2, "d"))),
)
FORM = Template("In", "{title}/", "Q:")
N_HEADS = 3


def laid(order: Any = "original", way: Any = "text", answer: str | None = None) -> Layout:
    return lay_out(by_characters, QUESTION_OF_LETTERS, order, way=way, template=FORM, answer=answer)


LAYOUTS = {
    f"{order}, {way}": laid(order, way)
    for order, way in (
        ("original", "text"),
        ("forward_0", "text"),
        ("gold", "text"),
        ("forward_0", "mask"),
        ("shuffle_1", "positions+mask"),
        ("forward_0", "positions"),
    )
}


def part_of(layout: Layout, token: int) -> str:
    """`instruction`, the letter of a document, or `question`, read off the text."""
    before = layout.text[:token]
    if token < len(FORM.instruction):
        return "instruction"
    if token >= len(layout.text) - len(FORM.question):
        return "question"
    return "abcd"[layout.order[before.count("/")]]


def in_document(layout: Layout, token: int) -> bool:
    return part_of(layout, token) in "abcd"


def by_loops(layout: Layout, sees: Callable[[int, int], bool]) -> Tensor:
    n = len(layout)
    return torch.tensor([[sees(query, key) for key in range(n)] for query in range(n)])


def earlier(layout: Layout, query: int, key: int) -> bool:
    return layout.rank[key] <= layout.rank[query]


def same(layout: Layout, query: int, key: int) -> bool:
    return part_of(layout, query) == part_of(layout, key)


RULES: dict[str, tuple[Mask, Callable[[Layout, int, int], bool]]] = {
    "causal": (causal(), earlier),
    "prefix_bidirectional": (prefix_bidirectional(), lambda *_: True),
    "document_bidirectional": (
        document_bidirectional(),
        lambda at, q, k: earlier(at, q, k) or (in_document(at, q) and same(at, q, k)),
    ),
    "document_block": (
        document_block(),
        lambda at, q, k: earlier(at, q, k) and (not in_document(at, q) or same(at, q, k)),
    ),
    "document_block_instruction": (
        document_block(instruction=True),
        lambda at, q, k: (
            earlier(at, q, k)
            and (not in_document(at, q) or same(at, q, k) or part_of(at, k) == "instruction")
        ),
    ),
    "itself": (itself(), lambda _, q, k: q == k),
    "knock_out(question->document 1)": (
        knock_out("question", "document 1"),
        lambda at, q, k: not (part_of(at, q) == "question" and part_of(at, k) == "b"),
    ),
    "knock_out(documents->documents)": (
        knock_out("documents", "documents"),
        lambda at, q, k: q == k or not (in_document(at, q) and in_document(at, k)),
    ),
    "knock_out(last->gold 1)": (
        knock_out("last", "gold 1"),
        lambda at, q, k: not (q == len(at) - 1 and part_of(at, k) == "d"),
    ),
    "knock_out([3,4]->[0,3])": (
        knock_out([3, 4], [0, 3]),
        lambda _, q, k: q == k or not (q in (3, 4) and k in (0, 3)),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", RULES)
def test_masks_by_loops(layout: Layout, name: str) -> None:
    mask, rule = RULES[name]
    expected = by_loops(layout, lambda query, key: rule(layout, query, key))
    kept = mask.keep(layout)
    assert kept.dtype == torch.bool
    assert kept.shape == (1, len(layout), len(layout))
    assert torch.equal(kept[0], expected)
    assert mask.name == name
    assert torch.equal(mask.keep(layout, layer=3, n_heads=N_HEADS), kept)
    assert (mask.layers, mask.by_head) == (frozenset(), False)


@pytest.mark.parametrize(
    "order", ["original", "forward_0", "shuffle_2", "gold", "rm_first", [2, 0]]
)
def test_a_visibility_order_is_causal_in_that_order_and_blind_to_the_rest(order: Any) -> None:
    layout, text = laid(), laid(order)
    shown = "".join("abcd"[each] for each in text.order)

    def place(token: int) -> int:
        part = part_of(layout, token)
        if part not in "abcd":
            return len(text) - (len(layout) - token) if part == "question" else token
        index = "abcd".index(part)
        return text.document(index).start + token - layout.document(index).start

    def sees(query: int, key: int) -> bool:
        if part_of(layout, key) in "abcd" and part_of(layout, key) not in shown:
            return same(layout, query, key) and key <= query
        if part_of(layout, query) in "abcd" and part_of(layout, query) not in shown:
            return bool(kept[query, key])  # what nobody sees may see what it likes
        return place(key) <= place(query)

    kept = visibility_order(order).keep(layout)[0]
    assert torch.equal(kept, by_loops(layout, sees))
    name = order if isinstance(order, str) else "2-0"
    drawn = ", seed 0" if name.startswith("shuffle") else ""  # another seed is another mask
    assert visibility_order(order).name == f"visibility_order({name}{drawn})"


def test_shuffles_of_visibility_are_seeded() -> None:
    kept = [visibility_order("shuffle_0", seed).keep(laid()) for seed in range(6)]
    assert any(not torch.equal(each, kept[0]) for each in kept)
    mask = laid("shuffle_0", "mask")
    assert torch.equal(causal().keep(mask), visibility_order("shuffle_0").keep(laid()))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("way", ["mask", "positions+mask"])
def test_documents_that_are_not_shown_are_seen_by_themselves_alone(name: str, way: Any) -> None:
    layout = laid("rm_first", way)
    kept = (RULES[name][0] | itself()).keep(layout)[0]
    hidden = [token for token in range(len(layout)) if part_of(layout, token) == "d"]
    others = [token for token in range(len(layout)) if token not in hidden]
    assert not kept[others][:, hidden].any()
    assert kept[hidden].any(dim=-1).all()
    text = laid("rm_first")
    assert len(others) == len(text), "the test's own premise"
    if not name.startswith("knock_out(["):
        expected = (RULES[name][0] | itself()).keep(text)[0]
        assert torch.equal(kept[others][:, others], expected)


def test_a_knock_out_holds_in_its_layers_alone() -> None:
    layout, mask = laid(), causal() & knock_out("question", "gold", layers=[3, 1])
    cut = causal() & knock_out("question", "gold")
    for layer in range(5):
        expected = cut if layer in (1, 3) else causal()
        assert torch.equal(mask.keep(layout, layer), expected.keep(layout))
    assert mask.layers == {1, 3}
    assert mask.name == "causal & knock_out(question->gold, layers 1,3)"
    assert not mask.by_head


def test_a_knock_out_holds_in_its_heads_alone() -> None:
    layout, mask = laid(), causal() & knock_out("question", "gold", heads=[2, 0])
    kept = mask.keep(layout, n_heads=N_HEADS)
    assert kept.shape == (N_HEADS, len(layout), len(layout))
    cut = (causal() & knock_out("question", "gold")).keep(layout)[0]
    assert not torch.equal(cut, causal().keep(layout)[0])
    for head in range(N_HEADS):
        assert torch.equal(kept[head], cut if head in (0, 2) else causal().keep(layout)[0])
    assert mask.by_head
    assert mask.layers == frozenset()
    assert mask.name == "causal & knock_out(question->gold, heads 0,2)"
    assert mask == causal() & knock_out("question", "gold", heads=(0, 2, 2))


def test_a_mask_holds_in_some_layers_and_heads_and_another_elsewhere() -> None:
    layout = laid()
    mask = switched(document_block(), "prefix_bidirectional", layers=[2, 1], heads=iter([1]))
    inside, elsewhere = document_block().keep(layout)[0], prefix_bidirectional().keep(layout)[0]
    for layer in range(4):
        for head, seen in enumerate(mask.keep(layout, layer, N_HEADS).expand(N_HEADS, -1, -1)):
            assert torch.equal(seen, inside if layer in (1, 2) and head == 1 else elsewhere)
    assert (mask.layers, mask.n_heads) == ({1, 2}, 2)
    assert mask.name == "switched(document_block, layers 1,2, heads 1, else prefix_bidirectional)"
    nested = switched(mask, layers=[1, 3])
    assert nested.layers == {1, 2, 3}
    assert torch.equal(nested.keep(layout, 1, N_HEADS), mask.keep(layout, 1, N_HEADS))
    assert torch.equal(nested.keep(layout, 2), causal().keep(layout))
    assert switched("document_block") == document_block()
    cut = knock_out("question", "gold")
    inner = switched("document_block", causal() & cut, layers=[3])
    outer = switched("document_block", layers=[3]) & cut
    assert inner.name != outer.name, "names are keys of tables"
    with pytest.raises(UsageError, match="there is no layer -1"):
        switched("document_block", layers=[-1])


def test_knock_outs_of_layers_and_heads_add_up() -> None:
    layout = laid()
    first = knock_out("question", "gold 1", layers=[0], heads=[1])
    second = knock_out("question", "gold 2", layers=[2])
    mask = causal() & first & second
    assert mask.layers == {0, 2}
    assert mask.by_head
    alone = (causal() & knock_out("question", "gold 1")).keep(layout)[0]
    kept = mask.keep(layout, 0, N_HEADS)
    assert torch.equal(kept[1], alone)
    assert torch.equal(kept[0], causal().keep(layout)[0])
    assert mask.keep(layout, 1, N_HEADS).all(dim=0).equal(causal().keep(layout)[0])
    cut = (causal() & knock_out("question", "gold 2")).keep(layout)[0]
    assert all(torch.equal(each, cut) for each in mask.keep(layout, 2, N_HEADS))
    assert mask.name == (
        "causal & knock_out(question->gold 1, layers 0, heads 1) & "
        "knock_out(question->gold 2, layers 2)"
    )


ANSWERED = [
    *MASKS,
    "itself",
    "knock_out(question->document 1)",
    "knock_out(last->gold 1)",
]


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("order", ["original", "forward_0", "rm_first"])
@pytest.mark.parametrize("way", ["text", "mask"])
def test_an_answer_sees_what_the_last_token_of_the_prompt_sees_and_nothing_sees_it(
    name: str, order: str, way: Any
) -> None:
    mask = RULES[name][0] | itself()
    prompt, layout = laid(order, way), laid(order, way, answer="so")
    n, kept = len(prompt), mask.keep(layout)[0]
    bare = mask.keep(prompt)[0]
    assert len(layout) == n + 3
    assert torch.equal(kept[:n, :n], bare)
    for place in range(n, n + 3):
        assert torch.equal(kept[place, :n], bare[n - 1])
        assert kept[place, n:].tolist() == [key <= place for key in range(n, n + 3)]
    assert not kept[:n, n:].any(), "the prompt sees its answer"


SIMPLE = [mask for mask, _ in RULES.values()]
SIMPLE += [
    knock_out("question", "gold 2", layers=[1]),
    knock_out("documents", "instruction", layers=[0, 1], heads=[1]),
    visibility_order("forward_0"),
]


def combined() -> st.SearchStrategy[Mask]:
    def more(inner: st.SearchStrategy[Mask]) -> st.SearchStrategy[Mask]:
        return st.one_of(
            st.tuples(inner, inner).map(lambda two: two[0] & two[1]),
            st.tuples(inner, inner).map(lambda two: two[0] | two[1]),
            inner.map(lambda one: ~one),
        )

    return st.recursive(st.sampled_from(SIMPLE), more, max_leaves=4)


LAYOUT = laid("forward_0", "mask")


def seen(mask: Mask, layer: int = 0) -> Tensor:
    """Who sees whom by head; every token sees itself, so that no row is empty."""
    return (mask | itself()).keep(LAYOUT, layer, N_HEADS).expand(N_HEADS, -1, -1)


@given(combined(), combined(), st.integers(0, 2))
def test_the_laws_of_de_morgan(a: Mask, b: Mask, layer: int) -> None:
    assert torch.equal(seen(~(a & b), layer), seen(~a | ~b, layer))
    assert torch.equal(seen(~(a | b), layer), seen(~a & ~b, layer))


@given(combined(), combined(), st.integers(0, 2))
def test_signs_mean_what_they_mean_for_booleans(a: Mask, b: Mask, layer: int) -> None:
    itself_ = torch.eye(len(LAYOUT), dtype=torch.bool)
    assert torch.equal(seen(a & b, layer), (seen(a, layer) & seen(b, layer)) | itself_)
    assert torch.equal(seen(a | b, layer), seen(a, layer) | seen(b, layer))
    assert torch.equal(seen(~~a, layer), seen(a, layer))
    assert torch.equal(seen(~a, layer), ~seen(a, layer) | itself_)
    assert torch.equal(seen(a & b, layer), seen(b & a, layer))
    assert (a & b).layers == (a | b).layers == a.layers | b.layers
    assert (a & ~b).by_head == (a.by_head or b.by_head)
    assert (~a).layers == a.layers


@given(combined())
def test_where_a_mask_says_that_it_is_alike_it_is(mask: Mask) -> None:
    kept = [(mask | itself()).keep(LAYOUT, layer, N_HEADS) for layer in range(4)]
    usual = kept[3]
    for layer in range(4):
        if layer not in mask.layers:
            assert torch.equal(kept[layer], usual)
        assert len(kept[layer]) == (N_HEADS if mask.by_head else 1) or (
            mask.by_head and len(kept[layer]) == 1
        )


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        (causal() & itself(), "causal & itself"),
        (causal() | itself(), "causal | itself"),
        (~causal(), "~causal"),
        (~(causal() | itself()), "~(causal | itself)"),
        (causal() & itself() & causal(), "causal & itself & causal"),
        ((causal() | itself()) & causal(), "(causal | itself) & causal"),
        (causal() & (causal() | itself()), "causal & (causal | itself)"),
        (causal() & ~itself() | itself(), "(causal & ~itself) | itself"),
        (knock_out(range(3), [7, 0]), "knock_out([0,1,2]->[7,0])"),
        (knock_out([-1], [2, -3]), "knock_out([-1]->[2,-3])"),
        (
            knock_out("last", "gold 1", layers=[4, 3], heads=[0]),
            "knock_out(last->gold 1, layers 3,4, heads 0)",
        ),
    ],
)
def test_names_by_hand(mask: Mask, name: str) -> None:
    assert mask.name == name
    assert repr(mask) == f"Mask({name})"


def test_different_masks_have_different_names() -> None:
    kinds = (*RULES.values(), (document_block(instruction=True), None))
    assert len({mask.name for mask, _ in kinds}) == len(RULES)
    assert causal() == causal()
    assert knock_out("last", "gold 1") == knock_out("last", "gold 1")
    assert knock_out("last", [1, 2]) == knock_out("last", (1, 2))


def test_masks_by_name() -> None:
    for name in MASKS:
        assert mask_of(name).name == name
        assert torch.equal(mask_of(name).keep(LAYOUT), RULES[name][0].keep(LAYOUT))
    mask = causal() & itself()
    assert mask_of(mask) is mask
    with pytest.raises(UsageError, match="unknown mask 'casual': choose one of causal, prefix"):
        mask_of("casual")


@pytest.mark.parametrize(
    ("mask", "token"),
    [
        (~prefix_bidirectional(), 0),
        (causal() & ~itself(), 0),
        (itself() & knock_out([5], [5]) & ~causal(), 0),
        ((causal() & ~knock_out("last", [0, 1])) | (itself() & knock_out("last", "gold")), None),
        (causal() & ~knock_out("question", "gold") | (itself() & ~causal()), 0),
    ],
)
def test_a_token_that_sees_nothing_is_an_error(mask: Mask, token: int | None) -> None:
    if token is None:
        assert mask.keep(laid()).any(dim=-1).all()
        return
    with pytest.raises(UsageError, match=f"token {token} sees nothing at all"):
        mask.keep(laid())
    assert (mask | itself()).keep(laid()).any(dim=-1).all()


def test_a_token_that_sees_nothing_in_one_head_or_layer_is_an_error() -> None:
    mask = itself() & (knock_out("last", "gold", heads=[1]) | ~itself())
    assert mask.keep(laid(), 0, N_HEADS).any(dim=-1).all()
    blind = (causal() & ~itself()) | knock_out("documents", "documents", layers=[2], heads=[1])
    with pytest.raises(UsageError, match="sees nothing"):
        ((blind & ~causal()) & itself()).keep(laid(), 2, N_HEADS)


def test_a_knock_out_never_takes_a_token_from_itself() -> None:
    kept = (causal() & knock_out("documents", "documents")).keep(laid())[0]
    assert kept.diagonal().all()


@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize("n_queries", [1, 4, 6])
def test_a_window_cuts_by_position_on_both_sides(window: int, n_queries: int) -> None:
    positions = torch.tensor([0, 4, 5, 1, 2, 3])
    keep = torch.rand(2, n_queries, 6, generator=torch.Generator().manual_seed(0)) < 0.8
    cut = within_window(keep, positions, window)
    for head in range(2):
        for query in range(n_queries):
            at = int(positions[6 - n_queries + query])
            for key in range(6):
                near = abs(at - int(positions[key])) < window
                assert bool(cut[head, query, key]) == (bool(keep[head, query, key]) and near)


def some_keep(heads: int = 2, rows: int = 2, n_queries: int = 5, n_keys: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(rows, heads, n_queries, n_keys, generator=generator) < 0.5
    keep[..., 0] = True
    return keep


def test_sdpa_takes_the_booleans() -> None:
    keep = some_keep()
    assert lower(keep, "sdpa", torch.float32) is keep


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eager_takes_numbers_to_add(dtype: torch.dtype) -> None:
    keep = some_keep()
    lowered = lower(keep, "eager", dtype)
    assert lowered.dtype == dtype
    assert torch.equal(lowered == 0, keep)
    assert (lowered[~keep] == torch.finfo(dtype).min).all()
    weights = torch.softmax(torch.zeros(keep.shape) + lowered.float(), dim=-1)
    torch.testing.assert_close(weights, keep / keep.sum(-1, keepdim=True))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(("n_queries", "n_keys"), [(5, 9), (140, 300)])
def test_flex_attention_takes_a_block_mask(heads: int, n_queries: int, n_keys: int) -> None:
    from torch.nn.attention.flex_attention import create_mask

    keep = some_keep(heads, 2, n_queries, n_keys)
    keep[0, :, :128, 128:256] = False
    lowered = lower(keep, "flex_attention", torch.float32)
    assert lowered.shape == (2, heads, n_queries, n_keys)
    dense = create_mask(lowered.mask_mod, 2, heads, n_queries, n_keys, device="cpu")
    assert torch.equal(dense, keep)
    blocks = lowered.to_dense()
    assert bool(blocks[0, 0, 0, 0])
    if n_keys > 256:
        assert blocks.shape == (2, heads, 2, 3)
        assert not blocks[0, :, 0, 1].any(), "a block that nobody sees is left out"
        assert blocks[1].all()


@pytest.mark.parametrize(
    ("keep", "implementation", "message"),
    [
        (
            some_keep().float(),
            "sdpa",
            r"expected a boolean keep-mask of shape .*, not torch.float32",
        ),
        (some_keep().int(), "eager", "not torch.int32"),
        (some_keep()[0], "sdpa", r"of shape \(2, 5, 9\)"),
        (some_keep() & False, "eager", "a query of this keep-mask sees nothing"),
        (some_keep(), "flash_attention_2", "no mask for the attention implementation 'flash"),
    ],
)
def test_what_cannot_be_lowered_is_an_error(
    keep: Tensor, implementation: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        lower(keep, implementation, torch.float32)


def test_one_blind_query_is_enough_for_an_error() -> None:
    keep = some_keep()
    keep[1, 1, 3] = False
    for implementation in ("sdpa", "eager", "flex_attention"):
        with pytest.raises(UsageError, match="sees nothing"):
            lower(keep, implementation, torch.float32)


@pytest.mark.parametrize("layout", [laid(), laid("forward_0", "mask"), laid(answer="so")])
def test_a_mask_draws_who_sees_whom(layout: Layout) -> None:
    from matplotlib import pyplot as plt

    mask = causal() & knock_out("question", "gold 1")
    _, ax = plt.subplots()
    assert mask.show(layout, ax) is ax
    (image,) = ax.get_images()
    assert torch.equal(torch.tensor(image.get_array().astype(bool)), mask.keep(layout)[0])
    assert ax.get_title() == mask.name
    labels = [label.get_text() for label in ax.get_xticklabels()]
    parts = ["instruction", "document 0", "hop 2", "document 2", "hop 1", "question"]
    assert labels == parts + ["answer"] * layout.answered
    assert [label.get_text() for label in ax.get_yticklabels()] == labels
    plt.close("all")
    assert causal().show(layout) is not ax
    plt.close("all")


@pytest.mark.parametrize("head", [0, 1, 2])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_mask_draws_the_layer_and_the_head_that_were_asked_for(layer: int, head: int) -> None:
    from matplotlib import pyplot as plt

    mask = causal() & knock_out("question", "gold 1", layers=[1], heads=[0, 1])
    ax = mask.show(laid(), layer=layer, head=head)
    drawn = torch.tensor(ax.get_images()[0].get_array().astype(bool))
    plt.close("all")
    expected = mask.keep(laid(), layer, N_HEADS).expand(N_HEADS, -1, -1)[head]
    assert torch.equal(drawn, expected)
