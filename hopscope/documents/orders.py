"""Provides the orders of documents: named ones, seeded shuffles, and any explicit one."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

from hopscope.documents.question_set import MultiDocQuestion, QuestionSet
from hopscope.errors import QueryError

Order = str | Sequence[int]
NAMES = "original, forward, backward, forward_G, backward_G, rm_first, gold, shuffle_K"
_SPACED = re.compile(r"(forward|backward)_(\d+)")
_SHUFFLE = re.compile(r"shuffle_(\d+)")


class ImpossibleOrderError(QueryError):
    """An order that a question's documents cannot have."""


def order_name(order: Order) -> str:
    """What tables call an order: its name, or its indices with hyphens between."""
    return order if isinstance(order, str) else "-".join(str(int(each)) for each in order)


def arrange(question: MultiDocQuestion, order: Order, seed: int = 0) -> tuple[int, ...]:
    """The indices of a question's documents, as an order shows them.

    Masking in Multi-hop QA, section 3. `original`: as they are. `forward`, `backward`: the gold
    documents in the order of the hops, or reversed, inside their original slots. `forward_G`,
    `backward_G`: the last of them at the very end, exactly G distractors between two of them.
    `rm_first`: without the first hop's document. `gold`: the gold ones only, forward. `shuffle_K`:
    the K-th of the seeded shuffles, counted from 0. A sequence of indices: just that; documents
    that are not named are left out.

    Raises:
        QueryError: for an unknown order, or one that this question cannot have.

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
    if found := _SHUFFLE.fullmatch(order):
        return shuffles(question, int(found[1]) + 1, seed)[-1]
    if order == "gold" and len(question.gold) == 1:
        return question.gold
    spaced = _SPACED.fullmatch(order)
    if order not in ("forward", "backward", "rm_first", "gold") and spaced is None:
        raise QueryError(f"unknown order {order!r}: give one of {NAMES}, or a list of indices")
    if not question.ordered:
        raise ImpossibleOrderError(
            f"question {question.id!r} cannot be put in the order {order!r}: the order of its "
            "hops is not known; leave it out (questions.filter(lambda q: q.ordered))"
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


def _explicit(question: MultiDocQuestion, order: Sequence[int]) -> tuple[int, ...]:
    numbers = [int(each) for each in order]
    known = question.numbers
    wrong = [each for each in numbers if each not in known]
    if wrong or len(set(numbers)) < len(numbers) or not numbers:
        what = f"there is no document {wrong[0]}" if wrong else "it must name documents once each"
        raise ImpossibleOrderError(
            f"question {question.id!r} cannot be put in the order {numbers}: {what}; its "
            f"documents are {', '.join(map(str, known))}"
        )
    return tuple(known.index(each) for each in numbers)


def _spaced(
    question: MultiDocQuestion, chain: Sequence[int], gap: int, order: str
) -> tuple[int, ...]:
    """The distractors, then the chain with `gap` of them before each of its later documents."""
    noise, needed = list(question.distractors), gap * (len(chain) - 1)
    if needed > len(noise):
        raise ImpossibleOrderError(
            f"question {question.id!r} cannot be put in the order {order!r}: it needs {needed} "
            f"distractors and has {len(noise)}; take a smaller gap or more distractors"
        )
    arranged = [*noise[: len(noise) - needed], chain[0]]
    between = noise[len(noise) - needed :]
    for step, document in enumerate(chain[1:]):
        arranged += [*between[step * gap : (step + 1) * gap], document]
    return tuple(arranged)


def shuffles(question: MultiDocQuestion, k: int, seed: int = 0) -> list[tuple[int, ...]]:
    """`k` different orders of a question's documents, drawn by seed; more begin with the same.

    Raises:
        QueryError: if there are fewer than `k` orders.
    """
    n = len(question.documents)
    if k > math.factorial(n):
        raise ImpossibleOrderError(
            f"question {question.id!r} has {n} documents, which have only {math.factorial(n)} "
            f"orders; {k} different shuffles were asked for"
        )
    rng = random.Random(f"{seed} {question.id}")
    found: dict[tuple[int, ...], None] = {}
    while len(found) < k:
        found[tuple(rng.sample(range(n), n))] = None
    return list(found)


def that_allow(questions: QuestionSet, orders: Sequence[Order], seed: int = 0) -> QuestionSet:
    """The questions that can have all of some orders.

    Raises:
        QueryError: for an unknown order.
    """

    def allows(question: MultiDocQuestion) -> bool:
        try:
            for order in orders:
                arrange(question, order, seed)
        except ImpossibleOrderError:
            return False
        return True

    return questions.filter(allows)
