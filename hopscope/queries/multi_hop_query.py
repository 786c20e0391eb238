"""Provides MultiHopQuery: a query of two to four hops, whose parts stand in tuples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hopscope.errors import QueryError
from hopscope.queries.query import (
    MAX_HOPS,
    Form,
    Query,
    Span,
    check_query,
    check_texts,
    composed_template,
    forms_of,
)
from hopscope.queries.two_hop_query import TwoHopQuery


@dataclass(frozen=True, slots=True)
class MultiHopQuery(Query):
    """A query of n hops, rn(… r2(r1(e1))), with entities e1 … e(n+1), of which the last answers it.

    `TwoHopQuery` is the one with two hops, with a field for each part. Templates and prompts are
    as there.

    Args:
        id: identifier of the query in results, unique in its set.
        labels: names of the entities in prompts, one more than there are templates.
        templates: templates of the relations, the innermost first; two to four.
        aliases: other names of each entity; none if empty.
        entity_ids, relation_ids: identifiers, such as Wikidata ids; "" for each if empty.
        entity_types, relation_types: types; "" for each if empty.
        endings: what ends a prompt of which each relation is the outermost; " is" if empty.
        wording: the whole question in a data set's own words, where it cannot be composed from its
            hops, as in MuSiQue; then only it and the single hops are asked, and its only positions
            are "e1", if the label stands in it, and the last one.
        extra: further columns of the table, by name; do not modify it.

    Raises:
        QueryError: for fewer than two or more than four templates, tuples that do not fit
            together, a template without exactly one ``{}``, or an empty label.

    Example:
        >>> query = MultiHopQuery(
        ...     "1",
        ...     ("Imagine", "John Lennon", "Yoko Ono", "Japan"),
        ...     ("The performer of {}", "The spouse of {}", "The home country of {}"),
        ... )
        >>> query.compose()[0]
        'The home country of the spouse of the performer of Imagine is'
        >>> query.compose("without_r2")[0]
        'The home country of the performer of Imagine is'
    """

    id: str
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    aliases: tuple[tuple[str, ...], ...] = ()
    entity_ids: tuple[str, ...] = ()
    relation_ids: tuple[str, ...] = ()
    entity_types: tuple[str, ...] = ()
    relation_types: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()
    wording: str = ""
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        n = len(_tuple(self.id, "templates", self.templates))
        if not 2 <= n <= MAX_HOPS:
            raise QueryError(
                f"query {self.id!r}: {n} templates were given; a query has 2 to {MAX_HOPS} hops"
            )
        usual: dict[str, tuple[int, object]] = {
            "templates": (n, ""),
            "labels": (n + 1, ""),
            "aliases": (n + 1, ()),
            "entity_ids": (n + 1, ""),
            "entity_types": (n + 1, ""),
            "relation_ids": (n, ""),
            "relation_types": (n, ""),
            "endings": (n, " is"),
        }
        for name, (length, missing) in usual.items():
            given = _tuple(self.id, name, getattr(self, name)) or (missing,) * length
            if len(given) != length:
                raise QueryError(
                    f"query {self.id!r}: {n} hops have {length} {name}, not {len(given)}"
                )
            if name == "aliases":
                given = tuple(_tuple(self.id, name, each) for each in given)
            object.__setattr__(self, name, given)
        texts = {"id": self.id, "wording": self.wording}
        for name in usual.keys() - {"aliases"}:
            texts |= {f"{name}[{k}]": text for k, text in enumerate(getattr(self, name))}
        check_texts(self.id, texts)
        check_query(self)

    @property
    def forms(self) -> tuple[Form, ...]:
        known = forms_of(self.n_hops)
        if not self.wording:
            return tuple(known)
        whole, *others = known
        return (whole, *(form for form in others if len(known[form].relations) == 1))

    @property
    def positions(self) -> tuple[str, ...]:
        every = tuple(f"t{k}" for k in range(1, self.n_hops + 1))
        return every[-1:] if self.wording else every

    def compose(self, form: Form | None = None) -> tuple[str, dict[str, Span]]:
        if not self.wording or form not in (None, self.whole):
            return Query.compose(self, form)
        start, source = self.wording.find(self.labels[0]), self.labels[0]
        there = {} if start < 0 else {"e1": (start, start + len(source))}
        return self.wording, there | {self.positions[-1]: (0, len(self.wording))}

    def as_two_hop(self, bridge: str) -> TwoHopQuery:
        """The same question as one of two hops: all before a bridge entity, and all after it.

        Args:
            bridge: the entity that becomes e2: "e2", …, but neither the first nor the last.

        Raises:
            QueryError: for another entity, or a question in its own words.
        """
        if bridge not in self.bridges or self.wording:
            known = "; its hops do not compose" if self.wording else f", not {bridge!r}"
            raise QueryError(
                f"query {self.id!r} can be divided at {', '.join(self.bridges)}{known}"
            )
        at, last = int(bridge[1:]) - 1, self.n_hops
        entities = (0, at, last)
        fields: dict[str, object] = {}
        for number, place in enumerate(entities, start=1):
            fields |= {
                f"e{number}": self.entity_ids[place],
                f"e{number}_label": self.labels[place],
                f"e{number}_aliases": self.aliases[place],
                f"e{number}_type": self.entity_types[place],
            }
        for number, (start, end) in enumerate(((0, at), (at, last)), start=1):
            fields |= {
                f"r{number}": ".".join(filter(None, self.relation_ids[start:end])),
                f"r{number}_type": self.relation_types[end - 1],
                f"r{number}_template": composed_template(self.templates[start:end]),
                f"r{number}_ending": self.endings[end - 1],
            }
        return TwoHopQuery(self.id, **fields, extra=self.extra)  # type: ignore[arg-type]


def _tuple(id: object, name: str, given: object) -> tuple[object, ...]:
    """What was given as a tuple.

    Raises:
        QueryError: for a text, or what has no parts.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise QueryError(f"query {id!r}: {name} must be a list, not {given!r:.60}")
    return tuple(given)
