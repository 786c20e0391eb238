"""Chooses the few-shot demonstrations of each query, so that none gives away its answer."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice

from hopscope.errors import QueryError, one_of
from hopscope.queries.answers import normalise
from hopscope.queries.query import CUT, Form, Query, composed_template, forms_of
from hopscope.scripts import HANGUL, UNSPACED, needs_space

_COMMON = 0.02
"""An entity is common in a pool if it occurs in more than this share of the queries."""
_FIRST_BLOCK = 64
_UNSPACED = re.compile(f"[{UNSPACED}{HANGUL}]")


def demonstration_form(query: Query, form: Form) -> Form:
    """The form of the demonstrations of a form of prompt, with the same kind of answer.

    Prompts with the same demonstrations share a token prefix.

    Raises:
        QueryError: for an unknown form.
    """
    known = forms_of(query.n_hops)
    if form == CUT and query.n_hops == 2:
        form = "relation_shortcut"
    return known[one_of("prompt form", form, known, QueryError)].like


DEMONSTRATION_FORMS = {form: asked.like for form, asked in forms_of(2).items()}
"""Those of two hops."""


def demonstration(query: Query, form: Form) -> tuple[str, str]:
    """Return the prompt of a query in one form, and its answer."""
    return query.compose(form)[0], query.label(forms_of(query.n_hops)[form].answer)


def demonstration_line(text: str, answer: str) -> str:
    """Return a prompt, followed by its answer, as one line."""
    return f"{text}{' ' * needs_space(text)}{answer}\n"


def plain_line(query: Query, form: Form) -> str:
    """Return a query in one form, followed by its answer, as one line."""
    return demonstration_line(*demonstration(query, form))


@lru_cache(maxsize=65536)
def _words(text: str) -> str:
    """Return the normalised words of a text, with spaces between and around them."""
    words = re.findall(r"[^\W_]+", normalise(text))
    return f" {' '.join(words)} "


def _occurs(name: str, words: str) -> bool:
    """Return whether a name occurs as whole words, or anywhere in a script without spaces."""
    return (name.strip() if _UNSPACED.search(name) else name) in words


def _names(query: Query) -> frozenset[str]:
    """Return the names of the query's entities that have at least two letters or digits."""
    names = (_words(name) for entity in query.entities for name in query.names(entity))
    return frozenset(name for name in names if len(name.replace(" ", "")) > 1)


def _ids(query: Query) -> frozenset[str]:
    return frozenset(filter(None, query.entity_ids))


class _Candidate:
    """A query of the pool, with the names, ids and texts that are compared with other queries."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.names = _names(query)
        self.ids = _ids(query)
        self.labels = "".join(map(_words, query.labels))
        forms = {demonstration_form(query, form) for form in query.forms}
        lines = (plain_line(query, form) for form in sorted(forms))
        self.text = "".join(map(_words, lines))


class _Block:
    """Consecutive candidates, with the places at which a name, a word or an id stands in them."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self.candidates = [_Candidate(query) for query in queries]
        self._at: dict[tuple[str, str], list[int]] = defaultdict(list)
        for place, candidate in enumerate(self.candidates):
            words = set(f"{candidate.text}{candidate.labels}".split())
            self._at["query", candidate.query.id].append(place)
            for kind, values in (("name", candidate.names), ("id", candidate.ids), ("word", words)):
                for value in values:
                    self._at[kind, value].append(place)

    def without(
        self,
        query_id: str,
        names: frozenset[str],
        in_templates: frozenset[str],
        ids: frozenset[str],
    ) -> Iterator[Query]:
        """The candidates that are not the query itself, and mention none of its entities."""
        keys = [("query", query_id), *(("id", id) for id in ids)]
        keys += [("name", name) for name in names - in_templates]
        mentions = {place for key in keys for place in self._at.get(key, ())}
        for name in names:
            mentions.update(self._mentioning(name, name in in_templates))
        for place, candidate in enumerate(self.candidates):
            if place not in mentions:
                yield candidate.query

    def _mentioning(self, name: str, in_labels: bool) -> Sequence[int]:
        """The places of the candidates whose text, or only whose labels, contain a name."""
        key = ("labels" if in_labels else "text", name)
        if key not in self._at:
            places: Sequence[int] = range(len(self.candidates))
            if not _UNSPACED.search(name):
                words = name.split()
                places = min((self._at.get(("word", word), ()) for word in words), key=len)
            self._at[key] = [
                place for place in places if _occurs(name, getattr(self.candidates[place], key[0]))
            ]
        return self._at[key]


