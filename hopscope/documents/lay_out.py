"""Provides lay_out(): tokenises a question over documents, in a given order of the documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np

from hopscope.documents.layout import Encode, Label, Layout, Way
from hopscope.documents.orders import Order, arrange
from hopscope.documents.question_set import Document, MultiDocQuestion
from hopscope.documents.templates import Template, template_of
from hopscope.errors import QueryError, UsageError, one_of


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
    """Tokenise a question and its documents as one prompt.

    Args:
        encode: the tokenizer.
        question: the question and its documents.
        order: order of the documents; see `hopscope.documents.orders.arrange`.
        way: what the order changes. `text`: the prompt itself. `positions`: only the position
            ids, which become those of the permuted prompt. `mask`: only the rank of each token, by
            which masks decide which tokens come before which. `positions+mask`: both; except for
            the labels, a model with relative positions cannot tell this from `text`.
        template: a name of `TEMPLATES`, or a template.
        label: the number printed with a document: its `position` in the prompt, its index in the
            original order (`fixed`), or `none`.
        answer: a text to append to the prompt, for teacher forcing: behind a space, or at once
            in a chat whose frame ends the prompt.
        turns: further pairs of a question and its answer, appended after `answer`.
        seed: seed of shuffled orders.
        demonstrations: questions that precede the prompt with their documents, in the original
            order, and their answers. Their tokens belong to the instruction.
        frame: texts before and after the prompt, such as those of a chat template.

    Returns:
        The tokens, with the segments, position ids and ranks that belong to them.

    Raises:
        QueryError: if the question cannot have this order, or if the order leaves out documents
            and `way` is `positions`.
        UsageError: for an unknown way, label or template, or for turns without an answer or in a
            chat.

    Example:
        >>> layout = lay_out(encode, question, "forward", way="mask")   # doctest: +SKIP
        >>> layout.tokens("gold 1")                                     # doctest: +SKIP
    """
    one_of("way to permute", way, get_args(Way))
    one_of("label", label, get_args(Label))
    if turns and answer is None:
        raise UsageError("turns stand behind an answer, and there is none: pass answer= as well")
    form = template_of(template)
    in_chat = form.chat and bool(frame[1])
    if turns and in_chat:
        raise UsageError("a chat template takes one question with its answer: leave turns out")
    further = [(f"\n{form.question.format(question=each)}", reply) for each, reply in turns]
    shown = "".join(f"{_demonstration(each, form, label)}\n\n" for each in demonstrations)
    opening = frame[0] + form.instruction + shown

    def tokenised(documents: tuple[int, ...]) -> Layout:
        parts = _parts(question, documents, form, label)
        framed = [opening, *parts[:-1], parts[-1] + frame[1]]
        return _tokenised(encode, question, documents, framed, answer, further, spaced=not in_chat)

    documents = arrange(question, order, seed)
    if way == "text":
        return tokenised(documents)
    if way == "positions":
        check_positions(question, documents)
    layout = tokenised(tuple(range(len(question.documents))))
    permuted = with_order(layout, documents)
    if way == "positions":
        return replace(layout, positions=permuted.rank)
    return replace(permuted, positions=permuted.rank) if way == "positions+mask" else permuted


def check_positions(question: MultiDocQuestion, shown: Sequence[int]) -> None:
    """Check that an order that is applied to position ids alone keeps all documents.

    Args:
        question: the question.
        shown: indices of the documents that the order keeps.

    Raises:
        QueryError: if it leaves out a document.
    """
    if len(shown) < len(question.documents):
        raise QueryError(
            "position ids alone cannot leave documents out: permute by text, mask or positions+mask"
        )


def _parts(
    question: MultiDocQuestion, order: Sequence[int], template: Template, label: Label
) -> list[str]:
    """Return the text of each document in an order, and last that of the question."""
    parts = []
    for place, index in enumerate(order):
        number = {
            "position": template.number(place),
            "fixed": template.number(question.numbers[index]),
            "none": "",
        }[label]
        parts.append(document_text(question.documents[index], template, number))
    return [*parts, template.question.format(question=question.question)]


def document_text(document: Document, template: Template, number: str) -> str:
    """Return a document as it stands in a prompt, with its number."""
    title, text = document.title, document.text
    if not template.verbatim:
        title, text = _one_line(title), _one_line(text)
    return template.document.format(label=number, title=title, text=text)


def _demonstration(question: MultiDocQuestion, template: Template, label: Label) -> str:
    """Return the text of a question with its documents and its answer."""
    parts = _parts(question, range(len(question.documents)), template, label)
    return f"{''.join(parts)} {question.answer}"


def _tokenised(
    encode: Encode,
    question: MultiDocQuestion,
    order: tuple[int, ...],
    parts: list[str],
    answer: str | None,
    turns: Sequence[tuple[str, str]],
    *,
    spaced: bool,
) -> Layout:
    """Tokenise the parts of a prompt, followed by an answer and further turns if there are any."""
    answers = []
    if answer is not None:
        start, appended = sum(map(len, parts)), ""
        for prompt, reply in (("", answer), *turns):
            appended += f"{prompt}{' ' * spaced}{reply.strip()}"
            end = start + len(appended)
            answers.append((end - len(reply.strip()), end))
        parts = [*parts, appended]
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
    """Return the half-open token range of each part.

    A token belongs to the part in which its text begins; a token without text belongs to the part
    of the token after it.
    """
    ends = np.cumsum([len(part) for part in parts])
    starts, place = [], 0
    for start, end in offsets:
        if end > start:
            place = max(place, int(np.searchsorted(ends, start, side="right")))
        starts.append(place)
    bounds = np.searchsorted(starts, np.arange(len(parts) + 1), side="left")
    return tuple((int(a), int(b)) for a, b in pairwise(bounds))


def with_order(layout: Layout, wanted: tuple[int, ...]) -> Layout:
    """Return the layout with the token ranks of another order of the documents.

    The rank of a token is its place in the prompt that this order would give. Documents that the
    order leaves out are hidden, and keep their ranks.

    Args:
        layout: the tokenised prompt.
        wanted: indices of the documents in the other order.
    """
    ranks = np.arange(len(layout))
    place = layout.segments[0][1]
    documents = [layout.document(each) for each in wanted]
    later = [range(*segment) for segment in layout.segments[1 + len(layout.order) :]]
    for tokens in (*documents, *later):
        ranks[tokens.start : tokens.stop] = np.arange(place, place + len(tokens))
        place += len(tokens)
    return replace(layout, rank=tuple(int(each) for each in ranks), shown=wanted)
