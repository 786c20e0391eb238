"""The engine under masks against attention written out, its identities, and what it saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from conftest import loaded, short_name
from multidoc import (
    OTHER,
    QUESTION,
    ROPE,
    SHORT,
    Expected,
    assert_reads,
    by_brute_force,
    encode_by,
    keeps_of,
    with_attention,
    with_one_more,
)
from torch import Tensor, nn

import hopscope.engine.masked.read
import hopscope.engine.masked.store
from hopscope.documents.lay_out import lay_out
from hopscope.documents.layout import Layout
from hopscope.documents.question_set import Document
from hopscope.engine.masked.read import read
from hopscope.engine.masked.store import PrefixCache
from hopscope.engine.plain import plain_read
from hopscope.engine.read_out import Readings, ReadOut, Version
from hopscope.engine.support import shares_prefixes
from hopscope.errors import ModelError, UsageError
from hopscope.masks.algebra import Mask
from hopscope.masks.named import (
    causal,
    document_bidirectional,
    document_block,
    itself,
    knock_out,
    prefix_bidirectional,
    visibility_order,
)
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import TINY_FAMILIES

TRACK = tuple(range(0, 512, 7))
N_TOKENS = 3
READ = ReadOut(track=TRACK, max_new_tokens=N_TOKENS)
NEXT = ReadOut(track=tuple(range(512)))
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
rope = pytest.mark.parametrize("name", ROPE, ids=short_name)


def laid(
    model: LanguageModel, order: Any = "original", way: Any = "text", **options: Any
) -> Layout:
    options = {"template": SHORT, "label": "none", **options}
    question = options.pop("question", QUESTION)
    return lay_out(encode_by(model), question, order, way=way, **options)


VARIANTS: tuple[tuple[Any, str, str, Mask], ...] = (
    ("original", "text", "position", causal()),
    ("forward_1", "text", "none", causal()),
    ("forward", "positions", "none", causal()),
    ("shuffle_1", "positions", "none", prefix_bidirectional()),
    ("forward_0", "mask", "fixed", causal()),
    ("shuffle_2", "positions+mask", "none", document_bidirectional()),
    ("rm_first", "mask", "none", document_block()),
    ("gold", "positions+mask", "none", causal()),
    ("gold", "text", "none", document_block(instruction=True)),
    ("shuffle_0", "text", "none", document_block()),
    ("original", "text", "none", visibility_order("shuffle_1")),
    ("original", "text", "none", visibility_order("rm_first") | itself()),
    ("forward", "text", "none", causal() & knock_out("gold 2", "gold 1", layers=[0, 2])),
    ("forward", "text", "none", causal() & knock_out("question", "gold 1", [1], heads=[0, 3])),
    ("forward", "mask", "none", causal() & knock_out("last", "documents", heads=[2])),
    ("original", "text", "none", (causal() & ~knock_out([9, 12], [1, 2])) | itself()),
)


def variants(model: LanguageModel) -> list[Version]:
    return [
        Version(laid(model, order, way, label=label), mask) for order, way, label, mask in VARIANTS
    ]


@cache
def expected(name: str) -> tuple[Expected, ...]:
    """What every variant must give."""
    model = loaded(name)
    return tuple(
        by_brute_force(model, each.layout, keeps_of(model, each.layout, each.mask), N_TOKENS)
        for each in variants(model)
    )


@pytest.mark.parametrize("name", TINY_FAMILIES, ids=short_name)
def test_all_versions_at_once_equal_attention_written_out(name: str) -> None:
    model = loaded(name)
    readings = read(model, variants(model), READ)
    assert readings.masses is None
    assert_reads(readings.outputs, expected(name), TRACK)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        (name, implementation)
        for name in TINY_FAMILIES
        for implementation in ("eager", "sdpa")
        if (name, implementation) != ("tiny-random-gemma2", "sdpa")  # its caps rule sdpa out
    ],
)
def test_a_forward_of_its_own_for_each_equals_attention_written_out(
    name: str, implementation: str
) -> None:
    model = with_attention(name, implementation)
    assert_reads(plain_read(model, variants(model), READ), expected(name), TRACK)
    assert model.config._attn_implementation == implementation


def test_where_attention_cannot_be_replaced_each_has_a_forward_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_model("tiny-random-llama", device="cpu")
    monkeypatch.setattr(model.hf, "_supports_attention_backend", False)
    assert not shares_prefixes(model, 1), "the test's own premise"
    versions = variants(model)
    outputs, plain = read(model, versions, READ).outputs, plain_read(model, versions, READ)
    assert torch.equal(outputs.tracked, plain.tracked)
    assert outputs.tokens == plain.tokens
    assert_reads(outputs, expected("tiny-random-llama"), TRACK)
    with pytest.raises(ModelError, match="does not let its attention be read"):
        read(model, versions, READ, attention=True)


@pytest.mark.parametrize("name", TINY_FAMILIES, ids=short_name)
def test_reading_attention_changes_no_token_and_no_number(name: str) -> None:
    model = loaded(name)
    assert_reads(read(model, variants(model), READ, attention=True).outputs, expected(name), TRACK)


@pytest.mark.parametrize("name", ["tiny-random-llama", "tiny-random-gemma3", "tiny-random-gpt2"])
def test_each_version_alone_gives_the_same(name: str) -> None:
    model = with_attention(name, "eager")
    for version, wanted in zip(variants(model), expected(name), strict=True):
        assert_reads(read(model, [version], READ).outputs, [wanted], TRACK)


@pytest.mark.parametrize("name", ["tiny-random-mistral", "tiny-random-gpt2", "tiny-random-qwen2"])
@pytest.mark.parametrize("max_memory", [1, 200_000])
def test_little_memory_gives_the_same(name: str, max_memory: int) -> None:
    model = loaded(name)
    readings = read(model, variants(model), READ, max_memory=max_memory)
    assert_reads(readings.outputs, expected(name), TRACK)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_is_halved_when_memory_runs_out(
    llama: LanguageModel, rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(_: nn.Module, __: Any, hidden: Tensor) -> None:
        if len(hidden) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = llama.final_norm.register_forward_hook(hook)
    try:
        readings = read(llama, variants(llama), READ)
    finally:
        handle.remove()
    assert_reads(readings.outputs, expected("tiny-random-llama"), TRACK)
    assert "out of memory" in caplog.text


def test_little_memory_gives_the_same_masses(llama: LanguageModel) -> None:
    few, many = (
        masses_of(read(llama, variants(llama), READ, attention=True, max_memory=most))
        for most in (1, None)
    )
    for one, other in zip(few, many, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("name", ["tiny-random-llama", "tiny-random-gemma2", "tiny-random-gpt2"])
def test_every_order_way_and_mask_equals_a_forward_of_its_own(name: str) -> None:
    model = loaded(name)
    masks = [
        causal(),
        prefix_bidirectional(),
        document_bidirectional(),
        document_block(),
        document_block(instruction=True),
        causal() & knock_out("question", "distractors", layers=[2], heads=[1]),
    ]
    ways = ("text", "positions", "mask", "positions+mask")
    orders = ("forward_1", [2, 3, 0, 1])
    versions = [
        Version(laid(model, order, way), mask) for order, way, mask in product(orders, ways, masks)
    ]
    what = replace(READ, max_new_tokens=2, top_k=5, answer_tokens=(41, 77))
    together, alone = read(model, versions, what).outputs, plain_read(model, versions, what)
    torch.testing.assert_close(together.tracked, alone.tracked, **CLOSE)
    torch.testing.assert_close(together.logprob, alone.logprob, **CLOSE)
    assert together.tokens == alone.tokens
    assert together.rank.tolist() == alone.rank.tolist()
    assert together.top_tokens.tolist() == alone.top_tokens.tolist()


@pytest.mark.parametrize(
    "mask",
    [
        causal(),
        document_bidirectional(),
        document_block(),
        prefix_bidirectional(),
        causal() & knock_out("question", "gold 1"),
    ],
    ids=lambda mask: mask.name,
)
def test_an_answer_in_the_row_is_read_as_it_would_be_generated(
    llama: LanguageModel, mask: Mask
) -> None:
    layout, prompt = laid(llama, "forward", answer=" Paris"), laid(llama, "forward")
    n_prompt, seen = len(prompt), keeps_of(llama, prompt, mask)
    assert layout.ids[:n_prompt] == prompt.ids, "the test's own premise"
    for _ in layout.ids[n_prompt:]:
        seen = [with_one_more(each) for each in seen]
    wanted = by_brute_force(llama, layout, seen)
    version = Version(layout, mask)
    assert_reads(read(llama, [version], NEXT).outputs, [wanted], range(512))
    assert_reads(plain_read(llama, [version], NEXT), [wanted], range(512))


@rope
def test_visibility_in_the_order_of_the_row_is_causal(name: str) -> None:
    model = loaded(name)
    layouts = [laid(model, order) for order in ("original", [3, 2, 1, 0])]
    for layout, order in zip(layouts, ("original", [3, 2, 1, 0]), strict=True):
        versions = [Version(layout, causal()), Version(layout, visibility_order(order))]
        for outputs in (read(model, versions, READ).outputs, plain_read(model, versions, READ)):
            torch.testing.assert_close(outputs.tracked[0], outputs.tracked[1], **CLOSE)
            assert outputs.tokens[0] == outputs.tokens[1]


def test_visibility_in_another_order_is_not_causal(llama: LanguageModel) -> None:
    masks = (causal(), visibility_order([3, 2, 1, 0]), visibility_order("shuffle_2", seed=1))
    tracked = read(llama, [Version(laid(llama), mask) for mask in masks], NEXT).outputs.tracked
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (tracked[a] - tracked[b]).abs().max() > 1e-2


@rope
def test_visibility_in_another_order_is_the_layout_with_its_rank(name: str) -> None:
    model = loaded(name)
    for order in ("forward", "shuffle_2", "rm_first"):
        versions = [
            Version(laid(model, order, "mask"), causal()),
            Version(laid(model), visibility_order(order)),
        ]
        outputs = read(model, versions, READ).outputs
        torch.testing.assert_close(outputs.tracked[0], outputs.tracked[1], **CLOSE)


@rope
@pytest.mark.parametrize(
    "mask",
    [causal(), document_bidirectional(), document_block(), document_block(instruction=True)],
    ids=lambda mask: mask.name,
)
def test_positions_and_mask_are_the_text(name: str, mask: Mask) -> None:
    model = loaded(name)
    for order in ("forward", "forward_1", "shuffle_2", "rm_first", "gold", [2, 0]):
        versions = [Version(laid(model, order, way), mask) for way in ("text", "positions+mask")]
        for outputs in (read(model, versions, READ).outputs, plain_read(model, versions, READ)):
            torch.testing.assert_close(outputs.tracked[0], outputs.tracked[1], **CLOSE)
            assert outputs.tokens[0] == outputs.tokens[1]


def test_neither_positions_nor_mask_alone_are_the_text_under_a_causal_mask(
    llama: LanguageModel,
) -> None:
    versions = [
        Version(laid(llama, "shuffle_2", way), causal()) for way in ("text", "positions", "mask")
    ]
    tracked = read(llama, versions, NEXT).outputs.tracked
    assert (tracked[0] - tracked[1]).abs().max() > 1e-2
    assert (tracked[0] - tracked[2]).abs().max() > 1e-2


@rope
def test_positions_alone_are_the_text_where_everything_sees_everything(name: str) -> None:
    model = loaded(name)
    for order in ("forward", "forward_1", "shuffle_2"):
        versions = [
            Version(laid(model, order, way), prefix_bidirectional())
            for way in ("text", "positions", "mask")
        ]
        for outputs in (read(model, versions, READ).outputs, plain_read(model, versions, READ)):
            torch.testing.assert_close(outputs.tracked[0], outputs.tracked[1], **CLOSE)
            assert outputs.tokens[0] == outputs.tokens[1]
        original = read(model, [Version(laid(model), prefix_bidirectional())], READ).outputs
        torch.testing.assert_close(outputs.tracked[2], original.tracked[0], **CLOSE)


@pytest.mark.parametrize("name", TINY_FAMILIES, ids=short_name)
def test_with_blocks_and_shared_positions_the_order_makes_no_difference(name: str) -> None:
    model = loaded(name)
    orders = ("original", "forward_1", "shuffle_2", "forward_0")
    layouts = [laid(model, order) for order in orders]
    for mask in (document_block(), document_block(instruction=True)):
        versions = [Version(layout.with_shared_positions(), mask) for layout in layouts]
        for outputs in (read(model, versions, READ).outputs, plain_read(model, versions, READ)):
            for row in outputs.tracked[1:]:
                torch.testing.assert_close(row, outputs.tracked[0], **CLOSE)
            assert len(set(outputs.tokens)) == 1


def test_with_blocks_and_positions_of_their_own_the_order_does_make_one(
    llama: LanguageModel,
) -> None:
    versions = [Version(laid(llama, o), document_block()) for o in ("original", "shuffle_2")]
    tracked = read(llama, versions, NEXT).outputs.tracked
    assert (tracked[1] - tracked[0]).abs().max() > 1e-2


@pytest.mark.parametrize("name", TINY_FAMILIES, ids=short_name)
def test_leaving_a_document_out_by_mask_and_positions_is_leaving_it_out_of_the_text(
    name: str,
) -> None:
    model = loaded(name)
    for mask in (causal(), prefix_bidirectional(), document_block()):
        versions = [Version(laid(model, "rm_first", w), mask) for w in ("text", "positions+mask")]
        outputs = read(model, versions, READ).outputs
        torch.testing.assert_close(outputs.tracked[0], outputs.tracked[1], **CLOSE)
        assert outputs.tokens[0] == outputs.tokens[1]


def test_what_a_document_left_out_says_makes_no_difference(llama: LanguageModel) -> None:
    other = replace(
        QUESTION,
        documents=(*QUESTION.documents[:3], Document("the Tower", "The France is country.")),
    )
    versions = [
        Version(laid(llama, "rm_first", "mask", question=question), mask)
        for mask in (causal(), prefix_bidirectional())
        for question in (QUESTION, other)
    ]
    assert len(versions[0].layout) == len(versions[1].layout), "the test's own premise"
    assert versions[0].layout.ids != versions[1].layout.ids
    tracked = read(llama, versions, NEXT).outputs.tracked
    torch.testing.assert_close(tracked[0], tracked[1], **CLOSE)
    torch.testing.assert_close(tracked[2], tracked[3], **CLOSE)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many tokens every pass of the engine runs."""
    counts: list[int] = []
    before = hopscope.engine.masked.read.forward_streams

    def counted(model: LanguageModel, cache: Any, ids: Tensor, plan: Any) -> Tensor:
        counts.append(ids.numel())
        return before(model, cache, ids, plan)

    with monkeypatch.context() as patch:
        for module in (hopscope.engine.masked.read, hopscope.engine.masked.store):
            patch.setattr(module, "forward_streams", counted)
        yield counts


