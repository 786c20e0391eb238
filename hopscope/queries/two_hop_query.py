"""Provides TwoHopQuery: a two-hop query, and the prompts that are composed from its templates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from hopscope.errors import QueryError, one_of
from hopscope.queries.answers import name_text

Form = Literal[
    "two_hop",
    "first_hop",
    "second_hop",
    "entity_shortcut",
    "relation_shortcut",
    "relation_shortcut_cut",
]
PROMPT_FORMS: tuple[Form, ...] = get_args(Form)
FORMS = PROMPT_FORMS[:5]
"""What is asked of a query; `relation_shortcut_cut` is the relation shortcut as the authors of
Hopping Too Late write it."""
Span = tuple[int, int]

_SLOT = "{}"
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


def lowered(template: str) -> str:
    """Lower-case the first letter of a template that begins with an article."""
    articled = template.startswith(("The ", "A ", "An "))
    return template[0].lower() + template[1:] if articled else template


def relation_only(template: str) -> str:
    """Remove the argument from a relation's template, with the words that attach it.

    Example:
        >>> relation_only("the capital of {}"), relation_only("the work that features {}")
        ('the capital', 'the work')
        >>> relation_only("the country where {} is located"), relation_only("{}'s mother")
        ('the country', 'The mother')
    """
    before, after = template.split(_SLOT)
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


TEXTS = (
    *("id", "e1_label", "e2_label", "e3_label", "r1_template", "r2_template"),
    *("e1", "r1", "e2", "r2", "e3"),
    *("e1_type", "r1_type", "e2_type", "r2_type", "e3_type", "r1_ending", "r2_ending"),
)
"""The fields of a query that are texts."""


@dataclass(frozen=True, slots=True)
class TwoHopQuery:
    """A two-hop query r2(r1(e1)) with source entity e1, bridge entity e2 and answer e3.

    The templates are noun phrases with one ``{}`` for their argument ("the capital of {}"). A
    prompt is the composed phrase followed by its ending, " is" by default. A first template that
    begins with "The ", "A " or "An " is lower-cased inside another phrase.

    Args:
        id: identifier of the query in results, unique in its set.
        e1_label, e2_label, e3_label: names of the entities in prompts.
        r1_template, r2_template: templates of the relations.
        e1, r1, e2, r2, e3: identifiers of entities and relations, such as Wikidata ids, or "".
        e1_aliases, e2_aliases, e3_aliases: other names of the entities.
        e1_type, r1_type, e2_type, r2_type, e3_type: types of entities and relations, or "".
        r1_ending, r2_ending: endings of the prompts about r1 and r2: " is", or "" for templates
            that contain a verb, such as "{} was born in the city of" in TwoHopFact.
        extra: further columns of the table, by name; do not modify it.

    Raises:
        QueryError: if a template does not have exactly one ``{}``, if a label is empty, or if what
            should be a text or a list of names is none.

    Example:
        >>> query = TwoHopQuery(
        ...     id="1", e1_label="the Louvre", e2_label="France", e3_label="Paris",
        ...     r1_template="The country of {}", r2_template="The capital of {}",
        ... )
        >>> query.two_hop()
        'The capital of the country of the Louvre is'
    """

    id: str
    e1_label: str
    e2_label: str
    e3_label: str
    r1_template: str
    r2_template: str
    e1: str = ""
    r1: str = ""
    e2: str = ""
    r2: str = ""
    e3: str = ""
    e1_aliases: tuple[str, ...] = ()
    e2_aliases: tuple[str, ...] = ()
    e3_aliases: tuple[str, ...] = ()
    e1_type: str = ""
    r1_type: str = ""
    e2_type: str = ""
    r2_type: str = ""
    e3_type: str = ""
    r1_ending: str = " is"
    r2_ending: str = " is"
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in TEXTS:
            if not isinstance(getattr(self, name), str):
                raise QueryError(
                    f"query {self.id!r}: {name} must be a text, not {getattr(self, name)!r:.60}"
                )
        for name in ("e1_aliases", "e2_aliases", "e3_aliases"):
            aliases = getattr(self, name)
            if isinstance(aliases, str) or not isinstance(aliases, Iterable):
                raise QueryError(
                    f"query {self.id!r}: {name} must be a list of names, not {aliases!r:.60}"
                )
        for label in ("e1_label", "e2_label", "e3_label"):
            if not getattr(self, label).strip():
                raise QueryError(f"query {self.id!r}: {label} is empty; give the entity a name")
        for name in ("r1_template", "r2_template"):
            template = getattr(self, name)
            if template.count(_SLOT) != 1 or not template.replace(_SLOT, "").strip():
                raise QueryError(
                    f"query {self.id!r}: {name} is {template!r}; expected a phrase with exactly "
                    'one {} where the entity goes, such as "the capital of {}"'
                )

    def names(self, entity: Literal["e1", "e2", "e3"]) -> tuple[str, ...]:
        """Return the label of an entity, followed by its non-empty aliases; numbers as text.

        Raises:
            QueryError: for anything but `e1`, `e2` or `e3`.
        """
        one_of("entity", entity, ("e1", "e2", "e3"), QueryError)
        aliases = getattr(self, f"{entity}_aliases")
        usable = (name for name in map(name_text, aliases) if name and name.strip())
        return tuple(dict.fromkeys((getattr(self, f"{entity}_label"), *usable)))

    def two_hop(self) -> str:
        """Return the two-hop prompt, ``r2(r1(e1)) is``."""
        return self.compose("two_hop")[0]

    def first_hop(self) -> str:
        """Return the prompt of the first hop, ``r1(e1) is``."""
        return self.compose("first_hop")[0]

    def second_hop(self) -> str:
        """Return the prompt of the second hop with the true bridge entity, ``r2(e2) is``."""
        return self.compose("second_hop")[0]

    def entity_shortcut(self) -> str:
        """Return the second relation applied to the source entity, ``r2(e1) is``."""
        return self.compose("entity_shortcut")[0]

    def relation_shortcut(self) -> str:
        """Return the prompt with both relations but no source entity, ``r2(r1) is``."""
        return self.compose("relation_shortcut")[0]

    def relation_shortcut_cut(self) -> str:
        """Return the relation shortcut of the authors of Hopping Too Late: no " is", and cut.

        The last four characters are left out, " of " where the first template ends in "of {}",
        and the end of a word where it does not.
        """
        return self.compose("relation_shortcut_cut")[0]

    def compose(self, form: Form) -> tuple[str, dict[str, Span]]:
        """Return the text of a prompt and its half-open character spans by name.

        The spans are "t2", the whole prompt; "e1" or "e2", the entity in it; and for `two_hop` and
        `first_hop` also the phrase of the first hop, as "r1e1" and as "t1", the name of the
        position at its last token. `r1_word` and `r2_word` are the third words from the end of the
        templates, where these have so many ("capital" in "the capital of {}").

        Raises:
            QueryError: for an unknown form.
        """
        one_of("prompt form", form, PROMPT_FORMS, QueryError)
        if form == "first_hop":
            text, spans = self._first_hop_phrase(self.r1_template)
            text += self.r1_ending
        elif form == "two_hop":
            phrase, inner = self._first_hop_phrase(self._inner(self.r1_template))
            start = self.r2_template.index(_SLOT)
            text = self._second(phrase)
            spans = {name: (start + a, start + b) for name, (a, b) in inner.items()}
            spans |= _third_last_word("r2_word", self.r2_template, phrase)
        elif form == "relation_shortcut":
            text, spans = self._second(self._inner(relation_only(self.r1_template))), {}
        elif form == "relation_shortcut_cut":
            phrase = self._inner(self.r1_template).replace(_SLOT, "")
            text, spans = self.r2_template.replace(_SLOT, phrase)[:-4], {}
        else:
            entity = "e2" if form == "second_hop" else "e1"
            label = getattr(self, f"{entity}_label")
            start = self.r2_template.index(_SLOT)
            text, spans = self._second(label), {entity: (start, start + len(label))}
        return text, spans | {"t2": (0, len(text))}

    def _inner(self, phrase: str) -> str:
        """Return a phrase as it is written inside the second template."""
        return phrase if self.r2_template.startswith(_SLOT) else lowered(phrase)

    def _second(self, argument: str) -> str:
        """Return the second relation applied to an argument, with its ending."""
        return self.r2_template.replace(_SLOT, argument) + self.r2_ending

    def _first_hop_phrase(self, template: str) -> tuple[str, dict[str, Span]]:
        """Return the phrase r1(e1) and the spans in it."""
        start = template.index(_SLOT)
        phrase = template.replace(_SLOT, self.e1_label)
        whole = (0, len(phrase))
        entity = {"e1": (start, start + len(self.e1_label)), "r1e1": whole, "t1": whole}
        return phrase, entity | _third_last_word("r1_word", template, self.e1_label)


def _third_last_word(name: str, template: str, argument: str) -> dict[str, Span]:
    """The span of a template's third word from the end, once it has its argument; none without."""
    before, space, after = template.rpartition(" ")[0].rpartition(" ")[0].rpartition(" ")
    if not after or _SLOT in after:
        return {}
    start = len(before) + len(space)
    if _SLOT in before:
        start += len(argument) - len(_SLOT)
    return {name: (start, start + len(after))}
