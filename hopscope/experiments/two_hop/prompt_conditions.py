"""Prompt conditions: does a composition come right if the prompt gives the model more room?

Greenblatt (2025) lets models answer after filler tokens, or after the question was repeated; here
the bridge can also be asked for first. Each is compared with the plain prompt, query by query: what
it repairs, and what it breaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import pandas as pd

from hopscope.display.progress import divided
from hopscope.engine.prefix_store import PrefixStore
from hopscope.engine.read_out import ReadOut
from hopscope.engine.sweep import generate
from hopscope.errors import UsageError, as_list
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_in_parts
from hopscope.experiments.arguments import AtLeast, Flag, ListOf, OneOf, Queries
from hopscope.experiments.two_hop.chains import bridges_of
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.generation import answer_text, reads_one_line, stop_at_line_end
from hopscope.prompting.tokenized import TokenizedPrompt, by_prefix
from hopscope.queries.answers import MATCHES, Match, matches
from hopscope.queries.conditions import CONDITIONS, PLAIN, Condition
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import points, row_where, rows_where, verdict, with_interval
from hopscope.statistics import intervals, paired

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PER_PART = 32
BATCH = 64
LABELS = {
    "plain": "plain prompt",
    "repeated": "question twice",
    "filler": "ten filler tokens",
    "bridge_first": "bridge named first",
}


@dataclass(frozen=True, repr=False)
class PromptConditions(Result):
    """What a model answers to the same questions under several conditions.

    `frame` has one row a query and condition: `prompt` (from the question on), `generation`, and
    whether it is `correct`. The condition `plain` is the question alone. `details` has one row a
    query.
    """

    kind = "prompt_conditions"
    columns: ClassVar = {
        "query": "str",
        "condition": "str",
        "prompt": "str",
        "generation": "str",
        "correct": "bool",
    }

    def accuracy(self, seed: int = 0) -> pd.DataFrame:
        """Share of queries that are answered right, by condition.

        Returns:
            Columns `condition, n, share, low, high`: Wilson 95 % intervals.
        """
        return intervals(self.frame, ["condition"], "correct", "share", seed)

    def gains(self, seed: int = 0) -> pd.DataFrame:
        """What each condition changes against the plain prompt, query by query.

        Returns:
            Columns `condition` and those of `hopscope.statistics.paired`: `n, difference, low,
            high`, `better` (queries that it repairs), `worse` (that it breaks), and `p`.
        """
        wide = self.frame.pivot(index="query", columns="condition", values="correct")
        rows = [
            {
                "condition": condition,
                **paired(wide[PLAIN.name].to_numpy(), wide[condition].to_numpy(), seed),
            }
            for condition in dict.fromkeys(self.frame["condition"])
            if condition != PLAIN.name
        ]
        return pd.DataFrame(rows)

    def tables(self) -> dict[str, pd.DataFrame]:
        return dict(self.printed())

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {"accuracy": self.accuracy(seed), "gains": self.gains(seed)}

    def findings(self) -> list[str]:
        plain = row_where(self.accuracy(), condition=PLAIN.name)
        assert plain is not None
        share = with_interval(plain["share"], plain["low"], plain["high"])
        sentences = [f"The plain prompt is answered right in {share}."]
        shares = {row["condition"]: row for row in rows_where(self.accuracy())}
        for gain in rows_where(self.gains()):
            row = shares[gain["condition"]]
            sentences.append(
                f"{LABELS.get(gain['condition'], gain['condition'])}: "
                f"{with_interval(row['share'], row['low'], row['high'])}; it repairs "
                f"{gain['better']} and breaks {gain['worse']} of {gain['n']} "
                f"({points(gain['difference'], gain['low'], gain['high'])}): {verdict(gain)}."
            )
        return sentences

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the share of right answers by condition."""
        from hopscope.experiments.two_hop import plots

        return plots.condition_bars(self.accuracy(), self.gains(), LABELS, ax)


@dataclass(frozen=True)
class Conditions:
    """Conditions by name, or conditions of one's own."""

    known: Sequence[str] = tuple(CONDITIONS)

    def checked(self, name: str, value: Any, model: Any) -> list[Condition]:
        """The conditions."""
        given = as_list(value, str | Condition, name)
        named = [each for each in given if not isinstance(each, Condition)]
        if named or not given:
            ListOf(self.known).checked(name, named, model)
        found = {
            each.name: each
            for each in (c if isinstance(c, Condition) else CONDITIONS[c] for c in given)
        }
        if PLAIN.name in found:
            raise UsageError("the plain prompt is asked in any case: leave out the condition plain")
        return list(found.values())


