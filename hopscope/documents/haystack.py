"""Provides haystack(): questions whose distractors were retrieved, in the retriever's order.

HaystackCraft ("Haystack Engineering", 2025): the gold documents and, by rank, what a retriever
finds beside them, until the haystack has its size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from hopscope.documents.corpus import Corpus, Source, corpus_of, load_corpus
from hopscope.documents.lay_out import document_text
from hopscope.documents.orders import RETRIEVED
from hopscope.documents.question_set import Document, MultiDocQuestion, QuestionSet
from hopscope.documents.retrieval import Ranking, Retriever, Scorer, retriever_of
from hopscope.documents.templates import Template, template_for, template_of
from hopscope.errors import QueryError, UsageError
from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.language_model import LanguageModel
from hopscope.queries.answers import matches, normalise

DocumentModel = LanguageModel | EncoderDecoder
YES_OR_NO = ("yes", "no")
"""Answers that stand in passages without answering anything."""


@dataclass(frozen=True)
class Budget:
    """How much of a haystack is distractors.

    Attributes:
        size: distractors at most.
        tokens: tokens of distractors, as they stand in a prompt; the last one is cut to fit.
        model: whose tokens are counted.
        form: how documents are written.

    Raises:
        UsageError: for neither size nor tokens, tokens without a model, or less than one.
    """

    size: int | None
    tokens: int | None
    model: DocumentModel | None
    form: Template

    def __post_init__(self) -> None:
        if self.size is None and self.tokens is None:
            raise UsageError("say how large a haystack is: give size= (distractors) or tokens=")
        for name in ("size", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be 1 or more, not {value}")
        if self.tokens is not None and self.model is None:
            raise UsageError("tokens= needs the model whose tokens are counted: give model=")

    def filled(
        self, ranked: Iterator[tuple[int, Document]], question: MultiDocQuestion
    ) -> dict[int, Document]:
        """Return as many of some passages as there is room for, by their places in the corpus.

        Args:
            ranked: the passages with their places, the nearest first.
            question: the question, for messages.

        Raises:
            QueryError: if there are too few.
        """
        room, chosen = self.tokens, dict[int, Document]()
        while len(chosen) != self.size and room != 0:
            place, passage = next(ranked, (None, None))
            if place is None or passage is None:
                wanted = f"{self.size} distractors" if room is None else f"{self.tokens} tokens"
                raise QueryError(
                    f"question {question.id!r}: the corpus has only {len(chosen)} passages that "
                    f"can be distractors, not the {wanted} that were asked for; ask for less, or "
                    "give a larger corpus="
                )
            if room is not None:
                length = self.length(passage)
                if length > room:
                    cut = self._cut(passage, room)
                    return chosen if cut is None else {**chosen, place: cut}
                room -= length
            chosen[place] = passage
        return chosen

    def length(self, passage: Document) -> int:
        """Return how many tokens a document has in a prompt."""
        assert self.model is not None
        written = document_text(passage, self.form, self.form.number(0))
        return len(self.model.tokenize(written, special=False))

    def _cut(self, passage: Document, room: int) -> Document | None:
        """Return a passage without the last tokens of its text; None if nothing of it is left."""
        assert self.model is not None
        offsets = self.model.tokenize(passage.text, special=False).offsets
        # What stands around the text takes room, too, so that fewer than `room` tokens are left.
        for n_tokens in range(min(room, len(offsets) - 1), 0, -1):
            text = passage.text[: offsets[n_tokens - 1][1]].rstrip()
            if text and self.length(replace(passage, text=text)) <= room:
                return replace(passage, text=text)
        return None


@dataclass(frozen=True)
class HaystackMaker:
    """Makes the haystacks of one retriever; passages are indexed once, and haystacks kept.

    Attributes:
        retriever: the retriever.
        corpus: the passages that may be distractors.
        questions: whose gold documents are scored with them.
        budget: how large a haystack is.
        seed: of the order of passages that are equally near.
    """

    retriever: Retriever
    corpus: Corpus
    questions: QuestionSet
    budget: Budget
    seed: int = 0
    _made: dict[str, MultiDocQuestion] = field(init=False, default_factory=dict, repr=False)

    @cached_property
    def passages(self) -> tuple[Document, ...]:
        """The corpus, followed by the gold documents that are not in it."""
        gold = (each.documents[index] for each in self.questions for index in each.gold)
        return tuple(dict.fromkeys((*self.corpus.passages, *gold)))

    @cached_property
    def _places(self) -> Mapping[Document, int]:
        return {passage: place for place, passage in enumerate(self.passages)}

    @cached_property
    def _scorer(self) -> Scorer:
        return self.retriever.index(self.passages)

    def of(self, question: MultiDocQuestion) -> MultiDocQuestion:
        """Return a question of the set in its haystack, the documents in the order of their scores.

        Passages that are equally near stand in a random order; gold documents that were not found
        come last.

        Raises:
            QueryError: if it is unknown which documents are gold, or passages do not suffice.
        """
        if question.id not in self._made:
            self._made[question.id] = self._make(question)
        return self._made[question.id]

    def _make(self, question: MultiDocQuestion) -> MultiDocQuestion:
        """Make a haystack."""
        if not question.gold:
            raise QueryError(
                f"question {question.id!r} does not say which documents are gold, so that it has "
                "no haystack; leave it out (questions.filter(lambda q: q.gold))"
            )
        gold = [self._places[question.documents[index]] for index in question.gold]
        scores, ties = self._scorer(question.question), _drawn(self.seed, question.id)
        names = [each for each in question.names if normalise(each) not in YES_OR_NO]
        found = (
            (place, self.passages[place])
            for place in _by_score(range(len(scores)), scores, gold, ties)
            if place < len(self.corpus) and place not in gold and not self._holds(place, names)
        )
        chosen = self.budget.filled(found, question)
        chosen |= {place: self.passages[place] for place in gold}
        # Equal scores are drawn anew, or gold documents would stand behind what was drawn first.
        order = _by_score(list(chosen), scores, gold, ties)
        hops = [
            replace(hop, document=order.index(self._places[question.documents[hop.document]]))
            for hop in question.hops
        ]
        numbers = tuple(range(len(order)))
        told = {"retriever": self.retriever.name, "scores": tuple(scores[order].tolist())}
        return replace(
            question,
            documents=tuple(chosen[place] for place in order),
            hops=tuple(hops),
            numbers=numbers,
            orders=dict(zip(RETRIEVED, (numbers, numbers[::-1]), strict=True)),
            extra={**question.extra, **told},
        )

    def _holds(self, place: int, names: Sequence[str]) -> bool:
        """Return whether a passage names the answer."""
        passage = self.passages[place]
        return matches(f"{passage.title}\n{passage.text}", names)


def _by_score(
    places: Sequence[int], scores: np.ndarray, gold: Sequence[int], ties: np.random.Generator
) -> list[int]:
    """Return places of passages, the nearest first; gold that was not found is last.

    Args:
        places: of the passages.
        scores: of all passages; NaN for those that were not found.
        gold: places of the gold documents.
        ties: draws the order of passages that are equally near.
    """
    at = np.asarray(places)
    unfound = np.isnan(scores[at])
    keys = ties.random(len(at)), -np.nan_to_num(scores[at]), unfound & np.isin(at, gold), unfound
    order: list[int] = at[np.lexsort(keys)].tolist()
    return order


def _drawn(seed: int, question: str) -> np.random.Generator:
    """Return a source of randomness that depends on a seed and on a question's id alone."""
    digest = hashlib.sha256(f"{seed} {question}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def haystack_makers(
    questions: QuestionSet,
    retrievers: Sequence[str | Retriever | Ranking],
    budget: Budget,
    *,
    corpus: Source | None,
    seed: int,
) -> list[HaystackMaker]:
    """Return what makes the haystacks of some retrievers.

    Args:
        questions: the questions.
        retrievers: names, retrievers, or functions, whose names must differ.
        budget: how large a haystack is.
        corpus: as for `haystack`.
        seed: of the order of passages that are equally near, as all are for `random`.

    Raises:
        UsageError: for a retriever that is none, or two of one name.
        QueryError: for a corpus that cannot be read, or documents that are not about one world.
    """
    found = [retriever_of(each, budget.model) for each in retrievers]
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        twice = next(each for each in names if names.count(each) > 1)
        raise UsageError(
            f"two retrievers are called {twice!r}; give one of them another name=, such as "
            "PageRank(seeds=5, name='ppr-5')"
        )
    if corpus is None and any(each.extra.get("own_names") for each in questions):
        raise QueryError(
            f"the names in {questions.name} are drawn anew for each question, so that documents of "
            "several questions contradict each other: load 'world-docs-shared', in which each "
            "entity has one name, or give corpus="
        )
    passages = corpus_of(questions) if corpus is None else load_corpus(corpus)
    return [HaystackMaker(each, passages, questions, budget, seed) for each in found]