def computed(
    monkeypatch: pytest.MonkeyPatch,
    model: LanguageModel,
    versions: Sequence[Version],
    **options: Any,
) -> int:
    """How many tokens are run, in rows of one prompt each, so that none is padding."""
    with counting(monkeypatch) as counts:
        read(model, versions, options.pop("what", NEXT), max_memory=1, **options)
    return sum(counts)


def lengths(layout: Layout) -> list[int]:
    return [end - start for start, end in layout.segments]


@pytest.mark.parametrize("name", TINY_FAMILIES, ids=short_name)
@pytest.mark.parametrize("attention", [False, True])
def test_under_a_causal_mask_what_orders_begin_with_is_computed_once(
    monkeypatch: pytest.MonkeyPatch, name: str, attention: bool
) -> None:
    model = loaded(name)
    orders = [(0, 1, 2, 3), (0, 1, 3, 2), (0, 2, 1, 3), (3, 2, 1, 0), (0, 1), (3,)]
    layouts = [laid(model, order) for order in orders]
    tree = {}
    for layout, order in zip(layouts, orders, strict=True):
        parts = lengths(layout)
        for n in range(len(order) + 1):
            tree[order[:n]] = parts[n]
    questions = sum(lengths(layout)[-1] for layout in layouts)
    versions = [Version(layout, causal()) for layout in layouts]
    count = computed(monkeypatch, model, versions, attention=attention)
    assert count == sum(tree.values()) + questions
    assert count < sum(map(len, layouts))


