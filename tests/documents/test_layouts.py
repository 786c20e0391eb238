"""Prompts over documents as tokens: where each part lies, its positions and its ranks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidoc import OTHER, QUESTION, SHORT, by_characters, encode_by, question_of

from hopscope.documents.lay_out import lay_out, with_order
from hopscope.documents.layout import Layout
from hopscope.documents.question_set import Document
from hopscope.documents.templates import TEMPLATES, Template, template_of
from hopscope.errors import QueryError, UsageError
from hopscope.models.language_model import LanguageModel

WORDS = Template("I", "<{title}>", "?")
"""With a token for each character: the instruction `I`, documents of four tokens, the question."""
LETTERS = replace(
    question_of(4, [3, 1]), documents=tuple(Document(2 * c, c) for c in ("a", "b", "c", "d"))
)
UNEVEN = replace(
    LETTERS,
    documents=tuple(Document(n * c, c) for n, c in ((1, "a"), (3, "b"), (2, "c"), (4, "d"))),
)
ODD = replace(
    QUESTION,
    documents=(
        Document("Tōkyō 東京", "The city of 東京 \U0001f5fc has\n two  lines."),
        Document("", "Only a text."),
        Document("{title}", "A {text} with {label} and braces {}."),
        Document("  Spaces ", " around "),
    ),
)


def laid(order: Any = "original", question: Any = LETTERS, **options: Any) -> Layout:
    return lay_out(by_characters, question, order, **{"template": WORDS, **options})


def text_of(layout: Layout, segment: tuple[int, int]) -> str:
    """The characters from the first of a segment's tokens to the last."""
    spans = [span for span in layout.offsets[slice(*segment)] if span[1] > span[0]]
    return layout.text[spans[0][0] : spans[-1][1]] if spans else ""


