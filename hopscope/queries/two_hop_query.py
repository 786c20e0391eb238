"""Composes a two-hop query into its prompts, and finds the tokens of their spans."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from hopscope.errors import QueryError

Form = Literal["two_hop", "first_hop", "second_hop", "entity_shortcut", "relation_shortcut"]
FORMS: tuple[Form, ...] = get_args(Form)
Span = tuple[int, int]

_SLOT = "{}"
# What can stand between a relation and its argument: "the capital | of {}",
# "the work | that features {}", "the country | where {} is located".
_RELATIVES = frozenset({"that", "which", "who", "whom", "whose", "where", "when"})
_TIES = (
    "about against among around as at behind by during for from in inside into near of on onto "
    "over through to towards under with within"
)
_PREPOSITIONS = frozenset(_TIES.split())
_PARTICIPLE = re.compile(
    r"\w{2,}(?:ed|ing)|born|built|drawn|held|led|made|run|set|sung|won|written"
)
_QUOTES = "\"'‘’“”«»"


def lowered(template: str) -> str:
    """Lower the first letter of a template that starts with an article."""
    articled = template.startswith(("The ", "A ", "An "))
    return template[0].lower() + template[1:] if articled else template


def relation_only(template: str) -> str:
    """Leave the argument out of a relation's template, with what ties it to the relation.

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
    kept = words[: _tie(words, clause)]
    return " ".join(kept or words or after.split())


def _tie(words: Sequence[str], clause: bool) -> int:
    """Where the words that tie a relation to its argument begin.

    With a clause around the argument ("where {} is located") that is its relative pronoun.
    """
    lowered = [word.lower() for word in words]
    relatives = [i for i, word in enumerate(lowered) if word in _RELATIVES]
    ties = [i for i, word in enumerate(lowered) if word in _RELATIVES | _PREPOSITIONS]
    if clause and relatives:
        start = relatives[-1]
    elif ties:
        start = ties[-1]
    else:
        start = len(words)
    while start > 1 and (lowered[start - 1] in _PREPOSITIONS or _is_participle(lowered, start - 1)):
        start -= 1
    return start


def _is_participle(words: Sequence[str], index: int) -> bool:
    """Whether a word after the relation's noun is a participle: "the city | containing {}"."""
    return index > 1 and _PARTICIPLE.fullmatch(words[index]) is not None


@dataclass(frozen=True, slots=True)
class TwoHopQuery:
    """One two-hop question r2(r1(e1)): source entity e1, bridge entity e2, answer e3.

    The templates are noun phrases with one ``{}`` for their argument ("the capital of {}"). A
    prompt is the composed phrase and its ending, by default " is". A first template that starts
    with "The ", "A " or "An " is lowered inside another phrase.

    Args:
        id: what the query is called in results; unique in its set.
        e1, r1, e2, r2, e3: identifiers (Wikidata's, say), or "".
        e1_aliases, e2_aliases, e3_aliases: other names, as they stand in the file.
        e1_type, r1_type, e2_type, r2_type, e3_type: kinds, or "".
        r1_ending, r2_ending: what closes the prompts about r1 and r2. " is" everywhere but for
            templates that hold their own verb, as TwoHopFact's "{} was born in the city of".
        extra: further columns of the file, by name; leave it as it is.

    Raises:
        QueryError: for a template without exactly one ``{}``, or an empty label.

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
        """Return the label and the usable aliases of an entity, the label first.

        Raises:
            QueryError: for another entity.
        """
        if entity not in ("e1", "e2", "e3"):
            raise QueryError(f"unknown entity {entity!r}: choose one of e1, e2, e3")
        aliases = getattr(self, f"{entity}_aliases")
        usable = (name for name in aliases if isinstance(name, str) and name.strip())
        return tuple(dict.fromkeys((getattr(self, f"{entity}_label"), *usable)))

    def two_hop(self) -> str:
        """Ask both hops at once: ``r2(r1(e1)) is``."""
        return self.compose("two_hop")[0]

    def first_hop(self) -> str:
        """Ask the first hop: ``r1(e1) is``."""
        return self.compose("first_hop")[0]

    def second_hop(self) -> str:
        """Ask the second hop of the true bridge: ``r2(e2) is``."""
        return self.compose("second_hop")[0]

    def entity_shortcut(self) -> str:
        """Ask the second relation of the source entity: ``r2(e1) is``."""
        return self.compose("entity_shortcut")[0]

    def relation_shortcut(self) -> str:
        """Ask both relations without a source entity: ``r2(r1) is``."""
        return self.compose("relation_shortcut")[0]

    def compose(self, form: Form) -> tuple[str, dict[str, Span]]:
        """Return the text of a prompt and its character spans.

        Spans: "t2", the whole prompt; "e1" or "e2", the entity it names; in two_hop and
        first_hop also "r1e1", the first-hop phrase, under its position's name "t1" too.

        Raises:
            QueryError: for an unknown form.
        """
        if form == "first_hop":
            text, spans = self._first_hop_phrase(self.r1_template)
            text += self.r1_ending
        elif form == "two_hop":
            phrase, inner = self._first_hop_phrase(self._inner(self.r1_template))
            start = self.r2_template.index(_SLOT)
            text = self._second(phrase)
            spans = {name: (start + a, start + b) for name, (a, b) in inner.items()}
        elif form == "relation_shortcut":
            text, spans = self._second(self._inner(relation_only(self.r1_template))), {}
        elif form in ("second_hop", "entity_shortcut"):
            entity = "e2" if form == "second_hop" else "e1"
            label = getattr(self, f"{entity}_label")
            start = self.r2_template.index(_SLOT)
            text, spans = self._second(label), {entity: (start, start + len(label))}
        else:
            raise QueryError(f"unknown prompt form {form!r}: choose one of {', '.join(FORMS)}")
        return text, spans | {"t2": (0, len(text))}

    def _inner(self, phrase: str) -> str:
        """A phrase as it stands inside the second template."""
        return phrase if self.r2_template.startswith(_SLOT) else lowered(phrase)

    def _second(self, argument: str) -> str:
        """The second relation of an argument, with its ending."""
        return self.r2_template.replace(_SLOT, argument) + self.r2_ending

    def _first_hop_phrase(self, template: str) -> tuple[str, dict[str, Span]]:
        """The phrase r1(e1) and the spans in it."""
        start = template.index(_SLOT)
        phrase = template.replace(_SLOT, self.e1_label)
        whole = (0, len(phrase))
        return phrase, {"e1": (start, start + len(self.e1_label)), "r1e1": whole, "t1": whole}
