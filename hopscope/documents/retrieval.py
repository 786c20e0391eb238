"""Provides retrievers: BM25, dense, personalised PageRank over links, and random.

A retriever indexes passages, and then scores all of them for a question. HaystackCraft ("Haystack
Engineering", 2025) compares these as sources of distractors.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import sparse

from hopscope.documents.question_set import Document
from hopscope.errors import UsageError, one_of
from hopscope.models.embedding import mean_states
from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.language_model import LanguageModel

Scorer = Callable[[str], Float[np.ndarray, " passage"]]
"""Gives a score of each passage for a question; higher is nearer, NaN is not found."""
Ranking = Callable[[str, Sequence[Document]], ArrayLike]
"""A retriever of the user's: the score of each passage for a question."""
Encoder = LanguageModel | EncoderDecoder | str | Callable[[Sequence[str]], ArrayLike]
"""What turns texts into vectors: a model, the name of one of sentence-transformers, a function."""
UNREACHED = 1e-12
"""A random walk is followed until this share of its mass is left."""


@runtime_checkable
class Retriever(Protocol):
    """What finds passages for a question.

    Attributes:
        name: what it is called in results.
    """

    @property
    def name(self) -> str: ...
    def index(self, passages: Sequence[Document]) -> Scorer:
        """Read the passages, and return what scores them for a question."""


def text_of(passage: Document) -> str:
    """Return what is read of a passage: its title and its text."""
    return f"{passage.title} {passage.text}".strip()


@dataclass(frozen=True)
class BM25:
    """BM25 as in Lucene (Robertson and Zaragoza 2009; Kamphuis et al. 2020), by `bm25s`.

    Words are runs of at least two letters or digits in lower case, without English stop words and
    not stemmed. A passage without any word of the question is not found.

    Attributes:
        k1: how soon further occurrences of a word count less.
        b: how much the length of a passage counts, from 0 to 1.
    """

    k1: float = 0.9
    b: float = 0.4
    name: str = field(default="bm25", repr=False)

    def index(self, passages: Sequence[Document]) -> Scorer:
        """See `Retriever`."""
        import bm25s

        def words(texts: Sequence[str]) -> list[list[str]]:
            found: list[list[str]] = bm25s.tokenize(
                list(texts), stopwords="en", return_ids=False, show_progress=False
            )
            return found

        divided = words([text_of(each) for each in passages])
        bm25 = bm25s.BM25(k1=self.k1, b=self.b, method="lucene")
        known = any(divided)  # bm25s makes no index without a word
        if known:
            bm25.index(divided, show_progress=False)

        def scores(question: str) -> np.ndarray:
            ids = bm25.get_tokens_ids(words([question])[0]) if known else []
            if not ids:
                return np.full(len(passages), np.nan)
            found = np.asarray(bm25.get_scores_from_ids(ids), dtype=float)
            return np.where(found > 0, found, np.nan)

        return scores


@dataclass(frozen=True)
class Dense:
    """The cosine of a vector of the question and one of each passage.

    Attributes:
        encoder: a loaded model, whose states after the last norm are averaged over tokens; the
            name of a model of sentence-transformers (`pip install "hopscope[retrieval]"`), which
            encodes questions as queries; or a function from texts to vectors, shape (text, width).
    """

    encoder: Encoder
    name: str = field(default="dense", repr=False)

    def __repr__(self) -> str:
        encoder = self.encoder
        if isinstance(encoder, LanguageModel | EncoderDecoder):
            return f"Dense(mean states of {encoder.name})"
        return f"Dense({encoder if isinstance(encoder, str) else _name_of(encoder)})"

    def index(self, passages: Sequence[Document]) -> Scorer:
        """See `Retriever`.

        Raises:
            UsageError: if sentence-transformers is not installed, or vectors have another shape.
        """
        of_questions, of_passages = _encoders(self.encoder)
        vectors = _directions(of_passages([text_of(each) for each in passages]), len(passages))

        def scores(question: str) -> np.ndarray:
            (vector,) = _directions(of_questions([question]), 1)
            found: np.ndarray = vectors @ vector
            return found

        return scores


