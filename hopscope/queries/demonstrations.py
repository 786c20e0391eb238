"""Chooses the few-shot demonstrations of each query so that none gives its answer away."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest

from hopscope.errors import QueryError
from hopscope.queries.answers import normalise
from hopscope.queries.two_hop_query import FORMS, Form, TwoHopQuery

# The demonstrations of a form are in a form that answers the same kind of question; forms that
# share demonstrations share a token prefix.
DEMONSTRATION_FORMS: Mapping[Form, Form] = {
    "two_hop": "two_hop",
    "relation_shortcut": "two_hop",
    "first_hop": "first_hop",
    "second_hop": "second_hop",
    "entity_shortcut": "second_hop",
}
_COMMON = 0.02  # the share of a pool from which on one of its entities is common
_UNSPACED = re.compile("[\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af]")


def demonstration_line(query: TwoHopQuery, form: Form) -> str:
    """Return a prompt with its answer, as one line."""
    answer = query.e2_label if form == "first_hop" else query.e3_label
    return f"{query.compose(form)[0]} {answer}\n"


@lru_cache(maxsize=65536)
def _words(text: str) -> str:
    """The words of a text, case and accents folded, with a space on both sides of each."""
    words = re.findall(r"[^\W_]+", normalise(text))
    return f" {' '.join(words)} "


def _occurs(name: str, words: str) -> bool:
    """Whether a name occurs as whole words (as a part, in a script without spaces)."""
    return (name.strip() if _UNSPACED.search(name) else name) in words


def _names(query: TwoHopQuery) -> frozenset[str]:
    """Every name of the query's three entities that has at least two letters or digits."""
    names = (_words(name) for entity in ("e1", "e2", "e3") for name in query.names(entity))
    return frozenset(name for name in names if len(name.replace(" ", "")) > 1)


def _ids(query: TwoHopQuery) -> frozenset[str]:
    return frozenset(filter(None, (query.e1, query.e2, query.e3)))


class _Candidate:
    """A query of the pool, with what must not touch another query's entities."""

    def __init__(self, query: TwoHopQuery) -> None:
        self.query = query
        self.names = _names(query)
        self.ids = _ids(query)
        self.labels = "".join(map(_words, (query.e1_label, query.e2_label, query.e3_label)))
        forms = set(DEMONSTRATION_FORMS.values())
        self.text = "".join(_words(demonstration_line(query, form)) for form in sorted(forms))


class Demonstrations:
    """Picks k demonstrations for each query from a pool in one seeded order.

    The order is drawn once and interleaves the relation pairs, new entities first. A query takes
    the first k of it that do not touch its own entities: so nearly all queries share the same
    demonstrations, and one token prefix.

    Args:
        pool: where demonstrations come from.
        k: how many.
        seed: of the order.
    """

    def __init__(self, pool: Sequence[TwoHopQuery], k: int, seed: int) -> None:
        self.k = k
        self._order = arrange(pool, seed)
        self._candidates: dict[int, _Candidate] = {}

    def of(self, query: TwoHopQuery) -> tuple[TwoHopQuery, ...]:
        """Return the demonstrations of a query.

        A demonstration's text, in any form, holds no name of the query's e1, e2 or e3 as words
        (case and accents folded, names of two letters or more). A name that the query's own
        templates hold ("is", for Iceland) is kept out of the demonstration's labels only.

        Raises:
            QueryError: if the pool has too few that do not touch the query.
        """
        names, ids = _names(query), _ids(query)
        frame = _words(f"{query.r1_template} is {query.r2_template} is".replace("{}", " "))
        told = frozenset(name for name in names if name in frame)
        chosen: list[TwoHopQuery] = []
        for index in range(len(self._order)):
            if len(chosen) == self.k:
                break
            candidate = self._candidate(index)
            if not _touches(candidate, query.id, names, told, ids):
                chosen.append(candidate.query)
        if len(chosen) < self.k:
            raise QueryError(
                f"query {query.id!r}: only {len(chosen)} of {len(self._order)} queries can "
                f"demonstrate without naming its entities, {self.k} were asked for; "
                "take a smaller k or a larger set"
            )
        return tuple(chosen)

    def text(self, query: TwoHopQuery, form: Form) -> str:
        """Return the demonstrations of a query as lines, for a prompt of a form."""
        if form not in FORMS:
            raise QueryError(f"unknown prompt form {form!r}: choose one of {', '.join(FORMS)}")
        shown = DEMONSTRATION_FORMS[form]
        return "".join(demonstration_line(each, shown) for each in self.of(query))

    def _candidate(self, index: int) -> _Candidate:
        if index not in self._candidates:
            self._candidates[index] = _Candidate(self._order[index])
        return self._candidates[index]


def _touches(
    candidate: _Candidate,
    query_id: str,
    names: frozenset[str],
    told: frozenset[str],
    ids: frozenset[str],
) -> bool:
    """Whether a candidate is the query, or names one of its entities."""
    if candidate.query.id == query_id or candidate.ids & ids or candidate.names & (names - told):
        return True
    return any(
        _occurs(name, candidate.labels if name in told else candidate.text) for name in names
    )


def arrange(pool: Sequence[TwoHopQuery], seed: int) -> tuple[TwoHopQuery, ...]:
    """Shuffle a pool, take its relation pairs in turn, and put shared entities last.

    First come queries with no entity of an earlier one and none that is common in the pool (a
    demonstration about "Europe" would serve few queries), then those with a common one, then
    those that repeat.
    """
    counts = Counter(label for query in pool for label in _labels(query))
    by_pair: dict[str, dict[str, list[TwoHopQuery]]] = defaultdict(lambda: defaultdict(list))
    for query in random.Random(seed).sample(pool, len(pool)):
        by_pair[query.r2_template][query.r1_template].append(query)
    seen: set[str] = set()
    ranked: tuple[list[TwoHopQuery], ...] = ([], [], [])
    for query in _in_turn([_in_turn(list(pairs.values())) for pairs in by_pair.values()]):
        labels = _labels(query)
        common = max(counts[label] for label in labels) > _COMMON * len(pool)
        ranked[2 if labels & seen else int(common)].append(query)
        seen |= labels
    return tuple(query for rank in ranked for query in rank)


def _in_turn(lists: Sequence[Sequence[TwoHopQuery]]) -> list[TwoHopQuery]:
    """The first of every list, then the second of every list, and so on."""
    return [each for turn in zip_longest(*lists) for each in turn if each is not None]


def _labels(query: TwoHopQuery) -> set[str]:
    return {query.e1_label, query.e2_label, query.e3_label}