@pytest.mark.parametrize("template", [*TEMPLATES, SHORT], ids=str)
@pytest.mark.parametrize("question", [OTHER, ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("label", ["position", "fixed", "none"])
def test_every_segment_has_the_text_of_its_part(
    tiny_model: LanguageModel, template: Any, question: Any, label: Any
) -> None:
    encode = encode_by(tiny_model)
    if template not in ("plain", "bare", SHORT):  # too long for the context of tiny models
        question = question.without(question.distractors)
        template = replace(template_of(template), instruction="Answer the question.\n\n")
    form = template_of(template)
    order = question.numbers[::-1]
    layout = lay_out(encode, question, order, template=template, label=label, answer="Yes")
    assert [a for a, _ in layout.segments][1:] == [b for _, b in layout.segments][:-1]
    assert layout.segments[0][0] == 0
    assert layout.segments[-1][1] == len(layout) == len(layout.ids)
    parts = [form.instruction]
    for place, index in enumerate(order):
        document = question.documents[question.numbers.index(index)]
        first = form.first_number
        number = {"position": f" [{place + first}]", "fixed": f" [{index + first}]", "none": ""}
        title, text = document.title, document.text
        if not form.verbatim:
            title, text = (" ".join(each.split()) for each in (title, text))
        part = form.document.replace("{title}", "\x00").replace("{text}", "\x01")
        part = part.replace("{label}", number[label]).replace("\x00", title).replace("\x01", text)
        parts.append(part)
    parts += [form.question.replace("{question}", question.question), " Yes"]
    assert layout.text == "".join(parts)
    for segment, part in zip(layout.segments, parts, strict=True):
        assert text_of(layout, segment) == part
        assert tiny_model.decode(layout.ids[slice(*segment)]) == part


def test_a_token_of_two_parts_goes_with_the_one_it_begins_in() -> None:
    def by_threes(text: str) -> Any:
        return range((len(text) + 2) // 3), [
            (i, min(i + 3, len(text))) for i in range(0, len(text), 3)
        ]

    layout = lay_out(by_threes, LETTERS, template=WORDS)
    assert layout.text == "I<aa><bb><cc><dd>?"
    assert layout.segments == ((0, 1), (1, 2), (2, 3), (3, 5), (5, 6), (6, 6))


def test_tokens_without_text_go_with_the_part_that_has_begun() -> None:
    def with_specials(text: str) -> Any:
        ids, spans = by_characters(text)
        return [-1, *ids, -2], [(0, 0), *spans, (0, 0)]

    layout = lay_out(with_specials, LETTERS, template=replace(WORDS, instruction=""))
    assert layout.segments == ((0, 1), (1, 5), (5, 9), (9, 13), (13, 17), (17, 19))


def test_without_an_instruction_its_segment_is_empty() -> None:
    layout = laid(template=replace(WORDS, instruction=""))
    assert layout.segments[0] == (0, 0)
    assert layout.tokens("instruction") == ()
    assert layout.segment_of.tolist() == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5]


def test_a_frame_stands_around_the_prompt_and_before_the_answer() -> None:
    layout = laid(frame=("[", "]"), answer=" x ")
    assert layout.text == "[I<aa><bb><cc><dd>?] x"
    assert [text_of(layout, each) for each in layout.segments] == [
        *("[I", "<aa>", "<bb>", "<cc>", "<dd>", "?]", " x"),
    ]
    assert layout.tokens("last") == (19,)


def test_demonstrations_count_as_the_instruction() -> None:
    other = replace(LETTERS, documents=LETTERS.documents[:2], hops=(replace(LETTERS.hops[1]),))
    layout = laid([2, 0], demonstrations=(other, other), label="position", template=replace(
        WORDS, document="<{title}{label}>"
    ))  # fmt: skip
    shown = "<aa [1]><bb [2]>? a\n\n"
    assert layout.text == f"I{shown}{shown}<cc [1]><aa [2]>?"
    assert text_of(layout, layout.segments[0]) == f"I{shown}{shown}"
    assert len(layout.segments) == 4


def test_demonstrations_keep_their_original_order_whatever_the_order_of_the_question() -> None:
    shown = [laid(order, demonstrations=(LETTERS,)) for order in ("original", [3, 1], "shuffle_2")]
    openings = {text_of(layout, layout.segments[0]) for layout in shown}
    assert openings == {"I<aa><bb><cc><dd>? a\n\n"}


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("position", "< [1]dd>< [2]bb>"),
        ("fixed", "< [4]dd>< [2]bb>"),
        ("none", "<dd><bb>"),
    ],
)
def test_labels_by_hand(label: Any, text: str) -> None:
    layout = laid("gold", label=label, template=replace(WORDS, document="<{label}{title}>"))
    assert layout.text == f"I{text}?"


def test_the_labels_of_the_row_stay_where_only_the_mask_changes() -> None:
    form = replace(WORDS, document="<{label}{title}>")
    original = laid("original", template=form)
    for way in ("mask", "positions", "positions+mask"):
        assert laid("forward_0", template=form, way=way).text == original.text


def test_the_usual_template_is_that_of_the_paper() -> None:
    layout = lay_out(by_characters, OTHER)
    assert layout.text.endswith(
        "only the documents below.\n\n"
        "Document [1](Title: Imagine) The performer is Lennon.\n"
        "Document [2](Title: Lennon) His spouse is Yoko Ono.\n"
        "\nQuestion: Who is the spouse of the performer of Imagine?\nAnswer:"
    )
    plain = lay_out(by_characters, OTHER, template="plain")
    assert plain.text == (
        "The performer is Lennon.\nHis spouse is Yoko Ono.\n"
        "Question: Who is the spouse of the performer of Imagine?\nAnswer:"
    )