class Demonstrations:
    """Chooses k demonstrations for each query from a pool.

    The pool is ordered once; see `demonstration_order`. Each query takes the first k queries of
    that order that do not mention its entities, so that most queries share their demonstrations
    and with them a token prefix.

    Args:
        pool: the queries to choose from.
        k: number of demonstrations.
        seed: seed of the order.
    """

    def __init__(self, pool: Sequence[Query], k: int, seed: int) -> None:
        self.k = k
        self._order = demonstration_order(pool, seed)
        self._blocks: list[_Block] = []

    def of(self, query: Query) -> tuple[Query, ...]:
        """Return the demonstrations of a query.

        No demonstration contains, in any form, a name of the query's entities of two letters or
        more as whole words, ignoring case and accents. A name that the templates of the query
        contain themselves ("is", for Iceland) is excluded only from the demonstration's labels.

        Raises:
            QueryError: if the pool has fewer than k such queries.
        """
        names, ids = _names(query), _ids(query)
        frame = _words("".join(f"{each} is " for each in query.templates).replace("{}", " "))
        in_templates = frozenset(name for name in names if name in frame)
        fitting = (
            each
            for block in self._all_blocks()
            for each in block.without(query.id, names, in_templates, ids)
        )
        chosen = list(islice(fitting, self.k))
        if len(chosen) < self.k:
            raise QueryError(
                f"query {query.id!r}: only {len(chosen)} of {len(self._order)} queries can "
                f"demonstrate without naming its entities, {self.k} were asked for; "
                "take a smaller k or a larger set"
            )
        return tuple(chosen)

    def shown(self, query: Query, form: Form) -> tuple[tuple[str, str], ...]:
        """Return the demonstrations of a query for a prompt of one form, each with its answer."""
        like = demonstration_form(query, form)
        return tuple(demonstration(each, like) for each in self.of(query))

    def text(
        self, query: Query, form: Form, line: Callable[[Query, Form], str] = plain_line
    ) -> str:
        """Return the demonstrations of a query for a prompt of one form, each as `line` has it."""
        like = demonstration_form(query, form)
        return "".join(line(each, like) for each in self.of(query)) if self.k else ""

    def _all_blocks(self) -> Iterator[_Block]:
        """The candidates in their order, in blocks of growing size that are made when needed."""
        number = start = 0
        while start < len(self._order):
            end = start + (_FIRST_BLOCK << number)
            if number == len(self._blocks):
                self._blocks.append(_Block(self._order[start:end]))
            yield self._blocks[number]
            number, start = number + 1, end


def demonstration_order(pool: Sequence[Query], seed: int) -> tuple[Query, ...]:
    """Shuffle a pool, alternate between its pairs of relations, and put repeated entities last.

    First come queries whose entities are neither in an earlier query nor common in the pool (a
    demonstration about "Europe" would suit few queries), then queries with a common entity, then
    queries with an entity of an earlier one.

    Args:
        pool: the queries.
        seed: seed of the shuffle.
    """
    counts = Counter(label for query in pool for label in _labels(query))
    by_pair: dict[str, dict[str, list[Query]]] = defaultdict(lambda: defaultdict(list))
    for query in random.Random(seed).sample(pool, len(pool)):
        by_pair[query.templates[-1]][composed_template(query.templates[:-1])].append(query)
    seen: set[str] = set()
    ranked: tuple[list[Query], ...] = ([], [], [])
    for query in _in_turn([_in_turn(list(pairs.values())) for pairs in by_pair.values()]):
        labels = _labels(query)
        common = max(counts[label] for label in labels) > _COMMON * len(pool)
        ranked[2 if labels & seen else int(common)].append(query)
        seen |= labels
    return tuple(query for rank in ranked for query in rank)


def _in_turn(lists: Sequence[Sequence[Query]]) -> list[Query]:
    """Return the first element of each list, then the second of each, and so on."""
    found: list[Query] = []
    longer, column = [each for each in lists if each], 0
    while longer:
        found += [each[column] for each in longer]
        column += 1
        longer = [each for each in longer if len(each) > column]
    return found


def _labels(query: Query) -> set[str]:
    return set(query.labels)