@analysis(
    "prompt-conditions",
    title="Prompt conditions",
    question="Does the answer come right if the prompt gives the model more room?",
    source="Greenblatt 2025",
    control="the plain prompt of the same query",
    subsets=("incorrect", "correct"),
    usual_subset="incorrect",
    order=15,
    accepts={
        "queries": Queries(),
        "conditions": Conditions(),
        "max_new_tokens": AtLeast(1),
        "bridge_tokens": AtLeast(0),
        "match": OneOf(MATCHES),
        "one_line": Flag(optional=True),
    },
    grades=("match", "max_new_tokens"),
)
def prompt_conditions(
    model: LanguageModel,
    queries: QuerySet,
    conditions: Sequence[str | Condition] = tuple(CONDITIONS),
    max_new_tokens: int = 10,
    bridge_tokens: int = 24,
    match: Match = "word",
    *,
    one_line: bool | None = None,
    **run: Unpack[RunKeywords],
) -> PromptConditions:
    """Ask each query's whole question plainly and under several conditions, greedily.

    Under a condition something is written around the question, in the demonstrations, too; see
    `QuerySet.with_condition`. What names the bridges first is answered behind them.

    Args:
        model: the model.
        queries: usually `graded.incorrect()`, of which a condition may repair some, or
            `graded.correct()`, of which it may break some. In plain prompts, not in a chat.
        conditions: any of `repeated` (the question twice), `filler` (ten dots before the answer),
            `bridge_first` (the bridges are named before the answer), or conditions of your own.
        max_new_tokens: how many tokens are generated for the answer.
        bridge_tokens: how many more for each bridge that is named first.
        match: how an answer is recognised: as whole words, or (the paper) as a substring.
        one_line: whether an answer is the first line only; if None, for few-shot prompts.

    Raises:
        UsageError: for an empty set, an unknown condition, or a prompt that does not fit into the
            context.

    Example:
        >>> prompt_conditions(model, graded.incorrect()).gains()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    chosen = [each for each in conditions if isinstance(each, Condition)]
    settings = {
        "conditions": {each.name: _told(each) for each in chosen},
        "max_new_tokens": max_new_tokens,
        "bridge_tokens": bridge_tokens,
        "match": match,
        "one_line": reads_one_line(queries.few_shot, one_line),
    }
    asker = _Asker(
        model, [PLAIN, *chosen], settings, options.max_memory, PrefixStore(model, most=64)
    )
    return run_in_parts(
        PromptConditions, model, queries, settings, asker.tables, options, per_part=PER_PART
    )


def _told(condition: Condition) -> dict[str, Any]:
    """A condition for the run's record."""
    return {
        "before": condition.before,
        "after": condition.after,
        "bridges": condition.bridges,
    }


@dataclass(frozen=True)
class _Asker:
    """Asks some queries under all conditions."""

    model: LanguageModel
    conditions: Sequence[Condition]
    settings: Mapping[str, Any]
    max_memory: int | None
    store: PrefixStore

    def tables(self, queries: QuerySet) -> Tables:
        """Frame and details of some queries."""
        frames = [self._asked(queries, condition) for condition in divided(self.conditions)]
        order = {query.id: place for place, query in enumerate(queries)}
        frame = PromptConditions.joined(frames)
        frame = frame.sort_values("query", key=lambda ids: ids.map(order), kind="stable")
        rows = [(q.id, q.labels[0], bridges_of(q), q.labels[-1]) for q in queries]
        details = pd.DataFrame(rows, columns=["query", "source", "bridge", "answer"])
        return {"frame": frame.reset_index(drop=True), "details": details}

    def _asked(self, queries: QuerySet, condition: Condition) -> pd.DataFrame:
        """The rows of one condition."""
        room = self.settings["max_new_tokens"]
        if condition.bridges:
            room += self.settings["bridge_tokens"] * (queries.n_hops - 1)
        line, model = self.settings["one_line"], self.model
        asked = queries if condition is PLAIN else queries.with_condition(condition)
        prompts = [TokenizedPrompt.of(model, prompt, room) for prompt in asked.prompts()]
        read_out = ReadOut(max_new_tokens=room, stop=stop_at_line_end(model) if line else None)
        texts: dict[int, str] = {}
        for group in by_prefix(prompts, BATCH):
            rows = [prompts[index] for index in group]
            shared = self.store.get(rows[0].shared)
            ids = [row.ids for row in rows]
            found = generate(model, ids, read_out, shared=shared, max_memory=self.max_memory)
            decoded = (model.decode(tokens) for tokens in found.tokens)
            texts |= dict(zip(group, decoded, strict=True))
        match: Match = self.settings["match"]
        answered = [
            {
                "query": query.id,
                "condition": condition.name,
                "prompt": prompt.prompt.end,
                "generation": texts[index],
                "correct": matches(
                    condition.answer(answer_text(texts[index], line)),
                    query.names(query.answer),
                    match,
                ),
            }
            for index, (query, prompt) in enumerate(zip(queries, prompts, strict=True))
        ]
        return pd.DataFrame(answered)