@rope
def test_under_a_block_mask_each_document_is_computed_once(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = loaded(name)
    orders = ("original", "forward_1", "shuffle_2", "shuffle_5", "gold", "rm_first")
    layouts = [laid(model, order) for order in orders]
    parts = lengths(layouts[0])
    questions = parts[-1] * len({layout.ids for layout in layouts})
    versions = [Version(layout, document_block()) for layout in layouts]
    assert computed(monkeypatch, model, versions) == sum(parts[:-1]) + questions


def test_without_rotary_embeddings_a_document_is_computed_at_every_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = loaded("tiny-random-gpt2")
    layouts = [laid(model, order) for order in ((0, 1), (0, 2), (1, 0))]
    parts = [lengths(layout) for layout in layouts]
    first = parts[0][0] + parts[0][1] + parts[0][2] + parts[1][2]
    again = parts[2][1] + parts[2][2]
    questions = sum(each[-1] for each in parts)
    versions = [Version(layout, document_block()) for layout in layouts]
    assert computed(monkeypatch, model, versions) == first + again + questions


@pytest.mark.parametrize("name", TINY_FAMILIES, ids=short_name)
def test_what_cannot_differ_is_run_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model = loaded(name)
    layouts = [laid(model, order).with_shared_positions() for order in ("original", "shuffle_2")]
    versions = [Version(layout, document_block()) for layout in (*layouts, *layouts)]
    assert computed(monkeypatch, model, versions) == len(layouts[0])
    causal_twice = [
        Version(laid(model), causal()),
        Version(laid(model), visibility_order("original")),
    ]
    assert computed(monkeypatch, model, causal_twice) == len(causal_twice[0].layout)


@pytest.mark.parametrize("name", ["tiny-random-llama", "tiny-random-gpt2"])
def test_a_block_of_which_an_edge_is_cut_is_not_shared(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = loaded(name)
    layout = laid(model)
    cut = causal() & knock_out("document 2", "document 0", layers=[1])
    parts = lengths(layout)
    count = computed(monkeypatch, model, [Version(layout, causal()), Version(layout, cut)])
    assert count == sum(parts) + sum(parts[3:]), "instruction, documents 0 and 1 are shared"


def test_shared_documents_are_computed_once_also_for_generations(
    monkeypatch: pytest.MonkeyPatch, llama: LanguageModel
) -> None:
    layouts = [laid(llama, order) for order in ("original", "shuffle_2")]
    versions = [Version(layout, document_block()) for layout in layouts]
    generated = sum(len(each) for each in read(llama, versions, READ).outputs.tokens)
    assert generated == 2 * N_TOKENS, "the test's own premise: no text ends"
    more = computed(monkeypatch, llama, versions, what=READ) - computed(
        monkeypatch, llama, versions
    )
    assert more == 2 * (N_TOKENS - 1)


def test_duplicates_of_documents_are_computed_once(
    monkeypatch: pytest.MonkeyPatch, llama: LanguageModel
) -> None:
    twins = replace(QUESTION, documents=(*QUESTION.documents, QUESTION.documents[0]))
    layout = laid(llama, question=twins)
    parts = lengths(layout)
    shared = [Version(each, document_block()) for each in (layout, layout.with_shared_positions())]
    for version in shared:
        assert computed(monkeypatch, llama, [version]) == len(layout) - parts[1]
        plain = plain_read(llama, [version], READ)
        outputs = read(llama, [version], READ).outputs
        torch.testing.assert_close(outputs.tracked, plain.tracked, **CLOSE)
        assert outputs.tokens == plain.tokens


@pytest.mark.parametrize("name", ["tiny-random-llama", "tiny-random-gemma3", "tiny-random-gpt2"])
def test_openings_are_computed_once_for_all_questions_and_give_the_same(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = loaded(name)
    first = [Version(laid(model, order), causal()) for order in ("original", "shuffle_2")]
    second = [
        Version(laid(model, order, question=OTHER), causal()) for order in ("original", "backward")
    ]
    n_opening = lengths(first[0].layout)[0]
    openings = PrefixCache()
    without = [computed(monkeypatch, model, each) for each in (first, second)]
    with_openings = [computed(monkeypatch, model, e, prefixes=openings) for e in (first, second)]
    assert with_openings == [without[0], without[1] - n_opening]
    assert len(openings.kept) == 1
    for versions in (first, second, variants(model)):
        outputs = read(model, versions, READ, prefixes=openings).outputs
        plain = plain_read(model, versions, READ)
        torch.testing.assert_close(outputs.tracked, plain.tracked, **CLOSE)
        assert outputs.tokens == plain.tokens


def test_no_more_openings_are_kept_than_were_asked_for(llama: LanguageModel) -> None:
    openings = PrefixCache(most=2)
    for text in ("One.\n", "Two.\n", "Three.\n"):
        template = replace(SHORT, instruction=text)
        versions = [
            Version(laid(llama, order, template=template), causal()) for order in ([0, 1], [1, 0])
        ]
        outputs = read(llama, versions, READ, prefixes=openings).outputs
        torch.testing.assert_close(
            outputs.tracked, plain_read(llama, versions, READ).tracked, **CLOSE
        )
    assert len(openings.kept) == 2


def masses_of(readings: Readings) -> tuple[Tensor, ...]:
    assert readings.masses is not None
    return readings.masses


@pytest.mark.parametrize("name", TINY_FAMILIES, ids=short_name)
def test_masses_are_those_of_transformers_own_attention(name: str) -> None:
    model = with_attention(name, "eager")
    layouts = [laid(model, order) for order in ("original", "shuffle_2", "gold")]
    readings = read(model, [Version(each, causal()) for each in layouts], READ, attention=True)
    for layout, tokens, masses in zip(
        layouts, readings.outputs.tokens, masses_of(readings), strict=True
    ):
        ids = torch.tensor([[*layout.ids, *tokens]])
        with torch.no_grad():
            attentions = model.hf(input_ids=ids, output_attentions=True).attentions
        weights = torch.stack(attentions)[:, 0]  # (layer, head, query, key)
        n, n_segments = len(layout), len(layout.segments)
        assert masses.shape == (len(tokens) + 1, model.n_layers, model.n_heads, n_segments + 1)
        for step in range(len(tokens) + 1):
            row = weights[:, :, n - 1 + step]
            for number, (start, end) in enumerate(layout.segments):
                torch.testing.assert_close(
                    masses[step, :, :, number], row[..., start:end].sum(-1), **CLOSE
                )
            torch.testing.assert_close(masses[step, ..., -1], row[..., n:].sum(-1), **CLOSE)


@pytest.mark.parametrize("name", TINY_FAMILIES, ids=short_name)
def test_what_a_token_gives_to_all_segments_is_one(name: str) -> None:
    model = loaded(name)
    readings = read(model, variants(model), READ, attention=True)
    for masses, version in zip(masses_of(readings), variants(model), strict=True):
        torch.testing.assert_close(masses.sum(-1), torch.ones(masses.shape[:-1]), **CLOSE)
        assert masses.shape[-1] == len(version.layout.segments) + 1
        assert (masses[0, ..., -1] == 0).all(), "the prompt's last token sees nothing generated"


def test_nothing_goes_to_what_is_not_seen(llama: LanguageModel) -> None:
    layout = laid(llama)
    cut = causal() & knock_out("question", "document 1", layers=[2], heads=[1, 3])
    hidden = laid(llama, "rm_first", "mask")
    versions = [Version(layout, cut), Version(hidden, causal())]
    by_layer, left_out = masses_of(read(llama, versions, READ, attention=True))
    assert (by_layer[:, 2, [1, 3], 2] == 0).all()
    assert (by_layer[:, 2, [0, 2], 2] > 0).all()
    assert (by_layer[:, [0, 1, 3], :, 2] > 0).all()
    assert (left_out[..., 1 + 3] == 0).all()
    assert (left_out[..., 1:4] > 0).all()


def test_there_is_a_row_for_each_generated_token(llama: LanguageModel) -> None:
    versions = [Version(laid(llama, order), causal()) for order in ("original", "gold")]
    for n in (0, 1, 4):
        readings = read(llama, versions, ReadOut(max_new_tokens=n), attention=True)
        for masses, tokens in zip(masses_of(readings), readings.outputs.tokens, strict=True):
            assert len(tokens) == n
            assert len(masses) == n + 1
    longer = masses_of(read(llama, versions, ReadOut(max_new_tokens=4), attention=True))
    shorter = masses_of(read(llama, versions, ReadOut(max_new_tokens=1), attention=True))
    torch.testing.assert_close(longer[0][:2], shorter[0], **CLOSE)


@pytest.mark.parametrize("attention", [False, True])
def test_a_generation_stops_where_it_is_told(llama: LanguageModel, attention: bool) -> None:
    versions = variants(llama)
    long = [
        by_brute_force(llama, v.layout, keeps_of(llama, v.layout, v.mask), 5).tokens
        for v in versions[:3]
    ]
    stops = {long[0][:2], long[1][:4]}
    what = ReadOut(track=TRACK, max_new_tokens=5, stop=lambda tokens: tokens in stops)
    wanted = (long[0][:2], long[1][:4], long[2])
    readings = read(llama, versions[:3], what, attention=attention)
    assert readings.outputs.tokens == wanted
    assert plain_read(llama, versions[:3], what).tokens == wanted
    if attention:
        assert [len(each) for each in masses_of(readings)] == [3, 5, 6]


@pytest.mark.parametrize("attention", [False, True])
def test_a_generation_ends_with_the_text(attention: bool) -> None:
    model = load_model("tiny-random-llama", device="cpu")
    versions = variants(model)
    long = expected("tiny-random-llama")
    end = long[0].tokens[1]
    model.hf.generation_config.eos_token_id = end
    wanted = [
        each.tokens[: each.tokens.index(end)] if end in each.tokens else each.tokens
        for each in long
    ]
    assert len(wanted[0]) < N_TOKENS
    assert any(len(each) == N_TOKENS for each in wanted), "some go on"
    readings = read(model, versions, READ, attention=attention)
    assert list(readings.outputs.tokens) == wanted
    assert list(plain_read(model, versions, READ).tokens) == wanted
    if attention:
        assert [len(m) for m in masses_of(readings)] == [len(each) + 1 for each in wanted]


def test_without_new_tokens_only_the_next_is_read(llama: LanguageModel) -> None:
    outputs = read(llama, variants(llama), ReadOut(track=TRACK)).outputs
    assert set(outputs.tokens) == {()}
    assert_reads(
        outputs, [replace(each, tokens=()) for each in expected("tiny-random-llama")], TRACK
    )
    assert set(plain_read(llama, variants(llama), ReadOut(track=TRACK)).tokens) == {()}


def test_no_version_gives_nothing(llama: LanguageModel) -> None:
    for attention in (False, True):
        readings = read(llama, [], READ, attention=attention)
        assert readings.outputs.tokens == ()
        assert readings.outputs.tracked.shape == (0, len(TRACK))


def test_the_order_of_versions_does_not_matter_and_duplicates_agree(llama: LanguageModel) -> None:
    versions, wanted = variants(llama), expected("tiny-random-llama")
    numbers = [3, 0, 3, 15, 7, 0, 12, 7]
    for attention in (False, True):
        readings = read(llama, [versions[n] for n in numbers], READ, attention=attention)
        assert_reads(readings.outputs, [wanted[n] for n in numbers], TRACK)


def test_questions_of_different_lengths_can_be_read_together(llama: LanguageModel) -> None:
    versions = [
        Version(laid(llama, order, question=question), mask)
        for question in (QUESTION, OTHER)
        for order in ("forward", "backward")
        for mask in (causal(), document_block(), prefix_bidirectional())
    ]
    outputs, plain = read(llama, versions, READ).outputs, plain_read(llama, versions, READ)
    torch.testing.assert_close(outputs.tracked, plain.tracked, **CLOSE)
    assert outputs.tokens == plain.tokens


def test_a_mask_under_which_a_token_sees_nothing_is_refused(llama: LanguageModel) -> None:
    version = Version(laid(llama), causal() & ~itself())
    for reader in (read, plain_read):
        with pytest.raises(UsageError, match="token 0 sees nothing at all"):
            reader(llama, [version], READ)


def test_half_precision_is_read_to_its_rounding() -> None:
    model = load_model("tiny-random-llama", device="cpu", dtype=torch.bfloat16)
    orders = ("original", "shuffle_2", "forward_1")
    versions = [Version(laid(model, order), document_block()) for order in orders]
    exact = read(loaded("tiny-random-llama"), versions, NEXT).outputs.tracked.exp()
    rounded = read(model, versions, NEXT).outputs.tracked.exp()
    plain = plain_read(model, versions, NEXT).tracked.exp()
    assert (rounded - exact).abs().sum(-1).max() < 2 * (plain - exact).abs().sum(-1).max() + 0.1
