"""Provides orders of documents: named orders, seeded shuffles, a question's own, and indices."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

from hopscope.documents.question_set import MultiDocQuestion, QuestionSet
from hopscope.errors import QueryError

Order = str | Sequence[int]
NAMES = (
    "original, forward, backward, forward_G, backward_G, rm_first, gold, gold_original, shuffle_K"
)
RETRIEVED = ("retrieved", "retrieved_reversed")
"""The orders that questions whose documents were retrieved have beside them."""
_SPACED = re.compile(r"(forward|backward)_(\d+)")
_SHUFFLE = re.compile(r"shuffle_(\d+)")


class ImpossibleOrderError(QueryError):
    """The documents of a question cannot be put in the requested order."""


def order_name(order: Order) -> str:
    """Return the name of an order in tables: its own name, or its indices joined by hyphens."""
    return order if isinstance(order, str) else "-".join(str(int(each)) for each in order)


def arrange(question: MultiDocQuestion, order: Order, seed: int = 0) -> tuple[int, ...]:
    """Return the indices of a question's documents in a given order.

    The named orders follow Huang et al. 2025 (Masking in Multi-hop QA), section 3:

    - `original`: the original order.
    - `forward`, `backward`: the gold documents in the order of the hops, or in reverse, in the
      places that gold documents have in the original order.
    - `forward_G`, `backward_G`: likewise, but with exactly G distractors between consecutive gold
      documents and the last gold document at the end of the prompt.
    - `rm_first`: the original order without the document of the first hop.
    - `gold`: only the gold documents, in the order of the hops.
    - `gold_original`: only the gold documents, in their original order, as in the code of Huang et
      al.
    - `shuffle_K`: the K-th seeded shuffle, counted from 0.
    - `retrieved`, `retrieved_reversed`: by the scores of the retriever, the nearest document first
      or last (questions of `hopscope.documents.haystack.haystack`); any other name in the
      question's own `orders`.
    - A sequence of document numbers gives exactly these documents, and leaves out the others.

    Args:
        question: the question.
        order: a named order, or a sequence of document numbers.
        seed: seed of shuffles.

    Raises:
        QueryError: for an unknown order.
        ImpossibleOrderError: if this question cannot have the order.

    Example:
        >>> question = MultiDocQuestion("q", "?", "a", [Document("", "x")] * 4,
        ...                             [Hop("", "", 2), Hop("", "", 0)])   # doctest: +SKIP
        >>> arrange(question, "forward")                                    # doctest: +SKIP
        (2, 1, 0, 3)
    """
    if not isinstance(order, str):
        return _explicit(question, order)
    everything = tuple(range(len(question.documents)))
    if order == "original":
        return everything
    if shuffle := _SHUFFLE.fullmatch(order):
        return shuffles(question, int(shuffle[1]) + 1, seed)[-1]
    if order == "gold_original" and question.gold:
        return tuple(sorted(question.gold))
    if order == "gold" and len(question.gold) == 1:
        return question.gold
    spaced = _SPACED.fullmatch(order)
    if order not in ("forward", "backward", "rm_first", "gold", "gold_original") and spaced is None:
        return _own(question, order)
    if not question.ordered:
        raise ImpossibleOrderError(
            f"question {question.id!r} cannot be put in the order {order!r}: the order of its "
            "hops is not known; leave the question out (questions.filter(lambda q: q.ordered))"
        )
    if order == "gold":
        return question.gold
    if order == "rm_first":
        return tuple(each for each in everything if each != question.gold[0])
    chain = question.gold if order.startswith("forward") else question.gold[::-1]
    if spaced is not None:
        return _spaced(question, chain, int(spaced[2]), order)
    places = iter(chain)
    return tuple(next(places) if each in chain else each for each in everything)


def _own(question: MultiDocQuestion, order: str) -> tuple[int, ...]:
    """Return the indices of documents in an order that the question brings along."""
    if order in question.orders:
        numbers = [each for each in question.orders[order] if each in question.numbers]
        return _explicit(question, numbers)
    if order in RETRIEVED:
        raise ImpossibleOrderError(
            f"question {question.id!r} cannot be put in the order {order!r}: its documents were "
            "not retrieved; make the questions with hs.haystack(questions, ...)"
        )
    known = ", ".join((NAMES, *question.orders))
    raise QueryError(f"unknown order {order!r}: give one of {known}, or a list of indices")


def _explicit(question: MultiDocQuestion, order: Sequence[int]) -> tuple[int, ...]:
    """Return the indices of documents that are given by their numbers."""
    numbers = [int(each) for each in order]
    known = question.numbers
    wrong = [each for each in numbers if each not in known]
    if wrong or len(set(numbers)) < len(numbers) or not numbers:
        problem = (
            f"there is no document {wrong[0]}" if wrong else "it must name documents once each"
        )
        raise ImpossibleOrderError(
            f"question {question.id!r} cannot be put in the order {numbers}: {problem}; its "
            f"documents are {', '.join(map(str, known))}"
        )
    return tuple(known.index(each) for each in numbers)


def _spaced(
    question: MultiDocQuestion, chain: Sequence[int], gap: int, order: str
) -> tuple[int, ...]:
    """Return the spare distractors, then the chain with `gap` distractors before each later hop."""
    distractors, needed = list(question.distractors), gap * (len(chain) - 1)
    if needed > len(distractors):
        raise ImpossibleOrderError(
            f"question {question.id!r} cannot be put in the order {order!r}: it needs {needed} "
            f"distractors and has {len(distractors)}; take a smaller gap or more distractors"
        )
    n_spare = len(distractors) - needed
    arranged, between = [*distractors[:n_spare], chain[0]], distractors[n_spare:]
    for step, document in enumerate(chain[1:]):
        arranged += [*between[step * gap : (step + 1) * gap], document]
    return tuple(arranged)


def shuffles(question: MultiDocQuestion, k: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Return `k` different random orders of a question's documents.

    A larger `k` extends the same sequence of orders.

    Args:
        question: the question.
        k: number of orders.
        seed: seed of the shuffles.

    Raises:
        ImpossibleOrderError: if the documents have fewer than `k` orders.
    """
    n = len(question.documents)
    if k > math.factorial(n):
        raise ImpossibleOrderError(
            f"question {question.id!r} has {n} documents, which have only {math.factorial(n)} "
            f"orders, but {k} different shuffles were requested; take fewer"
        )
    rng = random.Random(f"{seed} {question.id}")
    orders: dict[tuple[int, ...], None] = {}
    while len(orders) < k:
        orders[tuple(rng.sample(range(n), n))] = None
    return list(orders)


def that_allow(questions: QuestionSet, orders: Sequence[Order], seed: int = 0) -> QuestionSet:
    """Return the questions whose documents can be put in every one of the given orders.

    Those by a retriever's scores do not count: documents may yet be retrieved.

    Raises:
        QueryError: for an unknown order.
    """

    def allows(question: MultiDocQuestion) -> bool:
        try:
            for order in (each for each in orders if each not in RETRIEVED):
                arrange(question, order, seed)
        except ImpossibleOrderError:
            return False
        return True

    return questions.filter(allows)
