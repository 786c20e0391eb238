"""Provides Query: a chain of relations from a source entity to an answer, and its prompts.

It knows no file and no model; `two_hop_query` and `multi_hop_query` store its parts.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass
from functools import lru_cache
from typing import Any, ClassVar

from hopscope.errors import QueryError, one_of
from hopscope.queries.answers import name_text

Form = str
"""The name of one way to ask about a query; see `forms_of`."""
Span = tuple[int, int]

MAX_HOPS = 4
"""Hops of a query at most."""
POSITIONS = tuple(f"t{k}" for k in range(1, MAX_HOPS + 1))
"""The positions that a query may have."""
ENTITIES = tuple(f"e{k}" for k in range(1, MAX_HOPS + 2))
"""The entities that a query may have."""
SLOT = "{}"
_ORDINALS = ("first", "second", "third", "fourth")
HOPS: tuple[Form, ...] = tuple(f"{name}_hop" for name in _ORDINALS)
"""The forms that ask one hop."""
_NUMBERS = ("one", "two", "three", "four")
CUT = "relation_shortcut_cut"
"""The relation shortcut of two hops as the authors of Hopping Too Late write it."""

# Words between a relation and its argument: "the capital | of {}", "the work | that features {}",
# "the country | where {} is located".
_RELATIVES = frozenset({"that", "which", "who", "whom", "whose", "where", "when"})
_PREPOSITION_LIST = (
    "about against among around as at behind by during for from in inside into near of on onto "
    "over through to towards under with within"
)
_PREPOSITIONS = frozenset(_PREPOSITION_LIST.split())
_PARTICIPLE = re.compile(
    r"\w{2,}(?:ed|ing)|born|built|drawn|held|led|made|run|set|sung|won|written"
)
_QUOTES = "\"'‘’“”«»"


@dataclass(frozen=True)
class Asked:
    """What one form of prompt asks.

    Attributes:
        start: the number of the entity at which it begins.
        relations: the numbers of the relations, the innermost first.
        named: whether the entity at which it begins stands in it.
        like: the form that its demonstrations have: a whole question of as many relations, whose
            answer is of the same kind.
    """

    start: int
    relations: tuple[int, ...]
    named: bool = True
    like: Form = ""

    @property
    def answer(self) -> str:
        """The entity that is the right answer, such as "e3"."""
        return f"e{self.relations[-1] + 1}"


@lru_cache
def forms_of(n: int) -> Mapping[Form, Asked]:
    """The forms of the prompts about a query of n hops, by name, in the order of a table.

    The whole question comes first (`two_hop`, `three_hop`, `four_hop`), then each hop
    (`first_hop`, …), then the longer parts of the chain (`hops_1_2`: r2(r1(e1))), then the
    shortcuts, which leave out a relation (`without_r1`) or an entity with all before it
    (`without_e1`); with two hops these are called `entity_shortcut` and `relation_shortcut`.
    """
    if n == 2:
        shortcuts = {"without_r1": "entity_shortcut", "without_e1": "relation_shortcut"}
    else:
        shortcuts = {}
    chains = {
        (start, end): _chain_name(start, end, n)
        for length in (n, *range(1, n))
        for start in range(1, n - length + 2)
        for end in (start + length - 1,)
    }
    forms = {
        name: Asked(start, tuple(range(start, end + 1)), like=name)
        for (start, end), name in chains.items()
    }
    for left_out in range(1, n):
        relations = tuple(k for k in range(1, n + 1) if k != left_out)
        name = f"without_r{left_out}"
        forms[shortcuts.get(name, name)] = Asked(1, relations, like=chains[2, n])
    for start in range(1, n):
        name, like = f"without_e{start}", chains[start, n]
        relations = tuple(range(start, n + 1))
        forms[shortcuts.get(name, name)] = Asked(start, relations, named=False, like=like)
    return forms


def _chain_name(start: int, end: int, n: int) -> Form:
    if (start, end) == (1, n) and n > 1:
        return f"{_NUMBERS[n - 1]}_hop"
    return HOPS[start - 1] if start == end else f"hops_{start}_{end}"


class Query(ABC):
    """A chain of relations: e2 = r1(e1), e3 = r2(e2), …, of which the last entity is the answer.

    The templates are noun phrases with one ``{}`` for their argument ("the capital of {}"). A
    prompt is the composed phrase followed by its ending. Entities and relations are named by their
    numbers, "e1" and "r1" first; the position "t1" is the end of the phrase r1(e1), "t2" that of
    r2(r1(e1)), and so on; the last one is the end of the prompt.
    """

    __slots__ = ()

    id: str
    extra: Mapping[str, object]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # what holds the parts is a dataclass

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """The name of each entity in prompts."""

    @property
    @abstractmethod
    def aliases(self) -> tuple[tuple[str, ...], ...]:
        """The other names of each entity."""

    @property
    @abstractmethod
    def entity_ids(self) -> tuple[str, ...]:
        """An identifier of each entity, such as a Wikidata id, or ""."""

    @property
    @abstractmethod
    def entity_types(self) -> tuple[str, ...]:
        """The type of each entity, or ""."""

    @property
    @abstractmethod
    def templates(self) -> tuple[str, ...]:
        """The template of each relation."""

    @property
    @abstractmethod
    def endings(self) -> tuple[str, ...]:
        """What ends a prompt of which each relation is the outermost."""

    @property
    @abstractmethod
    def relation_ids(self) -> tuple[str, ...]:
        """An identifier of each relation, or ""."""

    @property
    @abstractmethod
    def relation_types(self) -> tuple[str, ...]:
        """The type of each relation, or ""."""

    @property
    def n_hops(self) -> int:
        """How many relations the query has."""
        return len(self.templates)

    @property
    def entities(self) -> tuple[str, ...]:
        """The names "e1", "e2", … of the entities; the last one is the answer."""
        return tuple(f"e{k}" for k in range(1, self.n_hops + 2))

    @property
    def bridges(self) -> tuple[str, ...]:
        """The entities between source and answer: "e2", …"""
        return self.entities[1:-1]

    @property
    def answer(self) -> str:
        """The name of the last entity: "e3" of two hops."""
        return self.entities[-1]

    @property
    def positions(self) -> tuple[str, ...]:
        """The names of the positions: the end of each phrase, "t1", …, and of the prompt."""
        return tuple(f"t{k}" for k in range(1, self.n_hops + 1))

    @property
    def forms(self) -> tuple[Form, ...]:
        """What is asked of the query, the whole question first; see `forms_of`."""
        return tuple(forms_of(self.n_hops))

    @property
    def whole(self) -> Form:
        """The form that asks all hops."""
        return self.forms[0]

    def label(self, entity: str) -> str:
        """The name of an entity in prompts."""
        return self.labels[self._place("entity", entity)]

    def names(self, entity: str) -> tuple[str, ...]:
        """Return the label of an entity, followed by its non-empty aliases; numbers as text.

        Raises:
            QueryError: for an entity that the query does not have.
        """
        aliases = self.aliases[self._place("entity", entity)]
        usable = (name for name in map(name_text, aliases) if name and name.strip())
        return tuple(dict.fromkeys((self.label(entity), *usable)))

    def template(self, relation: str) -> str:
        """The template of a relation."""
        return self.templates[self._place("relation", relation)]

    def value(self, name: str) -> object:
        """A part by its name in tables (`e1_label`, `r2_type`, `id`), or an extra column; or None.

        Example:
            >>> load_queries("world")[0].value("e2_label")       # doctest: +SKIP
            'Denmark'
        """
        kind, _, what = name.partition("_")
        parts: dict[str, dict[str, tuple[object, ...]]] = {
            "e": {"label": self.labels, "aliases": self.aliases, "type": self.entity_types},
            "r": {"template": self.templates, "ending": self.endings, "type": self.relation_types},
        }
        bare = {"e": self.entity_ids, "r": self.relation_ids}
        if re.fullmatch(r"[er]\d", kind):
            column = parts[kind[0]].get(what) if what else bare[kind[0]]
            if column is not None and 0 < int(kind[1]) <= len(column):
                found: object = column[int(kind[1]) - 1]
                return found
        return self.id if name == "id" else self.extra.get(name)

    def _place(self, kind: str, name: str) -> int:
        """The place of an entity or relation in the tuples."""
        known = self.entities
        if kind == "relation":
            known = tuple(f"r{k}" for k in range(1, self.n_hops + 1))
        return known.index(one_of(kind, name, known, QueryError))

    def compose(self, form: Form | None = None) -> tuple[str, dict[str, Span]]:
        """Return the text of a prompt and its half-open character spans by name.

        The spans are the entity at which it begins ("e1"); the phrase of each hop, by the position
        at its last token ("t1", and that of the first hop as "r1e1", too); and as the last
        position ("t2" of two hops) the whole prompt. `r1_word`, `r2_word`, … are the third words
        from the end of the templates, where these have so many ("capital" in "the capital of {}").

        Args:
            form: one of `forms`; the whole question if None.

        Raises:
            QueryError: for an unknown form.
        """
        form = one_of("prompt form", form or self.whole, self.forms, QueryError)
        return self._composed(forms_of(self.n_hops)[form])

    def _composed(self, asked: Asked) -> tuple[str, dict[str, Span]]:
        text, spans = "", dict[str, Span]()
        for depth, k in enumerate(asked.relations):
            phrase = self.templates[k - 1]
            if depth == 0 and not asked.named:
                phrase = relation_only(phrase)
            outer = [self.templates[each - 1] for each in asked.relations[depth + 1 :]]
            if not all(template.startswith(SLOT) for template in outer):
                phrase = lowered(phrase)
            if depth == 0 and not asked.named:
                text = phrase
                continue
            if depth == 0:
                text = self.labels[asked.start - 1]
                spans[f"e{asked.start}"] = (0, len(text))
            start = phrase.index(SLOT)
            spans = {name: (start + a, start + b) for name, (a, b) in spans.items()}
            if asked.named and asked.relations[0] == 1:
                spans |= third_last_word(f"r{k}_word", phrase, text)
            text = phrase.replace(SLOT, text)
            spans[f"t{k}"] = (0, len(text))
        if asked.start == 1 and "t1" in spans:
            spans["r1e1"] = spans["t1"]
        text += self.endings[asked.relations[-1] - 1]
        return text, spans | {self.positions[-1]: (0, len(text))}


def check_texts(id: object, texts: Mapping[str, object]) -> None:
    """Raise QueryError if what should be a text is none."""
    for name, value in texts.items():
        if not isinstance(value, str):
            raise QueryError(f"query {id!r}: {name} must be a text, not {value!r:.60}")


def check_query(query: Query) -> None:
    """Raise QueryError for a label without a name, or a template without exactly one ``{}``."""
    for entity, label in zip(query.entities, query.labels, strict=True):
        if not label.strip():
            raise QueryError(f"query {query.id!r}: {entity}_label is empty; give the entity a name")
    for number, template in enumerate(query.templates, start=1):
        if template.count(SLOT) != 1 or not template.replace(SLOT, "").strip():
            raise QueryError(
                f"query {query.id!r}: r{number}_template is {template!r}; expected a phrase with "
                'exactly one {} where the entity goes, such as "the capital of {}"'
            )


def lowered(template: str) -> str:
    """Lower-case the first letter of a template that begins with an article."""
    articled = template.startswith(("The ", "A ", "An "))
    return template[0].lower() + template[1:] if articled else template


def composed_template(templates: Sequence[str]) -> str:
    """The template of several relations as one, the innermost first.

    Example:
        >>> composed_template(("The country of {}", "The capital of {}"))
        'The capital of the country of {}'
    """
    whole, *outer = templates
    for template in outer:
        whole = template.replace(SLOT, whole if template.startswith(SLOT) else lowered(whole))
    return whole


def relation_only(template: str) -> str:
    """Remove the argument from a relation's template, with the words that attach it.

    Example:
        >>> relation_only("the capital of {}"), relation_only("the work that features {}")
        ('the capital', 'the work')
        >>> relation_only("the country where {} is located"), relation_only("{}'s mother")
        ('the country', 'The mother')
    """
    before, after = template.split(SLOT)
    if after.startswith(("'s ", "’s ")):
        return f"{before}{'the' if before else 'The'}{after[2:]}"
    words = before.rstrip(_QUOTES + " ").split()
    clause = bool(after.strip(_QUOTES + " "))
    relation = words[: _attachment_start(words, clause)]
    return " ".join(relation or words or after.split())


def _attachment_start(words: Sequence[str], clause: bool) -> int:
    """Return the index of the first word that attaches the argument to the relation.

    If the argument stands in a clause ("where {} is located"), that is the relative pronoun.
    """
    lowered = [word.lower() for word in words]
    relatives = [i for i, word in enumerate(lowered) if word in _RELATIVES]
    connectives = [i for i, word in enumerate(lowered) if word in _RELATIVES | _PREPOSITIONS]
    if clause and relatives:
        start = relatives[-1]
    elif connectives:
        start = connectives[-1]
    else:
        start = len(words)
    while start > 1 and (lowered[start - 1] in _PREPOSITIONS or _is_participle(lowered, start - 1)):
        start -= 1
    return start


def _is_participle(words: Sequence[str], index: int) -> bool:
    """Return whether a word after the noun is a participle: "the city | containing {}"."""
    return index > 1 and _PARTICIPLE.fullmatch(words[index]) is not None


def third_last_word(name: str, template: str, argument: str) -> dict[str, Span]:
    """The span of a template's third word from the end, once it has its argument; none without."""
    before, space, after = template.rpartition(" ")[0].rpartition(" ")[0].rpartition(" ")
    if not after or SLOT in after:
        return {}
    start = len(before) + len(space)
    if SLOT in before:
        start += len(argument) - len(SLOT)
    return {name: (start, start + len(after))}
