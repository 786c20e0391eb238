"""Provides Asker: the prompts of a query set as one model reads them, with their clean runs.

Imports what runs a prompt; the experiments import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from hopscope.engine.attention import PrefixStore
from hopscope.engine.sweep import CleanRun, Stop, clean_run
from hopscope.errors import UsageError
from hopscope.experiments.two_hop.grading import said
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.answers import Match, decided
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import Form, Prompt, TwoHopQuery
from hopscope.results.result import mean_intervals


@dataclass(frozen=True)
class Asker:
    """Asks the queries of a set; keeps nothing but the prefixes that their prompts share.

    Attributes:
        model: the model.
        prompts: the prompt of each query id.
        room: how many tokens are generated after a prompt.
    """

    model: LanguageModel
    prompts: Mapping[str, Prompt]
    room: int = 0
    store: PrefixStore = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "store", PrefixStore(self.model, most=16))

    @classmethod
    def of(
        cls, model: LanguageModel, queries: QuerySet, room: int = 0, form: Form = "two_hop"
    ) -> Asker:
        """An asker of one form of the queries' prompts."""
        return cls(model, {prompt.query_id: prompt for prompt in queries.prompts(form)}, room)

    def prompt(self, query: TwoHopQuery) -> TokenizedPrompt:
        """A query's prompt as tokens."""
        return TokenizedPrompt.of(self.model, self.prompts[query.id], self.room)

    def clean(self, prompt: TokenizedPrompt) -> CleanRun:
        """The unedited run over a prompt."""
        return clean_run(self.model, prompt.ids, self.store.get(prompt.ids[: prompt.n_shared]))


def until_answered(
    model: LanguageModel, names: Iterable[str], match: Match, one_line: bool
) -> Stop:
    """A stop for when the line has ended, or the answer is there whatever may follow."""
    names = tuple(names)

    def stop(tokens: tuple[int, ...]) -> bool:
        text = model.decode(tokens)
        return (one_line and "\n" in text) or decided(text, names, match)

    return stop


def same_answer(a: str, b: str, one_line: bool) -> bool:
    """Whether two generations say the same."""
    return said(a, one_line).strip() == said(b, one_line).strip()


def question(prompt: TokenizedPrompt) -> str:
    """The text of a prompt without its demonstrations."""
    return prompt.prompt.text[prompt.prompt.few_shot :]


def check_choice(what: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    """The given names, each once.

    Raises:
        UsageError: for a bare string, an empty list, or a name that is not known.
    """
    if isinstance(given, str) or not given:
        raise UsageError(f"give a list of {what}s with any of {', '.join(known)}, not {given!r}")
    for name in given:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}: choose from {', '.join(known)}")
    return list(dict.fromkeys(given))


def check_layers(layers: Iterable[int] | None, n_layers: int) -> list[int]:
    """The given layers, each once; all if None.

    Raises:
        UsageError: for a layer that the model has not, or none.
    """
    if layers is None:
        return list(range(n_layers))
    given = list(dict.fromkeys(int(layer) for layer in layers))
    wrong = [layer for layer in given if not 0 <= layer < n_layers]
    if wrong or not given:
        raise UsageError(
            f"layers are numbers from 0 to {n_layers - 1}; got {wrong[0] if wrong else 'none'}"
        )
    return given


def intervals(
    table: pd.DataFrame, by: Sequence[str], value: str, name: str, seed: int = 0
) -> pd.DataFrame:
    """The mean of a column over queries for each group, with 95 % bootstrap intervals.

    Args:
        table: one row a query and group.
        by: the columns that make a group.
        value: the column; rows where it is missing are left out.
        name: what the mean is called.
        seed: of the bootstrap.

    Returns:
        Columns: `by`, `n`, `name`, `low`, `high`.
    """
    groups = list(table.dropna(subset=[value]).groupby(list(by), sort=False)[value])
    keys = [key for key, _ in groups]
    means = mean_intervals([group.to_numpy(dtype=float) for _, group in groups], seed)
    rows = [
        (*key, len(group), *mean) for key, (_, group), mean in zip(keys, groups, means, strict=True)
    ]
    return pd.DataFrame(rows, columns=[*by, "n", name, "low", "high"])