Encode = Callable[[Sequence[str]], ArrayLike]


def _encoders(encoder: Encoder) -> tuple[Encode, Encode]:
    """Return what encodes questions, and what encodes passages."""
    if isinstance(encoder, LanguageModel | EncoderDecoder):

        def states(texts: Sequence[str]) -> ArrayLike:
            found: np.ndarray = mean_states(encoder, texts).numpy()
            return found

        return states, states
    if not isinstance(encoder, str):
        return encoder, encoder
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UsageError(
            f"the encoder {encoder!r} is one of sentence-transformers, which is not installed: "
            'pip install "hopscope[retrieval]", or give a loaded model or a function'
        ) from error
    loaded = SentenceTransformer(encoder)
    return loaded.encode_query, loaded.encode_document


def _directions(vectors: ArrayLike, n: int) -> Float[np.ndarray, "text width"]:
    """Return vectors scaled to length 1; those of length 0 stay."""
    found = np.asarray(vectors, dtype=float)
    if found.ndim != 2 or len(found) != n:
        raise UsageError(
            f"the encoder gave an array of shape {found.shape} for {n} texts: it must give one "
            f"vector a text, shape ({n}, width)"
        )
    scaled: np.ndarray = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return scaled


@dataclass(frozen=True)
class PageRank:
    """Personalised PageRank over the links between passages, as in HaystackCraft.

    A walk along links, in either direction, starts anew with some probability at one of the
    passages that another retriever found first, in proportion to their scores there. Passages that
    it never reaches follow in the order of that retriever.

    Attributes:
        base: the retriever of the seeds.
        seeds: how many passages the walk may start at.
        restart: with which probability it starts anew: 1 less the damping. HaystackCraft has 10
            seeds and .5 over BM25, 5 and .5 over a dense retriever, 5 and .15 over a hybrid.
    """

    base: Retriever = field(default_factory=BM25)
    seeds: int = 10
    restart: float = 0.5
    name: str = field(default="ppr", repr=False)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UsageError(f"seeds must be 1 or more, not {self.seeds}")
        if not 0 < self.restart <= 1:
            raise UsageError(f"restart must be above 0 and at most 1, not {self.restart}")

    def index(self, passages: Sequence[Document]) -> Scorer:
        """See `Retriever`."""
        base, step = self.base.index(passages), _step(link_matrix(passages))

        def scores(question: str) -> np.ndarray:
            found = base(question)
            first = np.argsort(-np.nan_to_num(found, nan=-np.inf), kind="stable")[: self.seeds]
            mass = np.zeros(len(passages))
            mass[first] = np.nan_to_num(found[first]).clip(min=0)
            if not mass.any():
                return found
            reached = _walk(step, mass / mass.sum(), self.restart)
            behind = found - np.nanmax(found) - 1  # below all that are reached
            return np.where(reached > 0, reached, behind)

        return scores


def _step(links: sparse.csr_array) -> sparse.csr_array:
    """Return the probabilities of a step along links, shape (to, from)."""
    degrees = np.maximum(links.sum(axis=1), 1)
    return sparse.csr_array((links / degrees[:, None]).T)


def _walk(step: sparse.csr_array, start: np.ndarray, restart: float) -> np.ndarray:
    """Return how often a walk with restarts is at each passage, in the long run.

    Where there is no link to follow it starts anew, too. So what it does between two starts is
    summed, and scaled to 1.
    """
    mass, total = start, start.copy()
    while mass.sum() > UNREACHED:
        mass = (1 - restart) * (step @ mass)
        total += mass
    scaled: np.ndarray = total / total.sum()
    return scaled


_WORD = re.compile(r"\w+")