def haystack(
    questions: QuestionSet,
    retriever: str | Retriever | Ranking = "bm25",
    size: int | None = None,
    tokens: int | None = None,
    *,
    model: DocumentModel | None = None,
    corpus: Source | None = None,
    template: str | Template | None = None,
    seed: int = 0,
) -> QuestionSet:
    """Replace the distractors of questions by passages that a retriever finds for them.

    A haystack holds the gold documents, and of the other passages those with the highest scores for
    the question; never one that names the answer. Its documents stand in the order of their scores,
    and the question has the orders `retrieved` and `retrieved_reversed` beside all others.

    Args:
        questions: the questions.
        retriever: `bm25`; `dense` (the mean states of `model`); `ppr`, personalised PageRank over
            links; `random`, a control; an object such as `PageRank(seeds=5, restart=0.15)` or
            `Dense("Qwen/Qwen3-Embedding-0.6B")` of `hopscope.documents.retrieval`; or a function of
            a question and the passages that returns the score of each (NaN: not found).
        size: distractors of a question, at most.
        tokens: tokens of all distractors, as `model` reads them in `template`; the last distractor
            is cut to fit. So retrievers can be compared at equal lengths.
        model: whose tokens are counted, and whose states `dense` averages.
        corpus: where distractors are looked for, see `hopscope.documents.corpus.load_corpus`; all
            documents of the set, and of the set that it was taken from, if None.
        template: how documents are written; `plain` for sets with demonstrations, else
            `answer_only`, if None.
        seed: of the order of passages that are equally near, as all are for `random`.

    Returns:
        The questions with other documents; demonstrations are as before.

    Raises:
        UsageError: for neither size nor tokens, or a retriever that is none.
        QueryError: for a corpus that cannot be read or is too small, a question whose gold
            documents are unknown, or documents whose names mean something else in each question.

    Example:
        >>> questions = load_questions("world-docs-shared").sample(40)       # doctest: +SKIP
        >>> found = haystack(questions, "ppr", size=8)                       # doctest: +SKIP
        >>> found[0].gold, len(found[0].documents)                           # doctest: +SKIP
        ((3, 0), 10)
    """
    budget = Budget(size, tokens, model, template_of(template_for(questions, template)))
    (maker,) = haystack_makers(questions, [retriever], budget, corpus=corpus, seed=seed)
    return replace(
        questions,
        questions=tuple(maker.of(each) for each in questions),
        name=f"{questions.name}.{maker.retriever.name}",
    )
