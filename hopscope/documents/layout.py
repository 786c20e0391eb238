"""Provides Layout: a tokenised question over documents, with the token range of each part.

A layout gives three numbers for each token: its place in the row, its position id, and its rank, by
which masks decide which tokens come before which. A permutation of the documents can change each of
them.
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
"""A tokenizer: maps a text to token ids and the half-open character range of each token."""

Span = str | Sequence[int]
SPAN_NAMES = (
    "instruction, documents, document N, gold, gold N, distractors, distractor N, question, "
    "answer, last"
)
"""The names that `Layout.tokens` accepts."""


@dataclass(frozen=True)
class Layout:
    """A tokenised prompt over documents.

    Attributes:
        question: the question, with its documents in the original order.
        order: indices of the documents in the order of the prompt, which may leave some out.
        text: the text of the prompt.
        ids: token ids.
        offsets: half-open character range of each token.
        segments: consecutive half-open token ranges that cover all tokens: the instruction, each
            document of `order`, the question, and the answer if there is one.
        positions: position id of each token.
        rank: rank of each token, by which masks decide which tokens come before which; the place
            in the row unless permuted.
        shown: indices of the documents that other tokens can attend to. Other documents are in the
            row, but hidden.
        answered: whether the last segment is an answer, possibly followed by further turns.
        answers: half-open character ranges of the answers in that segment, one for each turn.
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
        """The name of each segment in figures; gold documents are named after their hop."""
        gold = self.question.gold
        documents = (
            f"hop {gold.index(index) + 1}" if index in gold else f"document {index}"
            for index in self.order
        )
        return ("instruction", *documents, "question", *["answer"] * self.answered)

    def document(self, index: int) -> range:
        """Return the token indices of a document; an empty range if the prompt leaves it out.

        Args:
            index: index of the document in the original order.

        Raises:
            QueryError: if the question has no document of that index.
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
        """Return the token indices of a named part of the prompt, in ascending order.

        Args:
            span: `instruction`; `documents`; `document N`, by its number; `gold`; `gold N`, the
                N-th document of the chain, from 1; `distractors`; `distractor N`, the N-th of
                them in the original order, from 1; `question`; `answer`; `last`, the last token of
                the prompt; or token indices, where negative ones count from the end.

        Returns:
            The indices; none if the part is not in the prompt.

        Raises:
            QueryError: for an unknown name, or a document or token that does not exist.
        """
        if not isinstance(span, str):
            return _checked(span, len(self))
        name, _, number = span.partition(" ")
        groups: dict[str, Sequence[int]] = {
            "documents": self.order,
            "gold": self.question.gold,
            "distractors": self.question.distractors,
        }
        if number:
            return self._numbered_document(name, number)
        if name in groups:
            return tuple(sorted(token for each in groups[name] for token in self.document(each)))
        if name == "last":
            return (self._question_segment[1] - 1,)
        if name == "answer" and not self.answered:
            return ()
        if name not in ("instruction", "question", "answer"):
            raise QueryError(f"unknown span {span!r}: choose one of {SPAN_NAMES}")
        segment = {"instruction": self.segments[0], "answer": self.segments[-1]}
        return tuple(range(*segment.get(name, self._question_segment)))

    def _numbered_document(self, name: str, number: str) -> tuple[int, ...]:
        """Return the token indices of `document N`, `gold N` or `distractor N`."""
        question = self.question
        groups = {"gold": ("gold documents", question.gold)}
        groups["distractor"] = ("distractors", question.distractors)
        if name not in ("document", *groups) or not number.isdigit():
            raise QueryError(f"unknown span '{name} {number}': choose one of {SPAN_NAMES}")
        if name == "document":
            return tuple(self.document(self._index(int(number))))
        noun, group = groups[name]
        if not 1 <= int(number) <= len(group):
            raise QueryError(f"no {name} {number}: the question has {noun} 1 to {len(group)}")
        return tuple(self.document(group[int(number) - 1]))

    def _index(self, number: int) -> int:
        """Return the index of a document by the number that it had before others were dropped."""
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
        """The index of the segment of each token, shape (token,)."""
        lengths = [end - start for start, end in self.segments]
        numbers: np.ndarray = np.repeat(np.arange(len(lengths)), lengths)
        return numbers

    @cached_property
    def hidden(self) -> np.ndarray:
        """Whether each token belongs to a hidden document, shape (token,)."""
        left_out = [1 + place for place, each in enumerate(self.order) if each not in self.shown]
        hidden: np.ndarray = np.isin(self.segment_of, left_out)
        return hidden

    def with_shared_positions(self) -> Layout:
        """Return the layout with all documents starting at the same position id.

        The question follows the longest document. Under a `document_block` mask, the order of the
        documents then makes no difference.
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
    """Return token indices sorted and counted from 0."""
    for each in span:
        if not -n_tokens <= each < n_tokens:
            raise QueryError(f"no token {each}: the prompt has {n_tokens} tokens")
    return tuple(sorted({each % n_tokens for each in span}))
