"""Provides lay_out(): a question over documents as tokens, in one order of the documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np

from hopscope.documents.layout import Encode, Label, Layout, Way
from hopscope.documents.orders import Order, arrange
from hopscope.documents.question_set import MultiDocQuestion
from hopscope.documents.templates import Template, template_of
from hopscope.errors import QueryError, UsageError


def lay_out(
    encode: Encode,
    question: MultiDocQuestion,
    order: Order = "original",
    *,
    way: Way = "text",
    template: str | Template = "answer_only",
    label: Label = "position",
    answer: str | None = None,
    turns: Sequence[tuple[str, str]] = (),
    seed: int = 0,
    demonstrations: Sequence[MultiDocQuestion] = (),
    frame: tuple[str, str] = ("", ""),
) -> Layout:
    """Put a question and its documents into tokens.

    Args:
        encode: the tokenizer.
        question: the question.
        order: of the documents; see `hopscope.documents.orders.arrange`.
        way: what the order changes. `text`: the prompt itself. `positions`: only the position
            ids, which are those of the permuted prompt. `mask`: only the rank, by which masks
            decide who comes before whom. `positions+mask`: both, which a model with relative
            positions cannot tell from `text` (labels aside).
        template: a name of `TEMPLATES`, or a template.
        label: the number in front of a document: its displayed `position`, its index in the
            original order (`fixed`), or `none`.
        answer: a text to lay out behind the prompt, for teacher forcing.
        turns: further questions with their answers, which stand behind the answer.
        seed: of shuffles.
        demonstrations: questions with documents and answers that stand in front, in their
            original order; they count as the instruction.
        frame: texts before and after the whole, such as a chat template's.

    Raises:
        QueryError: for an order that the question cannot have, or that leaves documents out by
            `positions` alone.
        UsageError: for another way, label or template, or turns without an answer.

    Example:
        >>> layout = lay_out(encode, question, "forward", way="mask")   # doctest: +SKIP
        >>> layout.tokens("gold 1")                                     # doctest: +SKIP
    """
    if way not in get_args(Way):
        raise UsageError(f"unknown way to permute {way!r}: choose {', '.join(get_args(Way))}")
    if label not in get_args(Label):
        raise UsageError(f"unknown label {label!r}: choose {', '.join(get_args(Label))}")
    if turns and answer is None:
        raise UsageError("turns stand behind an answer: give answer, too")
    form = template_of(template)
    asked = [(f"\n{form.question.format(question=each)}", told) for each, told in turns]
    shown = "".join(f"{_demonstration(each, form, label)}\n\n" for each in demonstrations)
    opening = frame[0] + form.instruction + shown

    def text(documents: tuple[int, ...]) -> Layout:
        parts = _parts(question, documents, form, label)
        whole = [opening, *parts[:-1], parts[-1] + frame[1]]
        return _tokenised(encode, question, documents, whole, answer, asked)

    wanted = arrange(question, order, seed)
    if way == "text":
        return text(wanted)
    whole = tuple(range(len(question.documents)))
    if way == "positions":
        check_positions(question, wanted)
    layout = text(whole)
    permuted = with_order(layout, wanted)
    if way == "positions":
        return replace(layout, positions=permuted.rank)
    return replace(permuted, positions=permuted.rank) if way == "positions+mask" else permuted


def check_positions(question: MultiDocQuestion, shown: Sequence[int]) -> None:
    """Refuse to leave documents out by position ids alone.

    Raises:
        QueryError: if some are not shown.
    """
    if len(shown) < len(question.documents):
        raise QueryError(
            "position ids alone cannot leave documents out: permute by text, mask or positions+mask"
        )


def _parts(
    question: MultiDocQuestion, order: Sequence[int], template: Template, label: Label
) -> list[str]:
    """The text of each document in an order, and of the question."""
    parts = []
    for place, index in enumerate(order):
        number = {
            "position": f" [{place + 1}]",
            "fixed": f" [{question.numbers[index] + 1}]",
            "none": "",
        }[label]
        document = question.documents[index]
        title, text = _one_line(document.title), _one_line(document.text)
        parts.append(template.document.format(label=number, title=title, text=text))
    return [*parts, template.question.format(question=question.question)]


def _demonstration(question: MultiDocQuestion, template: Template, label: Label) -> str:
    parts = _parts(question, range(len(question.documents)), template, label)
    return f"{''.join(parts)} {question.answer}"


def _tokenised(
    encode: Encode,
    question: MultiDocQuestion,
    order: tuple[int, ...],
    parts: list[str],
    answer: str | None,
    turns: Sequence[tuple[str, str]],
) -> Layout:
    answers = []
    if answer is not None:
        start, behind = sum(map(len, parts)), ""
        for asked, told in (("", answer), *turns):
            behind += f"{asked} {told.strip()}"
            end = start + len(behind)
            answers.append((end - len(told.strip()), end))
        parts = [*parts, behind]
    text = "".join(parts)
    ids, offsets = encode(text)
    return Layout(
        question=question,
        order=order,
        text=text,
        ids=tuple(ids),
        offsets=tuple((int(a), int(b)) for a, b in offsets),
        segments=_segments(parts, offsets),
        positions=tuple(range(len(ids))),
        rank=tuple(range(len(ids))),
        shown=order,
        answered=answer is not None,
        answers=tuple(answers),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _segments(
    parts: Sequence[str], offsets: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """The tokens of each part: those that begin in it; one without text goes with the next."""
    ends = np.cumsum([len(part) for part in parts])
    starts, place = [], 0
    for start, end in offsets:
        if end > start:
            place = max(place, int(np.searchsorted(ends, start, side="right")))
        starts.append(place)
    bounds = np.searchsorted(starts, np.arange(len(parts) + 1), side="left")
    return tuple((int(a), int(b)) for a, b in pairwise(bounds))


def with_order(layout: Layout, wanted: tuple[int, ...]) -> Layout:
    """The layout with the ranks of another order, and only its documents shown.

    A token's rank is its place in the row that text of that order would give. Documents that are
    left out keep the places they have.
    """
    ranks = np.arange(len(layout))
    place = layout.segments[0][1]
    documents = [layout.document(each) for each in wanted]
    later = [range(*segment) for segment in layout.segments[1 + len(layout.order) :]]
    for tokens in (*documents, *later):
        ranks[tokens.start : tokens.stop] = np.arange(place, place + len(tokens))
        place += len(tokens)
    return replace(layout, rank=tuple(int(each) for each in ranks), shown=wanted)
