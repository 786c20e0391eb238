"""Provides QueryPrompts: the prompts of a query set as one model reads them, with their clean runs.

Imports what runs a prompt; the experiments import it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hopscope.engine.clean_run import CleanRun, clean_run
from hopscope.engine.edits import Cell
from hopscope.engine.prefix_store import PrefixStore
from hopscope.engine.read_out import CellOutputs, ReadOut
from hopscope.engine.sweep import sweep
from hopscope.errors import QueryError
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.list_questions import right_answers
from hopscope.queries.prompts import Prompt
from hopscope.queries.query import Form, Query
from hopscope.queries.query_set import QuerySet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueryPrompts:
    """Asks the queries of a set; keeps nothing but the prefixes that their prompts share.

    Attributes:
        model: the model.
        by_query: the prompt of each query id.
        room: how many tokens are generated after a prompt.
        max_memory: bytes that the rows of a sweep may take; measured if None.
    """

    model: LanguageModel
    by_query: Mapping[str, Prompt]
    room: int = 0
    max_memory: int | None = None
    store: PrefixStore = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "store", PrefixStore(self.model, most=16))

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        queries: QuerySet,
        room: int = 0,
        form: Form | None = None,
        max_memory: int | None = None,
    ) -> QueryPrompts:
        """One form of the queries' prompts, as the model reads them; all hops if None."""
        by_query = {prompt.query_id: prompt for prompt in queries.prompts(form)}
        return cls(model, by_query, room, max_memory)

    def prompt(self, query: Query) -> TokenizedPrompt:
        """A query's prompt as tokens."""
        return TokenizedPrompt.of(self.model, self.by_query[query.id], self.room)

    def answer_tokens(self, query: Query) -> tuple[int, ...]:
        """The next tokens that tell a query's answer; none if it cannot be told."""
        return self.tokens_of(self.by_query[query.id], query, query.answer)

    def each_answer(self, query: Query) -> tuple[tuple[int, ...], ...]:
        """The next tokens that tell each right answer of a list question from its bridge."""
        end, bridge = self.by_query[query.id].end, query.names(query.bridges[-1])
        return tuple(
            self.model.answer_tokens(names, required=False, after=end, beside=bridge)
            for names in right_answers(query)
        )

    def bridge_tokens(self, query: Query, bridge: str = "e2") -> tuple[int, ...]:
        """The next tokens that tell a bridge of a query; none if it cannot be told."""
        return self.tokens_of(self.by_query[query.id], query, bridge)

    def tokens_of(self, prompt: Prompt, query: Query, entity: str) -> tuple[int, ...]:
        """The next tokens of a prompt that tell a bridge or answer of a query from the others."""
        others = [
            name for other in query.entities[1:] for name in query.names(other) if other != entity
        ]
        return self.model.answer_tokens(
            query.names(entity), required=False, after=prompt.end, beside=others
        )

    def clean(self, prompt: TokenizedPrompt) -> CleanRun:
        """The unedited run over a prompt."""
        return clean_run(self.model, prompt.ids, self.store.get(prompt.shared))

    def sweep(
        self,
        ids: Sequence[int],
        cells: Sequence[Cell],
        read_out: ReadOut,
        clean: CleanRun,
        base: Cell = (),
    ) -> CellOutputs:
        """Many edited versions of one prompt; the arguments are those of `engine.sweep.sweep`."""
        memory = self.max_memory
        return sweep(self.model, ids, cells, read_out, base=base, clean=clean, max_memory=memory)


def with_first_tokens(
    model: LanguageModel,
    queries: QuerySet,
    tokens_of: Callable[[Query], Sequence[int]],
) -> QuerySet:
    """The queries of which first tokens can be read; the others are left out, with a warning.

    Args:
        model: the model.
        queries: the queries.
        tokens_of: gives the tokens that tell an entity of a query; none if it cannot be told.

    Raises:
        QueryError: if there are queries, but none of this kind.
    """
    kept = queries.filter(lambda query: bool(tokens_of(query)))
    ids = {query.id for query in kept}
    left_out = [query.id for query in queries if query.id not in ids]
    if left_out and not len(kept):
        raise QueryError(
            f"no first token identifies the names of any query of {queries.name} for {model.name}: "
            "its tokenizer begins them with a space by itself, a part of a character or the "
            "unknown token, or the answer as the bridge"
        )
    if left_out:
        logger.warning(
            "%d of %d queries have names that no first token identifies: they are left out, "
            "such as %s",
            len(left_out),
            len(queries),
            left_out[0],
        )
    return kept


def question(prompt: TokenizedPrompt) -> str:
    """The question of a prompt, without its demonstrations and the turns of a chat."""
    return prompt.prompt.question