def link_matrix(passages: Sequence[Document]) -> sparse.csr_array:
    """Return which passages are linked, in either direction, as a symmetric matrix of 0 and 1.

    A passage links to those whose titles are in its `links` or, if that is None, to those whose
    titles its text mentions: word by word, with the same capitals; what stands in parentheses at
    the end of a title need not be there. Nothing links to itself.

    Args:
        passages: the passages.

    Returns:
        Shape (passage, passage).
    """
    titled: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, each in enumerate(passages):
        titled[_title_words(each.title)].append(index)
    titled.pop((), None)
    longest = max(map(len, titled), default=0)
    pairs = [
        (source, target)
        for source, each in enumerate(passages)
        for words in _linked(each, longest)
        for target in titled.get(words, ())
        if target != source
    ]
    at = np.array(pairs, dtype=int).reshape(-1, 2).T
    shape = (len(passages), len(passages))
    links = sparse.coo_array((np.ones(at.shape[1]), (at[0], at[1])), shape)
    return sparse.csr_array(((links + links.T) > 0).astype(float))


def _title_words(title: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(re.sub(r"\s*\([^()]*\)$", "", title)))


def _linked(passage: Document, longest: int) -> Iterator[tuple[str, ...]]:
    """Yield the words of titles that a passage links to, or may mention."""
    if passage.links is not None:
        yield from map(_title_words, passage.links)
        return
    words = tuple(_WORD.findall(passage.text))
    for start in range(len(words)):
        for end in range(start + 1, min(start + longest, len(words)) + 1):
            yield words[start:end]


@dataclass(frozen=True)
class Random:
    """The same score for every passage, so that their order is drawn: a control."""

    name: str = field(default="random", repr=False)

    def index(self, passages: Sequence[Document]) -> Scorer:
        """See `Retriever`."""
        return lambda _: np.zeros(len(passages))


@dataclass(frozen=True)
class _Own:
    """A retriever of the user's."""

    ranking: Ranking

    def __repr__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        return _name_of(self.ranking)

    def index(self, passages: Sequence[Document]) -> Scorer:
        """See `Retriever`.

        Raises:
            UsageError: for scores that are not one number a passage.
        """

        def scores(question: str) -> np.ndarray:
            found = np.asarray(self.ranking(question, passages), dtype=float)
            if found.shape != (len(passages),):
                raise UsageError(
                    f"the retriever {self.name} gave an array of shape {found.shape}: it must give "
                    f"one score a passage, shape ({len(passages)},)"
                )
            return found

        return scores


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


RETRIEVERS = ("bm25", "dense", "ppr", "random")
"""The retrievers that have a name."""


def retriever_of(
    retriever: str | Retriever | Ranking,
    model: LanguageModel | EncoderDecoder | None = None,
) -> Retriever:
    """Return a retriever by its name in `RETRIEVERS`, or what was given.

    Args:
        retriever: a name, a retriever such as `PageRank(seeds=5, restart=0.15)`, or a function of
            a question and the passages that returns the score of each passage.
        model: the model whose states `dense` averages.

    Raises:
        UsageError: for an unknown name, `dense` without a model, or anything else.
    """
    if isinstance(retriever, str):
        one_of("retriever", retriever, RETRIEVERS)
        if retriever == "dense":
            if model is None:
                raise UsageError(
                    "the retriever 'dense' needs vectors: give model=, whose states are averaged, "
                    "or Dense(encoder) with a model of sentence-transformers or a function"
                )
            return Dense(model)
        named: dict[str, Retriever] = {"bm25": BM25(), "ppr": PageRank(), "random": Random()}
        return named[retriever]
    if isinstance(retriever, Retriever):
        return retriever
    if callable(retriever):
        return _Own(retriever)
    raise UsageError(
        f"a retriever is one of {', '.join(RETRIEVERS)}, an object with a name and index(), or a "
        f"function of a question and passages, not {retriever!r:.60}"
    )
