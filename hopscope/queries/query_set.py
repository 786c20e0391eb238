"""Provides QuerySet: two-hop queries to filter, sample, convert, and write as prompts."""

from __future__ import annotations

import hashlib
import html
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, overload

import pandas as pd

from hopscope.errors import (
    NearNames,
    QueryError,
    did_you_mean,
    of_type,
    one_of,
    tuple_of,
    whole_number,
)
from hopscope.queries.chat import INSTRUCTION, PREFILL, Chat
from hopscope.queries.conditions import CONDITIONS, Condition
from hopscope.queries.demonstrations import Demonstrations, plain_line
from hopscope.queries.formats import from_frame, to_frame, write_csv
from hopscope.queries.multi_hop_query import MultiHopQuery
from hopscope.queries.prompts import Prompt, token_position, token_span
from hopscope.queries.query import CUT, Query
from hopscope.queries.two_hop_query import FORMS, Form, TwoHopQuery

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

    from hopscope.models.token_model import TokenModel

__all__ = [
    "FORMS",
    "Form",
    "MultiHopQuery",
    "Prompt",
    "Query",
    "QuerySet",
    "TwoHopQuery",
    "token_position",
    "token_span",
]


@dataclass(frozen=True, repr=False)
class QuerySet(NearNames, Sequence[Query]):
    """An immutable sequence of queries with distinct ids, all of as many hops.

    Args:
        queries: the queries.
        name: name of the set in results.
        few_shot: number of demonstrations in each prompt; 0 for none.
        few_shot_seed: seed of the choice of demonstrations.
        pool: the queries from which demonstrations are chosen. An empty pool stands for the
            queries of the set; subsets keep the pool of the set that they were taken from.
        chat: how the queries are asked in a chat; None if they are asked as plain text.
        condition: what is written around each question; nothing if None. Not in a chat.

    Raises:
        QueryError: for repeated ids, for queries of different numbers of hops, or for as many
            demonstrations as the pool has queries.

    Example:
        >>> queries = load_queries("world")
        >>> queries.filter(lambda query: query.e1_type == "city").sample(2).few_shot
        5
    """

    queries: tuple[Query, ...]
    name: str = "queries"
    few_shot: int = 0
    few_shot_seed: int = 0
    pool: tuple[Query, ...] = ()
    chat: Chat | None = None
    condition: Condition | None = None

    def __post_init__(self) -> None:
        advice = (
            "make them with hs.TwoHopQuery(...) or hs.MultiHopQuery(...), or load a table with "
            "hs.load_queries"
        )
        for name in ("queries", "pool"):
            found = tuple_of(name, getattr(self, name), Query, advice, QueryError)  # type: ignore[type-abstract]
            object.__setattr__(self, name, found)
        object.__setattr__(self, "pool", self.pool or self.queries)
        if len(self._by_id) < len(self.queries):
            ids = [query.id for query in self.queries]
            twice = next(each for each in ids if ids.count(each) > 1)
            raise QueryError(f"{self.name}: two queries have the id {twice!r}; ids must differ")
        asked = {query.forms: query for query in (*self.queries, *self.pool)}
        if len(asked) > 1:
            first, second, *_ = asked.values()
            raise QueryError(
                f"{self.name}: queries {first.id!r} and {second.id!r} are not asked in the same "
                f"forms ({first.whole}, {second.whole}); put queries of as many hops into one set, "
                "and those with a wording of their own into another"
            )
        whole_number("few_shot", self.few_shot, least=0, error=QueryError)
        if self.condition is not None and self.chat is not None:
            raise QueryError(
                "a condition is written around plain prompts: in a chat, give with_chat() an "
                "instruction or a prefill that says the same"
            )
        whole_number("few_shot_seed", self.few_shot_seed, error=QueryError)
        if self.few_shot and self.queries and self.few_shot >= len(self.pool):
            raise QueryError(
                f"{self.few_shot} demonstrations were asked for, but {self.name} has only "
                f"{len(self.pool)} queries to take them from; take a smaller k or a larger set"
            )

    def __len__(self) -> int:
        return len(self.queries)

    def __iter__(self) -> Iterator[Query]:
        return iter(self.queries)

    @overload
    def __getitem__(self, index: int) -> Query: ...
    @overload
    def __getitem__(self, index: slice) -> QuerySet: ...
    def __getitem__(self, index: int | slice) -> Query | QuerySet:
        if isinstance(index, slice):
            return self._subset(self.queries[index])
        return self.queries[index]

    def __repr__(self) -> str:
        chat = ", chat" if self.chat else ""
        chat += f", {self.condition.name}" if self.condition else ""
        return f"QuerySet({self.name!r}, {len(self)} queries, few_shot={self.few_shot}{chat})"

    def _repr_html_(self) -> str:
        columns = ["id", "source_prompt", "e2_label", "e3_label"]
        table = to_frame(self.queries[:10])[columns].to_html(index=False)
        return f"<p>{html.escape(repr(self))}</p>{table}"

    @cached_property
    def _by_id(self) -> dict[str, Query]:
        return {query.id: query for query in self.queries}

    @cached_property
    def _demonstrations(self) -> Demonstrations:
        return Demonstrations(self.pool, self.few_shot, self.few_shot_seed)

    @cached_property
    def _prompts(self) -> dict[Form, tuple[Prompt, ...]]:
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the queries, the few-shot settings and, if they are used, pool and chat."""
        content: list[object] = [asdict(query) for query in self.queries]
        if self.few_shot:
            content += [self.few_shot, self.few_shot_seed, [asdict(query) for query in self.pool]]
        if self.chat is not None:
            content.append(self.chat.settings)
        if self.condition is not None:
            content.append(asdict(self.condition))
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def _example(self) -> Query:
        """A query like those of the set, which may be empty."""
        return (*self.queries, *self.pool, _NO_QUERY)[0]

    @property
    def n_hops(self) -> int:
        """How many hops the queries have."""
        return self._example.n_hops

    @property
    def forms(self) -> tuple[Form, ...]:
        """What can be asked of the queries, the whole question first; see `forms_of`."""
        return self._example.forms

    @property
    def entities(self) -> tuple[str, ...]:
        """The names of the queries' entities: "e1", … up to the answer."""
        return self._example.entities

    @property
    def positions(self) -> tuple[str, ...]:
        """The positions that the prompts of all hops have: "t1", … up to the end."""
        return self._example.positions

    def as_two_hop(self, bridge: str) -> QuerySet:
        """The same questions as ones of two hops: all before a bridge entity, and all after it.

        So every analysis of two hops can be run on a chain, at each of its bridges.

        Args:
            bridge: the entity that becomes e2: "e2", …, but neither the first nor the last.

        Raises:
            QueryError: for another entity, or questions in a wording of their own.

        Example:
            >>> chains = load_queries("world-three-hops")            # doctest: +SKIP
            >>> hs.cross_patch(model, chains.as_two_hop("e3"))       # doctest: +SKIP
        """

        def divided(queries: Sequence[Query]) -> tuple[Query, ...]:
            return tuple(
                query.as_two_hop(bridge) if isinstance(query, MultiHopQuery) else query
                for query in queries
            )

        one_of("bridge", bridge, self._example.bridges, QueryError)
        name = self.name if self.n_hops == 2 else f"{self.name}.{bridge}"
        return replace(self, queries=divided(self.queries), pool=divided(self.pool), name=name)

    def _subset(self, queries: Sequence[Query]) -> QuerySet:
        return replace(self, queries=tuple(queries))

    def by_id(self, id: str) -> Query:
        """Return the query with an id.

        Raises:
            QueryError: if there is no query of that id; the message suggests similar ids.
        """
        if str(id) in self._by_id:
            return self._by_id[str(id)]
        raise QueryError(
            f"{self.name} has no query {str(id)!r}{did_you_mean(str(id), list(self._by_id))}"
        )

    def filter(self, predicate: Callable[[Query], bool]) -> QuerySet:
        """Return the queries for which ``predicate`` is true; the result may be empty."""
        return self._subset([query for query in self.queries if predicate(query)])

    def sample(self, n: int, seed: int = 0) -> QuerySet:
        """Return ``n`` queries drawn without replacement, in the order of the set.

        Raises:
            QueryError: if ``n`` is not between 1 and the number of queries.
        """
        if not 1 <= whole_number("n", n, error=QueryError) <= len(self):
            raise QueryError(
                f"cannot sample {n} queries from {self.name}, which has {len(self)}; "
                f"take a number from 1 to {len(self)}"
            )
        chosen = sorted(random.Random(seed).sample(range(len(self)), n))
        return self._subset([self.queries[index] for index in chosen])

    def balance(self, by: str = "e2_type", most: int = 50, seed: int = 0) -> QuerySet:
        """Return at most ``most`` random queries for each value of a field, in the set's order.

        Args:
            by: a part such as "e2_type", or an extra column.
            most: the largest number of queries to keep for each value.
            seed: seed of the choice.

        Raises:
            QueryError: if no query has the field ``by``, or if ``most`` is less than 1.
        """
        whole_number("most", most, least=1, error=QueryError)
        if not isinstance(by, str):
            raise QueryError(f"by must be the name of a field, not {by!r:.60}")
        groups: dict[object, list[int]] = defaultdict(list)
        for index, query in enumerate(self.queries):
            groups[query.value(by)].append(index)
        if self.queries and set(groups) <= {None, ""}:
            raise QueryError(f"cannot balance {self.name} by {by!r}: no query has that field")
        chosen: list[int] = []
        for key in sorted(groups, key=str):
            members, shuffle = groups[key], random.Random(f"{seed} {key}")
            chosen += shuffle.sample(members, min(most, len(members)))
        return self._subset([self.queries[index] for index in sorted(chosen)])

    def split(self, fraction: float = 0.5, seed: int = 0) -> tuple[QuerySet, QuerySet]:
        """Divide the set at random into about ``fraction`` of the queries and the others.

        Args:
            fraction: share of the queries in the first part, between 0 and 1.
            seed: seed of the division.

        Raises:
            QueryError: if ``fraction`` is not between 0 and 1.
        """
        if not isinstance(fraction, Real) or not 0 < fraction < 1:
            raise QueryError(f"fraction must lie between 0 and 1, not {fraction}")
        count = round(fraction * len(self))
        first = set(random.Random(seed).sample(range(len(self)), count))
        parts: tuple[list[Query], list[Query]] = ([], [])
        for index, query in enumerate(self.queries):
            parts[index not in first].append(query)
        return self._subset(parts[0]), self._subset(parts[1])

    def with_few_shot(self, k: int, seed: int = 0) -> QuerySet:
        """Return the set with ``k`` demonstrations in each prompt, chosen with ``seed``.

        A demonstration never mentions the source, bridge or answer entity of the query. Most
        queries share their demonstrations; see `hopscope.queries.demonstrations`.

        Raises:
            QueryError: if ``k`` is negative, or the pool too small.
        """
        return replace(self, few_shot=k, few_shot_seed=seed)

    def with_chat(
        self,
        model: TokenModel,
        instruction: str = INSTRUCTION,
        prefill: str = PREFILL,
        system: str | None = None,
    ) -> QuerySet:
        """Return the set, asked in the turns of a model's own chat template.

        The question and each demonstration are a user's turn; the assistant's turn has begun, so
        that the answer's first token comes next. `t2` is the last token of that beginning; the
        other positions lie in the question. Where the template lets one, thinking is off. Where it
        tells the model the date, that is always 26 July 2024, so that the prompts stay the same.

        Args:
            model: the model that is asked; another model needs its own call.
            instruction: the user's turn, with one `{}` for the prompt.
            prefill: the beginning of the assistant's turn; "" for the template's own alone.
            system: the system prompt; what the template has by itself if None.

        Raises:
            QueryError: if the instruction does not have exactly one `{}`.
            UsageError: if the tokenizer has no chat template, or one that does not take such turns.

        Example:
            >>> graded = hs.grade(model, queries.with_chat(model))  # doctest: +SKIP
        """
        return replace(self, chat=Chat(model.tokenizer, instruction, prefill, system))

    def with_condition(self, condition: str | Condition | None) -> QuerySet:
        """Return the set, with something written around each question, in demonstrations, too.

        Args:
            condition: `repeated`: the question is asked twice; `filler`: ten dots stand before the
                answer; `bridge_first`: the bridges are named before the answer, in brackets, and
                the prompt ends where the first one is due; a `Condition` of your own; None for
                nothing.

        Raises:
            QueryError: for an unknown condition, or a set that is asked in a chat.

        Example:
            >>> hs.grade(model, queries.with_condition("filler"))         # doctest: +SKIP
        """
        if isinstance(condition, str):
            condition = CONDITIONS[one_of("condition", condition, CONDITIONS, QueryError)]
        return replace(self, condition=condition)

    def prompts(self, form: Form | None = None) -> list[Prompt]:
        """Return the prompts of all queries in one form, each preceded by its demonstrations.

        Args:
            form: form of the question, such as `two_hop`, `first_hop`, `second_hop`,
                `entity_shortcut` or `relation_shortcut`; see `forms`. All hops if None.

        Raises:
            QueryError: for an unknown form, or if the pool has too few demonstrations for a query.
        """
        form = self.forms[0] if form is None else form
        known = (*self.forms, CUT) if self.n_hops == 2 else self.forms
        one_of("prompt form", form, known, QueryError)
        if form not in self._prompts:
            framed = self._framed if self.chat is None else self._chatted
            self._prompts[form] = tuple(framed(form))
        return list(self._prompts[form])

    def _framed(self, form: Form) -> Iterator[Prompt]:
        """Yield the prompts as plain text."""
        line = plain_line if self.condition is None else self.condition.line
        for query in self.queries:
            shown = self._demonstrations.text(query, form, line)
            yield Prompt.of(query, form, shown, condition=self.condition)

    def _chatted(self, form: Form) -> Iterator[Prompt]:
        """Yield the prompts as chats; most queries share their demonstrations."""
        assert self.chat is not None
        frame = lru_cache(self.chat.frame)
        for query in self.queries:
            shown = self._demonstrations.shown(query, form) if self.few_shot else ()
            yield Prompt.of(query, form, *frame(shown), chat=True)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with the columns of the Hopping Too Late CSV and any extra columns.

        Lists of aliases are text, as in the CSV, and so are ids.
        """
        return to_frame(self.queries)

    @classmethod
    def from_pandas(
        cls, frame: pd.DataFrame, name: str = "frame", hops: int | None = None
    ) -> QuerySet:
        """Convert a table in one of the formats, of queries of so many hops; see `load_queries`."""
        frame = of_type("frame", frame, pd.DataFrame, error=QueryError)
        return cls(from_frame(frame, name, hops), name)

    def to_csv(self, path: str | Path) -> None:
        """Write the set as a CSV in the Hopping Too Late format.

        Raises:
            QueryError: if the folder does not exist.
        """
        write_csv(self.to_pandas(), Path(path))

    def to_datasets(self) -> datasets.Dataset:
        """Return the table of `to_pandas` as a ``datasets.Dataset``."""
        import datasets

        return datasets.Dataset.from_pandas(self.to_pandas(), preserve_index=False)

    @classmethod
    def from_datasets(
        cls, dataset: datasets.Dataset, name: str = "dataset", hops: int | None = None
    ) -> QuerySet:
        """Convert a ``datasets.Dataset`` in one of the formats; see `load_queries`."""
        return cls.from_pandas(dataset.to_pandas(), name, hops)


_NO_QUERY = TwoHopQuery("", "e1", "e2", "e3", "r1 {}", "r2 {}")
