"""Provides TwoHopQuery: a two-hop query, and the prompts that are composed from its templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hopscope.errors import QueryError, one_of
from hopscope.queries.query import (
    CUT,
    SLOT,
    Form,
    Query,
    Span,
    check_query,
    check_texts,
    forms_of,
    lowered,
    relation_only,
)

__all__ = ["FORMS", "PROMPT_FORMS", "Form", "Span", "TwoHopQuery", "relation_only"]

FORMS: tuple[Form, ...] = tuple(forms_of(2))
"""What is asked of a query with two hops."""
PROMPT_FORMS: tuple[Form, ...] = (*FORMS, CUT)
"""`FORMS`, and the relation shortcut as the authors of Hopping Too Late write it."""

TEXTS = (
    *("id", "e1_label", "e2_label", "e3_label", "r1_template", "r2_template"),
    *("e1", "r1", "e2", "r2", "e3"),
    *("e1_type", "r1_type", "e2_type", "r2_type", "e3_type", "r1_ending", "r2_ending"),
)
"""The fields of a query that are texts."""


@dataclass(frozen=True, slots=True)
class TwoHopQuery(Query):
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
        check_texts(self.id, {name: getattr(self, name) for name in TEXTS})
        for name in ("e1_aliases", "e2_aliases", "e3_aliases"):
            aliases = getattr(self, name)
            if isinstance(aliases, str) or not isinstance(aliases, Iterable):
                raise QueryError(
                    f"query {self.id!r}: {name} must be a list of names, not {aliases!r:.60}"
                )
        check_query(self)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.e1_label, self.e2_label, self.e3_label

    @property
    def aliases(self) -> tuple[tuple[str, ...], ...]:
        return self.e1_aliases, self.e2_aliases, self.e3_aliases

    @property
    def entity_ids(self) -> tuple[str, ...]:
        return self.e1, self.e2, self.e3

    @property
    def entity_types(self) -> tuple[str, ...]:
        return self.e1_type, self.e2_type, self.e3_type

    @property
    def templates(self) -> tuple[str, ...]:
        return self.r1_template, self.r2_template

    @property
    def endings(self) -> tuple[str, ...]:
        return self.r1_ending, self.r2_ending

    @property
    def relation_ids(self) -> tuple[str, ...]:
        return self.r1, self.r2

    @property
    def relation_types(self) -> tuple[str, ...]:
        return self.r1_type, self.r2_type

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
        return self.compose(CUT)[0]

    def compose(self, form: Form | None = None) -> tuple[str, dict[str, Span]]:
        """As `Query.compose`; `relation_shortcut_cut` is a form of two hops, too."""
        if one_of("prompt form", form or self.whole, PROMPT_FORMS, QueryError) != CUT:
            return Query.compose(self, form)
        phrase = self.r1_template
        phrase = phrase if self.r2_template.startswith(SLOT) else lowered(phrase)
        text = self.r2_template.replace(SLOT, phrase.replace(SLOT, ""))[:-4]
        return text, {"t2": (0, len(text))}
