"""Provides Layout: a question over documents as tokens, and where each part of it lies.

A layout says three things of every token: its place in the row, its position id, and its rank, by
which masks decide who comes before whom. Permuting documents changes any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from hopscope.documents.question_set import MultiDocQuestion
from hopscope.errors import QueryError

Label = Literal["position", "fixed", "none"]
Way = Literal["text", "positions", "mask", "positions+mask"]
Encode = Callable[[str], tuple[Sequence[int], Sequence[tuple[int, int]]]]
"""A tokenizer: text in, token ids and their half-open character ranges out."""

Span = str | Sequence[int]
SPANS = "instruction, documents, document N, gold, gold N, distractors, question, answer, last"


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
