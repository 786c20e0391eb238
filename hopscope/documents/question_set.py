"""Provides MultiDocQuestion, a question over several documents, and QuestionSet."""

from __future__ import annotations

import hashlib
import html
import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, overload

from hopscope.errors import NearNames, QueryError, tuple_of, whole_number
from hopscope.queries.answers import name_text

logger = logging.getLogger(__name__)


DEMONSTRATION_DISTRACTORS = 2
"""The most distractors that the documents of a demonstration include."""


@dataclass(frozen=True)
class Document:
    """A document with a title and a text.

    Attributes:
        title: the title.
        text: the text.
        links: titles of the documents that it links to; None where that is not known.
    """

    title: str
    text: str
    links: tuple[str, ...] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Hop:
    """One step of the chain that leads to the answer.

    Attributes:
        question: the question of this step, where `#1` stands for the answer of the first step.
        answer: the answer of this step; that of the last step answers the whole question.
        document: index of the document that states the answer.
    """

    question: str
    answer: str
    document: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer", name_text(self.answer) or "")


@dataclass(frozen=True)
class MultiDocQuestion:
    """A question whose answer takes evidence from several documents.

    Args:
        id: identifier, unique in its set.
        question: the text of the question.
        answer: the answer; empty if it is unknown, as in the test part of a data set.
        documents: all documents, in their original order.
        hops: the reasoning steps, each with its gold document; in the order of the chain if
            `ordered` is True. Without an answer, they may be unknown, too.
        aliases: other names of the answer.
        ordered: whether the order of the hops is known, which HotpotQA does not always state.
        numbers: number of each document: its index before other documents were dropped.
        orders: orders of this question's documents by name, each as document numbers; those of
            other questions may differ.
        extra: other fields of the row.

    Raises:
        QueryError: if the question or a document is empty, if there is an answer and no hop, or
            if a hop refers to a document that does not exist.
    """

    id: str
    question: str
    answer: str
    documents: tuple[Document, ...]
    hops: tuple[Hop, ...]
    aliases: tuple[str, ...] = ()
    ordered: bool = True
    numbers: tuple[int, ...] = ()
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("documents", "hops", "aliases", "numbers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.numbers) != len(self.documents):  # replace() has set other documents
            object.__setattr__(self, "numbers", tuple(range(len(self.documents))))
        answer = name_text(self.answer) or ""
        object.__setattr__(self, "answer", answer if answer.strip() else "")
        texts = {"question": self.question}
        for index, document in enumerate(self.documents):
            texts |= {f"title of document {index}": document.title}
            texts |= {f"text of document {index}": document.text}
        for name, text in texts.items():
            if not isinstance(text, str):
                raise QueryError(
                    f"question {self.id!r}: its {name} must be a text, not {text!r:.60}"
                )
        if not self.question.strip():
            raise QueryError(f"question {self.id!r} has an empty question")
        if not self.hops and not self.answer:
            object.__setattr__(self, "ordered", False)
        elif not self.hops:
            raise QueryError(f"question {self.id!r} has no hop; give one for each gold document")
        for index, document in enumerate(self.documents):
            if not document.text.strip():
                raise QueryError(
                    f"question {self.id!r}: document {index} ({document.title!r}) is empty"
                )
        for number, hop in enumerate(self.hops, start=1):
            if not 0 <= hop.document < len(self.documents):
                raise QueryError(
                    f"question {self.id!r}: hop {number} names document {hop.document}, but the "
                    f"question has documents 0 to {len(self.documents) - 1}"
                )

    @property
    def gold(self) -> tuple[int, ...]:
        """Indices of the gold documents in the order of the hops, without repeats."""
        return tuple(dict.fromkeys(hop.document for hop in self.hops))

    @property
    def distractors(self) -> tuple[int, ...]:
        """Indices of the documents that are not gold, in their original order.

        There are none if it is unknown which documents are gold.
        """
        gold = set(self.gold)
        return tuple(each for each in range(len(self.documents)) if gold and each not in gold)

    @property
    def names(self) -> tuple[str, ...]:
        """The answer and its aliases; numbers as text."""
        return tuple(name for name in map(name_text, (self.answer, *self.aliases)) if name)

    @property
    def content(self) -> dict[str, Any]:
        """What is asked, for fingerprints: all but `extra` and the links between documents."""
        content = {**asdict(self), "extra": None}
        for document in content["documents"]:
            del document["links"]
        if not self.orders:  # sets of earlier versions have none
            del content["orders"]
        return content

    @property
    def mentioned(self) -> frozenset[str]:
        """The titles of all documents and the answers of all hops."""
        answers = (self.answer, *(hop.answer for hop in self.hops))
        titles = (document.title for document in self.documents)
        return frozenset(filter(None, (*answers, *titles)))

    def without(self, dropped: Sequence[int]) -> MultiDocQuestion:
        """Return the question without some distractors; the other documents keep their `numbers`.

        Args:
            dropped: indices of the documents to leave out.

        Raises:
            QueryError: if one of them is a gold document.
        """
        if set(dropped) & set(self.gold):
            raise QueryError(
                f"question {self.id!r}: gold documents cannot be dropped; choose among the "
                f"distractors {', '.join(map(str, self.distractors))}"
            )
        kept = [each for each in range(len(self.documents)) if each not in dropped]
        hops = tuple(replace(hop, document=kept.index(hop.document)) for hop in self.hops)
        documents = tuple(self.documents[each] for each in kept)
        numbers = tuple(self.numbers[each] for each in kept)
        return replace(self, documents=documents, hops=hops, numbers=numbers)


@dataclass(frozen=True, repr=False)
class QuestionSet(NearNames, Sequence[MultiDocQuestion]):
    """An immutable sequence of questions over documents, with distinct ids.

    Args:
        questions: the questions.
        name: name of the set in results.
        few_shot: number of demonstrations in each prompt; 0 for none.
        few_shot_seed: seed of the choice of demonstrations.
        pool: the questions from which demonstrations are chosen. An empty pool stands for the
            questions of the set; subsets keep the pool of the set that they were taken from.

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
        advice = "make them with hs.MultiDocQuestion(...), or load rows with hs.load_questions"
        for name in ("questions", "pool"):
            found = tuple_of(name, getattr(self, name), MultiDocQuestion, advice, QueryError)
            object.__setattr__(self, name, found)
        object.__setattr__(self, "pool", self.pool or self.questions)
        whole_number("few_shot", self.few_shot, least=0, error=QueryError)
        whole_number("few_shot_seed", self.few_shot_seed, error=QueryError)
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
        return f"<p>{html.escape(repr(self))}</p>{pd.DataFrame(rows).to_html(index=False)}"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the questions, the few-shot settings and, if it is used, the pool."""
        digest = hashlib.sha256()
        for each in (*self.questions, *(self.pool if self.few_shot else ())):
            digest.update(json.dumps(each.content, sort_keys=True, default=str).encode())
        digest.update(f"{len(self)} {self.few_shot} {self.few_shot_seed}".encode())
        return digest.hexdigest()

    def with_few_shot(self, k: int, seed: int = 0) -> QuestionSet:
        """Return the set with `k` demonstrations in each prompt, chosen with `seed`."""
        return replace(self, few_shot=k, few_shot_seed=seed)

    @cached_property
    def _shuffled(self) -> list[MultiDocQuestion]:
        """Candidates for demonstrations."""
        shuffled = list(self.pool)
        random.Random(self.few_shot_seed).shuffle(shuffled)
        return shuffled

    @cached_property
    def _candidates(self) -> list[tuple[MultiDocQuestion, frozenset[str]]]:
        """The first of them, as far as they were needed, each with the names it mentions."""
        return []

    def _all_candidates(self) -> Iterator[tuple[MultiDocQuestion, frozenset[str]]]:
        for number, question in enumerate(self._shuffled):
            if number == len(self._candidates):
                short = _shortened(question)
                self._candidates.append((short, short.mentioned))
            yield self._candidates[number]

    def demonstrations(self, question: MultiDocQuestion) -> tuple[MultiDocQuestion, ...]:
        """Return the demonstrations for a question, each with at most two distractors.

        No demonstration shares a document title or an answer with the question or with another
        demonstration.

        Raises:
            QueryError: if the pool has too few such questions.
        """
        names, chosen = question.mentioned, list[MultiDocQuestion]()
        for candidate, mentioned in self._all_candidates() if self.few_shot else ():
            if candidate.id != question.id and candidate.answer and names.isdisjoint(mentioned):
                chosen.append(candidate)
                names |= mentioned
            if len(chosen) == self.few_shot:
                break
        if len(chosen) < self.few_shot:
            raise QueryError(
                f"question {question.id!r}: only {len(chosen)} others in {self.name} share no name "
                f"with it, and {self.few_shot} demonstrations were asked for; take fewer"
            )
        return tuple(chosen)

    def filter(self, predicate: Callable[[MultiDocQuestion], bool]) -> QuestionSet:
        """Return the questions for which `predicate` is true; the result may be empty."""
        return replace(self, questions=tuple(each for each in self.questions if predicate(each)))

    def sample(self, n: int, seed: int = 0) -> QuestionSet:
        """Return `n` questions drawn without replacement, in the order of the set.

        Raises:
            QueryError: if `n` is not between 1 and the number of questions.
        """
        if not 1 <= whole_number("n", n, error=QueryError) <= len(self):
            raise QueryError(
                f"cannot sample {n} questions from {self.name}, which has {len(self)}; "
                f"take a number from 1 to {len(self)}"
            )
        chosen = sorted(random.Random(seed).sample(range(len(self)), n))
        return replace(self, questions=tuple(self.questions[index] for index in chosen))


def _shortened(question: MultiDocQuestion) -> MultiDocQuestion:
    """Return a question with at most `DEMONSTRATION_DISTRACTORS` distractors."""
    return question.without(question.distractors[DEMONSTRATION_DISTRACTORS:])