def test_templates_by_name_and_as_they_are() -> None:
    assert template_of("cot") is TEMPLATES["cot"]
    assert template_of(WORDS) is WORDS
    with pytest.raises(UsageError, match="unknown template 'cots': choose one of answer_only, cot"):
        laid(template="cots")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": "texts"}, "unknown way to permute 'texts': choose one of text, positions, mask"),
        ({"label": "None"}, "unknown label 'None': choose one of position, fixed, none"),
        ({"order": "fore"}, "unknown order 'fore'"),
        ({"order": "gold", "way": "positions"}, "position ids alone cannot leave documents out"),
        ({"order": "rm_first", "way": "positions"}, "position ids alone cannot leave"),
        ({"order": [0], "way": "positions"}, "position ids alone cannot leave"),
        ({"order": [4], "way": "mask"}, "there is no document 4"),
    ],
)
def test_what_cannot_be_laid_out_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        laid(**options)


def test_by_text_tokens_move_and_positions_and_ranks_follow() -> None:
    layout = laid("forward_0", UNEVEN)
    assert layout.text == "I<a><cc><dddd><bbb>?"
    assert layout.order == layout.shown == (0, 2, 3, 1)
    assert layout.positions == layout.rank == tuple(range(len(layout)))
    assert layout.document(3) == range(8, 14)


# I<a><bbb><cc><dddd>? with lengths 1, 3, 5, 4, 6, 1, in the order a, c, d, b
MOVED = (0, 1, 2, 3, 14, 15, 16, 17, 18, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 19)


@pytest.mark.parametrize(
    ("way", "positions", "rank"),
    [
        ("positions", MOVED, tuple(range(20))),
        ("mask", tuple(range(20)), MOVED),
        ("positions+mask", MOVED, MOVED),
    ],
)
def test_ways_by_hand(way: Any, positions: tuple[int, ...], rank: tuple[int, ...]) -> None:
    layout = laid("forward_0", UNEVEN, way=way)
    assert layout.text == "I<a><bbb><cc><dddd>?"
    assert layout.order == (0, 1, 2, 3)
    assert layout.positions == positions
    assert layout.rank == rank
    assert not layout.hidden.any()


@pytest.mark.parametrize("way", ["mask", "positions+mask"])
def test_a_document_left_out_by_mask_stays_in_the_row_for_nobody(way: Any) -> None:
    layout = laid("rm_first", UNEVEN, way=way)
    assert layout.text == "I<a><bbb><cc><dddd>?"
    assert (layout.order, layout.shown) == ((0, 1, 2, 3), (0, 1, 2))
    assert layout.hidden.tolist() == [False] * 13 + [True] * 6 + [False]
    assert layout.rank[:13] == tuple(range(13))
    assert layout.rank[-1] == 13, "the question comes right after the documents that are shown"
    assert layout.positions == (layout.rank if way == "positions+mask" else tuple(range(20)))


def test_by_text_it_does_not_stand_in_the_row() -> None:
    layout = laid("rm_first", UNEVEN)
    assert layout.text == "I<a><bbb><cc>?"
    assert layout.order == layout.shown == (0, 1, 2)
    assert layout.document(3) == range(0)
    assert layout.tokens("gold 1") == ()
    assert not layout.hidden.any()


@given(st.permutations(range(4)), st.booleans())
def test_ranks_are_the_places_that_the_text_would_give(order: list[int], answered: bool) -> None:
    answer = "yes" if answered else None
    text = laid(order, UNEVEN, answer=answer)
    ranked = laid(order, UNEVEN, answer=answer, way="positions+mask")
    for index in range(4):
        rank = [ranked.rank[token] for token in ranked.document(index)]
        assert rank == list(text.document(index))
    for span in ("instruction", "question", "answer", "last"):
        assert tuple(ranked.rank[token] for token in ranked.tokens(span)) == text.tokens(span)
    assert sorted(ranked.rank) == list(range(len(text)))
    assert ranked.positions == ranked.rank


def test_an_order_may_be_given_again() -> None:
    layout = laid("original", UNEVEN)
    assert with_order(layout, (0, 2, 3, 1)).rank == MOVED
    assert with_order(with_order(layout, (3, 2, 1, 0)), (0, 1, 2, 3)) == layout


