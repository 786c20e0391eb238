"""Provides questions over documents: MultiDocQuestion, sets of them, and where they come from."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, overload

from hopscope.errors import QueryError

logger = logging.getLogger(__name__)


DEMONSTRATION_DISTRACTORS = 2


@dataclass(frozen=True)
class Document:
    """A title and a text."""

    title: str
    text: str


@dataclass(frozen=True)
class Hop:
    """One step of the chain that leads to the answer.

    Attributes:
        question: what is asked in this step; `#1` stands for the answer of the first.
        answer: its answer; the last one's is the whole question's.
        document: index of the document that says it.
    """

    question: str
    answer: str
    document: int


@dataclass(frozen=True)
class MultiDocQuestion:
    """A question whose answer is spread over documents.

    Args:
        id: of the question.
        question: what is asked.
        answer: the answer.
        documents: all documents, in their original order.
        hops: the steps, each with its gold document. In the order of the chain if `ordered`.
        aliases: other names of the answer.
        ordered: whether the order of the hops is known; HotpotQA does not always tell.
        numbers: what the documents are called: their indices before some were dropped.
        extra: other fields of the row.

    Raises:
        QueryError: for no document, an empty one, no hop, or a hop in a document that is not there.
    """

    id: str
    question: str
    answer: str
    documents: tuple[Document, ...]
    hops: tuple[Hop, ...]
    aliases: tuple[str, ...] = ()
    ordered: bool = True
    numbers: tuple[int, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("documents", "hops", "aliases", "numbers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.numbers) != len(self.documents):  # other documents than those they were of
            object.__setattr__(self, "numbers", tuple(range(len(self.documents))))
        for name in ("question", "answer"):
            if not getattr(self, name).strip():
                raise QueryError(f"question {self.id!r} has an empty {name}")
        if not self.hops:
            raise QueryError(f"question {self.id!r} has no hop: which documents are gold?")
        for index, document in enumerate(self.documents):
            if not document.text.strip():
                raise QueryError(
                    f"question {self.id!r}: document {index} ({document.title!r}) is empty"
                )
        for number, hop in enumerate(self.hops, start=1):
            if not 0 <= hop.document < len(self.documents):
                raise QueryError(
                    f"question {self.id!r}: hop {number} names document {hop.document}, but there "
                    f"are documents 0 to {len(self.documents) - 1}"
                )

    @property
    def gold(self) -> tuple[int, ...]:
        """Indices of the gold documents, each once, in the order of the hops."""
        return tuple(dict.fromkeys(hop.document for hop in self.hops))

    @property
    def distractors(self) -> tuple[int, ...]:
        """Indices of the other documents, in their original order."""
        return tuple(each for each in range(len(self.documents)) if each not in self.gold)

    @property
    def names(self) -> tuple[str, ...]:
        """The answer and its aliases."""
        return (self.answer, *self.aliases)

    @property
    def mentioned(self) -> frozenset[str]:
        """The titles of the documents, and the answers of the hops."""
        answers = (self.answer, *(hop.answer for hop in self.hops))
        titles = (document.title for document in self.documents)
        return frozenset(filter(None, (*answers, *titles)))

    def without(self, dropped: Sequence[int]) -> MultiDocQuestion:
        """The question without some distractors; the others keep their `numbers`.

        Raises:
            QueryError: if one of them is gold.
        """
        if set(dropped) & set(self.gold):
            raise QueryError(f"question {self.id!r}: gold documents cannot be dropped")
        kept = [each for each in range(len(self.documents)) if each not in dropped]
        hops = tuple(replace(hop, document=kept.index(hop.document)) for hop in self.hops)
        documents = tuple(self.documents[each] for each in kept)
        numbers = tuple(self.numbers[each] for each in kept)
        return replace(self, documents=documents, hops=hops, numbers=numbers)


@dataclass(frozen=True, repr=False)
class QuestionSet(Sequence[MultiDocQuestion]):
    """An immutable sequence of questions over documents, with distinct ids.

    Args:
        questions: the questions.
        name: what the set is called in results.
        few_shot: how many demonstrations a prompt has; 0 for none.
        few_shot_seed: of the choice of demonstrations.
        pool: where demonstrations are taken from: the set that this one was chosen from. An
            empty pool stands for the questions themselves.

    Raises:
        QueryError: for repeated ids, or a negative number of demonstrations.

    Example:
        >>> questions = load_questions("world-docs", distractors=4)
        >>> len(questions[0].documents)
        6
    """

    questions: tuple[MultiDocQuestion, ...]
    name: str = "questions"
    few_shot: int = 0
    few_shot_seed: int = 0
    pool: tuple[MultiDocQuestion, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", tuple(self.questions))
        object.__setattr__(self, "pool", tuple(self.pool) or self.questions)
        if self.few_shot < 0:
            raise QueryError(f"few_shot must be 0 or more, not {self.few_shot}")
        ids = [question.id for question in self.questions]
        if len(set(ids)) < len(ids):
            twice = next(each for each in ids if ids.count(each) > 1)
            raise QueryError(f"{self.name}: two questions have the id {twice!r}; ids must differ")

    def __len__(self) -> int:
        return len(self.questions)

    def __iter__(self) -> Iterator[MultiDocQuestion]:
        return iter(self.questions)

    @overload
    def __getitem__(self, index: int) -> MultiDocQuestion: ...
    @overload
    def __getitem__(self, index: slice) -> QuestionSet: ...
    def __getitem__(self, index: int | slice) -> MultiDocQuestion | QuestionSet:
        if isinstance(index, slice):
            return replace(self, questions=self.questions[index])
        return self.questions[index]

    def __repr__(self) -> str:
        return f"QuestionSet({self.name!r}, {len(self)} questions, few_shot={self.few_shot})"

    def _repr_html_(self) -> str:
        import pandas as pd

        rows = [
            {
                "id": each.id,
                "question": each.question,
                "answer": each.answer,
                "hops": len(each.hops),
                "documents": len(each.documents),
            }
            for each in self.questions[:10]
        ]
        return f"<p>{self!r}</p>{pd.DataFrame(rows).to_html(index=False)}"

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of what the set asks."""
        digest = hashlib.sha256()
        for each in (*self.questions, *(self.pool if self.few_shot else ())):
            content = {**asdict(each), "extra": None}
            digest.update(json.dumps(content, sort_keys=True, default=str).encode())
        digest.update(f"{len(self)} {self.few_shot} {self.few_shot_seed}".encode())
        return digest.hexdigest()

    def with_few_shot(self, k: int, seed: int = 0) -> QuestionSet:
        """The set with `k` demonstrations in every prompt, chosen by `seed`."""
        return replace(self, few_shot=k, few_shot_seed=seed)

    @cached_property
    def _candidates(self) -> list[tuple[MultiDocQuestion, frozenset[str]]]:
        """What demonstrations are chosen from, in the order of the choice, with their names."""
        shuffled = list(self.pool)
        random.Random(self.few_shot_seed).shuffle(shuffled)
        return [(short, short.mentioned) for short in map(_shortened, shuffled)]

    def demonstrations(self, question: MultiDocQuestion) -> tuple[MultiDocQuestion, ...]:
        """The demonstrations of a question, at most two distractors in each.

        None of them shares a title or an answer with the question or with another one.

        Raises:
            QueryError: if the pool has too few of that kind.
        """
        taken, found = question.mentioned, list[MultiDocQuestion]()
        for candidate, mentioned in self._candidates if self.few_shot else ():
            if candidate.id != question.id and not taken & mentioned:
                found.append(candidate)
                taken |= mentioned
            if len(found) == self.few_shot:
                break
        if len(found) < self.few_shot:
            raise QueryError(
                f"question {question.id!r}: only {len(found)} others in {self.name} share no name "
                f"with it, and {self.few_shot} demonstrations were asked for; take fewer"
            )
        return tuple(found)

    def filter(self, predicate: Callable[[MultiDocQuestion], bool]) -> QuestionSet:
        """The questions for which `predicate` is true; there may be none."""
        return replace(self, questions=tuple(each for each in self.questions if predicate(each)))

    def sample(self, n: int, seed: int = 0) -> QuestionSet:
        """`n` questions drawn without replacement, in the order of the set.

        Raises:
            QueryError: if `n` is not between 1 and the number of questions.
        """
        if not 1 <= n <= len(self):
            raise QueryError(
                f"cannot sample {n} questions from {self.name}, which has {len(self)}; "
                f"take a number from 1 to {len(self)}"
            )
        chosen = sorted(random.Random(seed).sample(range(len(self)), n))
        return replace(self, questions=tuple(self.questions[index] for index in chosen))


def _shortened(question: MultiDocQuestion) -> MultiDocQuestion:
    """A question with at most two distractors, as a demonstration has."""
    return question.without(question.distractors[DEMONSTRATION_DISTRACTORS:])
