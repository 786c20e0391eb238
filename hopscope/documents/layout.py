"""Provides Layout: a question over documents as tokens, and where each part of it lies.

A layout says three things of every token: its place in the row, its position id, and its rank, by
which masks decide who comes before whom. Permuting documents changes any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from hopscope.documents.orders import Order, arrange
from hopscope.documents.question_set import MultiDocQuestion
from hopscope.errors import QueryError, UsageError

Label = Literal["position", "fixed", "none"]
Way = Literal["text", "positions", "mask", "positions+mask"]
Encode = Callable[[str], tuple[Sequence[int], Sequence[tuple[int, int]]]]
"""A tokenizer: text in, token ids and their half-open character ranges out."""

Span = str | Sequence[int]
SPANS = "instruction, documents, document N, gold, gold N, distractors, question, answer, last"


@dataclass(frozen=True)
class Template:
    """How a question and its documents become a prompt.

    Attributes:
        instruction: what comes before the documents.
        document: one document, with `{title}`, `{text}` and `{label}`.
        question: what comes after the documents, with `{question}`.
        one_line: whether the first line of what is generated is the answer; else all of it is, or
            what follows the last "answer is".
        max_new_tokens: how many tokens an answer may take.
        chat: whether the prompt is a user's turn in the tokenizer's chat template.
    """

    instruction: str
    document: str
    question: str
    one_line: bool = True
    max_new_tokens: int = 16
    chat: bool = False


_DOCUMENT = "Document{label}(Title: {title}) {text}\n"
_SHORT = "Answer the question with a name or a short phrase, using only the documents below.\n\n"
TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "answer_only": Template(_SHORT, _DOCUMENT, "\nQuestion: {question}\nAnswer:"),
        "cot": Template(
            "Answer the question using only the documents below. Think step by step, and end with "
            '"The answer is: ".\n\n',
            _DOCUMENT,
            "\nQuestion: {question}\nLet's think step by step.",
            one_line=False,
            max_new_tokens=128,
        ),
        "plain": Template("", "{text}\n", "Question: {question}\nAnswer:"),
        "bare": Template("", "{text}\n", "{question}", max_new_tokens=4),
        "chat": Template(_SHORT, _DOCUMENT, "\nQuestion: {question}", max_new_tokens=24, chat=True),
    }
)
"""`answer_only` and `cot` after Huang et al. 2025, section 3; `plain` for base models and short
documents: their texts alone, and no instruction; `bare` for the documents of models trained here,
nothing but texts and question; `chat` for models with a chat template."""

CHAT_SLOT = "\x00documents\x00"


@dataclass(frozen=True)
class Layout:
    """A prompt over documents as tokens.

    Attributes:
        question: what is asked, with the documents in their original order.
        order: indices of the documents as they stand in the row; they may be fewer.
        text: the prompt.
        ids: its tokens.
        offsets: the character range of each token.
        segments: half-open token ranges that follow one another and cover all: the instruction,
            each document of `order`, the question, and the answer if there is one.
        positions: the position id of each token.
        rank: by which masks decide what comes before what; the place in the row, unless permuted.
        shown: indices of the documents that can be seen; others stand in the row for nobody.
        answered: whether the last segment is an answer, or several turns.
        answers: the character ranges of the answers in it, one a turn.
    """

    question: MultiDocQuestion
    order: tuple[int, ...]
    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    segments: tuple[tuple[int, int], ...]
    positions: tuple[int, ...]
    rank: tuple[int, ...]
    shown: tuple[int, ...]
    answered: bool = False
    answers: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def segment_names(self) -> tuple[str, ...]:
        """What each segment is called in pictures; gold documents by their hop."""
        gold = self.question.gold
        documents = (
            f"hop {gold.index(index) + 1}" if index in gold else f"document {index}"
            for index in self.order
        )
        return ("instruction", *documents, "question", *["answer"] * self.answered)

    def document(self, index: int) -> range:
        """The tokens of a document; none if it was left out of the row.

        Raises:
            QueryError: if the question has no such document.
        """
        if not 0 <= index < len(self.question.documents):
            raise QueryError(
                f"no document {index}: the question has documents 0 to "
                f"{len(self.question.documents) - 1}"
            )
        if index not in self.order:
            return range(0)
        return range(*self.segments[1 + self.order.index(index)])

    def tokens(self, span: Span) -> tuple[int, ...]:
        """The indices of the tokens of a named part, in the order of the row.

        Args:
            span: `instruction`; `documents`; `document N` (its index); `gold`; `gold N` (the N-th
                of the chain, from 1); `distractors`; `question`; `answer`; `last`, the prompt's
                last token; or indices, of which negative ones count from the end.

        Raises:
            QueryError: for another name, or an index that is not there.
        """
        if not isinstance(span, str):
            return _checked(span, len(self))
        name, _, number = span.partition(" ")
        gold = self.question.gold
        groups: dict[str, Sequence[int]] = {
            "documents": self.order,
            "gold": gold,
            "distractors": self.question.distractors,
        }
        if number:
            if name not in ("document", "gold") or not number.isdigit():
                raise QueryError(f"unknown span {span!r}: choose one of {SPANS}")
            if name == "gold" and not 1 <= int(number) <= len(gold):
                raise QueryError(f"no {span}: the question has gold documents 1 to {len(gold)}")
            if name == "gold":
                return tuple(self.document(gold[int(number) - 1]))
            return tuple(self.document(self._index(int(number))))
        if name in groups:
            return tuple(sorted(token for each in groups[name] for token in self.document(each)))
        if name == "last":
            return (self._question_segment[1] - 1,)
        if name == "answer" and not self.answered:
            return ()
        if name not in ("instruction", "question", "answer"):
            raise QueryError(f"unknown span {span!r}: choose one of {SPANS}")
        segment = {"instruction": self.segments[0], "answer": self.segments[-1]}
        return tuple(range(*segment.get(name, self._question_segment)))

    def _index(self, number: int) -> int:
        """The index of a document by its number, from which dropped ones are not taken off."""
        numbers = self.question.numbers
        if number not in numbers:
            raise QueryError(
                f"no document {number}: the question has documents {', '.join(map(str, numbers))}"
            )
        return numbers.index(number)

    @property
    def _question_segment(self) -> tuple[int, int]:
        return self.segments[-2 if self.answered else -1]

    @cached_property
    def segment_of(self) -> np.ndarray:
        """For each token the number of its segment, shape (token,)."""
        lengths = [end - start for start, end in self.segments]
        numbers: np.ndarray = np.repeat(np.arange(len(lengths)), lengths)
        return numbers

    @cached_property
    def hidden(self) -> np.ndarray:
        """For each token whether it belongs to a document that nobody sees, shape (token,)."""
        left_out = [1 + place for place, each in enumerate(self.order) if each not in self.shown]
        hidden: np.ndarray = np.isin(self.segment_of, left_out)
        return hidden

    def with_shared_positions(self) -> Layout:
        """The layout with every document beginning at the same position id.

        The question comes after the longest of them. With `document_block` masks the order of the
        documents then makes no difference at all.
        """
        lengths = [end - start for start, end in self.segments]
        first = lengths[0]
        starts = [0, *[first] * len(self.order)]
        after = first + max((lengths[1 + n] for n in range(len(self.order))), default=0)
        for length in lengths[len(starts) :]:
            starts.append(after)
            after += length
        positions = [s + i for s, n in zip(starts, lengths, strict=True) for i in range(n)]
        return replace(self, positions=tuple(positions))


def _checked(span: Sequence[int], n_tokens: int) -> tuple[int, ...]:
    for each in span:
        if not -n_tokens <= each < n_tokens:
            raise QueryError(f"no token {each}: the prompt has {n_tokens} tokens")
    return tuple(sorted({each % n_tokens for each in span}))


def template_of(template: str | Template) -> Template:
    """A template by its name.

    Raises:
        UsageError: if there is none of that name.
    """
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise UsageError(f"unknown template {template!r}: choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[template]


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
