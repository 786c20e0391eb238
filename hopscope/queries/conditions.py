"""Provides Condition: what is written around a question that may help a model to compose its hops.

Greenblatt (2025): filler tokens before the answer, or the question repeated; and the bridge asked
for first. A query set under a condition is asked so in all of its prompts, with demonstrations that
show how it is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hopscope.errors import QueryError
from hopscope.queries.demonstrations import demonstration, demonstration_line
from hopscope.queries.query import Form, Query, forms_of, lowered
from hopscope.scripts import needs_space

OPENS, CLOSES = " [", "]"
"""Between these stand the bridges, where they are thought of first."""


@dataclass(frozen=True)
class Condition:
    """What stands around a question, in a prompt and in its demonstrations.

    Attributes:
        name: in results.
        before: before the question; `{question}` stands for the question itself.
        after: between the question and its answer.
        bridges: whether the bridges are to be named before the answer: the demonstrations do so,
            in brackets, and the prompt ends where the first bridge is due.

    Example:
        >>> query = load_queries("world")[0]                              # doctest: +SKIP
        >>> CONDITIONS["bridge_first"].around(query, "two_hop")[1]        # doctest: +SKIP
        ' [the country containing Aarhus is'
    """

    name: str
    before: str = ""
    after: str = ""
    bridges: bool = False

    def __post_init__(self) -> None:
        for name in ("name", "before", "after"):
            if not isinstance(getattr(self, name), str):
                raise QueryError(
                    f"{name} of a condition must be a text, not {getattr(self, name)!r:.60}"
                )

    def around(self, query: Query, form: Form) -> tuple[str, str]:
        """What stands before and after the question of a prompt."""
        return self._before(query, form), self.after + "".join(self._thoughts(query, form)[:1])

    def line(self, query: Query, form: Form) -> str:
        """A query as a demonstration: its question, what is thought first, and its answer."""
        text, answer = demonstration(query, form)
        asked = f"{self._before(query, form)}{text}{self.after}"
        thoughts = self._thoughts(query, form)
        labels = [query.label(entity) for entity in self._bridges(query, form)]
        for thought, label in zip(thoughts, labels, strict=True):
            asked += f"{thought}{' ' * needs_space(thought)}{label}"
        return demonstration_line(asked + CLOSES * bool(thoughts), answer)

    def answer(self, text: str) -> str:
        """The part of a generation behind the bridges; all of it where none are asked for.

        One that closes no bracket has not come to an answer.
        """
        if not self.bridges:
            return text
        return text.partition(CLOSES)[2]

    def _before(self, query: Query, form: Form) -> str:
        return self.before.replace("{question}", query.compose(form)[0])

    def _bridges(self, query: Query, form: Form) -> list[str]:
        """The bridges that a question passes by; none of a shortcut, which has no true ones."""
        asked = forms_of(query.n_hops)[form]
        hidden = asked.relations[:-1] if self.bridges and asked.like == form else ()
        return [f"e{relation + 1}" for relation in hidden]

    def _thoughts(self, query: Query, form: Form) -> list[str]:
        """What asks for each bridge, in their order: " [the country containing Aarhus is"."""
        start = forms_of(query.n_hops)[form].start
        thoughts: list[str] = []
        for bridge in self._bridges(query, form):
            part = _chain(query, start, int(bridge[1:]) - 1)
            thoughts.append(f"{'; ' if thoughts else OPENS}{lowered(query.compose(part)[0])}")
        return thoughts


def _chain(query: Query, start: int, end: int) -> Form:
    """The form that asks the hops from one to another."""
    if len(query.positions) < query.n_hops:
        raise QueryError(
            f"query {query.id!r} is asked in its own words, of which its bridges cannot be asked "
            "first; leave out the condition"
        )
    wanted, known = tuple(range(start, end + 1)), forms_of(query.n_hops)
    return next(f for f, asked in known.items() if asked.relations == wanted and asked.like == f)


PLAIN = Condition("plain")
CONDITIONS: Mapping[str, Condition] = {
    each.name: each
    for each in (
        Condition("repeated", before="{question}? "),
        Condition("filler", after=" ." * 10),
        Condition("bridge_first", bridges=True),
    )
}
"""The conditions by name: the question asked twice, ten dots before the answer, and the bridges
named before it."""