def test_with_shared_positions_every_document_begins_at_the_same() -> None:
    layout = laid("original", UNEVEN, answer="ok").with_shared_positions()
    documents = [0, *range(1, 4), *range(1, 6), *range(1, 5), *range(1, 7)]
    assert layout.positions == (*documents, 7, 8, 9, 10)
    assert layout.rank == tuple(range(23))
    for order in ("backward", "shuffle_1"):
        other = laid(order, UNEVEN, answer="ok").with_shared_positions()
        for span in ("question", "answer", "document 1", "document 3"):
            positions = [other.positions[token] for token in other.tokens(span)]
            assert positions == [layout.positions[token] for token in layout.tokens(span)]


def test_shuffles_are_seeded() -> None:
    texts = {laid("shuffle_0", seed=seed).text for seed in range(8)}
    assert len(texts) > 1
    assert laid("shuffle_0", seed=3).text == laid("shuffle_0", seed=3).text


SPANS: list[tuple[Any, str]] = [
    ("instruction", "I"),
    ("documents", "<dd><bb><cc>"),
    ("document 1", "<bb>"),
    ("document 0", ""),
    ("gold", "<dd><bb>"),
    ("gold 1", "<dd>"),
    ("gold 2", "<bb>"),
    ("distractors", "<cc>"),
    ("question", "?"),
    ("last", "?"),
    ("answer", " yes"),
    ([0, -1, 2, 2], "Ids"),
    ([], ""),
    (np.array([1]), "<"),
]


@pytest.mark.parametrize(("span", "text"), SPANS, ids=str)
def test_spans_by_hand(span: Any, text: str) -> None:
    layout = laid([3, 1, 2], answer="yes")
    tokens = layout.tokens(span)
    assert "".join(layout.text[token] for token in tokens) == text
    assert list(tokens) == sorted(set(tokens))


def test_without_an_answer_its_span_is_empty() -> None:
    layout = laid()
    assert layout.tokens("answer") == ()
    assert not layout.answered
    assert layout.tokens("question") == layout.tokens("last") == (17,)


def test_the_last_token_is_the_prompts_whether_there_is_an_answer_or_not() -> None:
    for template in (WORDS, SHORT):
        bare, answered = (laid(template=template, answer=answer) for answer in (None, "x y"))
        assert answered.answered
        assert bare.tokens("last") == answered.tokens("last") == (len(bare) - 1,)
        assert answered.tokens("answer") == tuple(range(len(bare), len(answered)))


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ("documents 1", "unknown span 'documents 1'"),
        ("document", "unknown span 'document'"),
        ("document x", "unknown span"),
        ("document -1", "unknown span"),
        ("question 1", "unknown span"),
        ("Gold", "unknown span"),
        ("", "unknown span"),
        ("document 4", "no document 4: the question has documents 0, 1, 2, 3"),
        ("gold 0", "no gold 0: the question has gold documents 1 to 2"),
        ("gold 3", "no gold 3"),
        ([18], "no token 18: the prompt has 18 tokens"),
        ([-19], "no token -19"),
    ],
)
def test_unknown_spans_are_errors(span: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        laid().tokens(span)


def test_documents_that_are_not_there_are_errors() -> None:
    for index in (-1, 4):
        with pytest.raises(QueryError, match=f"no document {index}"):
            laid().document(index)


@given(st.permutations(range(4)), st.integers(1, 4), st.booleans())
def test_segments_tile_the_row(order: list[int], n: int, answered: bool) -> None:
    layout = laid(order[:n], UNEVEN, answer="a" if answered else None)
    assert layout.segments[0][0] == 0
    assert layout.segments[-1][1] == len(layout)
    assert all(a[1] == b[0] for a, b in pairwise(layout.segments))
    assert len(layout.segments) == n + 2 + answered
    for index in order[:n]:
        title = UNEVEN.documents[index].title
        assert "".join(layout.text[t] for t in layout.document(index)) == f"<{title}>"
