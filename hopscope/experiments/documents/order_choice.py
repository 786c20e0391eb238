"""Choosing an order: of several shuffles keep the answer whose attention peaks highest.

Masking in Multi-hop QA (Huang et al. 2025), section 5.3; with the baselines that it needs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Unpack, get_args

import numpy as np
import pandas as pd

from hopscope.documents.layout import Label
from hopscope.documents.orders import order_name, shuffles
from hopscope.documents.question_set import QuestionSet
from hopscope.documents.templates import Template
from hopscope.engine.read_out import Version
from hopscope.experiments.analysis import (
    WITHOUT_MEMORY,
    RunKeywords,
    RunOptions,
    analysis,
    run_in_parts,
)
from hopscope.experiments.arguments import AtLeast, InstanceOf, OneOf, OneTemplate, check_masks
from hopscope.experiments.documents.attention import READ, peak_of, read_masses
from hopscope.masks.algebra import Mask
from hopscope.prompting.document_prompts import (
    METRICS,
    VERDICTS,
    DocumentModel,
    DocumentPrompts,
    question_details,
    scored_by,
    scores,
)
from hopscope.queries.answers import squashed
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import points, rows_where, verdict, with_interval
from hopscope.statistics import mean_intervals, paired

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PER_PART = 4
STRATEGIES = {
    "mean": "a random shuffle",
    "peak": "the highest peak",
    "majority": "the majority",
    "oracle": "an oracle",
}


@dataclass(frozen=True, repr=False)
class OrderChoice(Result):
    """What a model answers in several seeded shuffles of the documents.

    `frame` has one row a question and shuffle: `query, shuffle, order, generation, peak` and the
    metrics of `Permutation`.
    """

    kind = "order_choice"
    columns: ClassVar = {
        "query": "str",
        "shuffle": "int64",
        "order": "str",
        "generation": "str",
        "peak": "float64",
        **dict.fromkeys(VERDICTS, "bool"),
        "f1": "float64",
    }

    def choices(self, metric: str | None = None) -> pd.DataFrame:
        """The score of each question by strategy.

        `mean`: of all shuffles, what a random one gives. `peak`: of the answer with the highest
        peak of attention. `majority`: of the answer that most shuffles give (the first of those
        that are as frequent). `oracle`: whether any is right. All over the same shuffles.

        Returns:
            One row a question, one column a strategy.

        Raises:
            UsageError: for an unknown metric.
        """
        frame, metric = scored_by(self, metric)
        rows = {}
        for query, group in frame.groupby("query", sort=False):
            values = group[metric].to_numpy()
            answers = [squashed(text) for text in group["generation"]]
            common = Counter(answers).most_common(1)[0][0]
            rows[query] = {
                "mean": values.mean(),
                "peak": values[int(np.argmax(group["peak"].to_numpy()))],
                "majority": values[answers.index(common)],
                "oracle": values.max(),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("query")

    def summary(self, metric: str | None = None, seed: int = 0) -> pd.DataFrame:
        """Accuracy by strategy, and what it gains over a random shuffle.

        Returns:
            Columns `strategy, n, accuracy, low, high, gain, gain_low, gain_high`: 95 % intervals
            over questions: Wilson's for a strategy that is right or wrong in each, a bootstrap for
            a random shuffle and for the paired gain over that.
        """
        table = self.choices(metric)
        means = mean_intervals([table[name].to_numpy() for name in STRATEGIES], seed)
        rows = []
        for name, mean in zip(STRATEGIES, means, strict=True):
            gain = paired(table["mean"].to_numpy(), table[name].to_numpy(), seed)
            rows.append((name, len(table), *mean, gain["difference"], gain["low"], gain["high"]))
        columns = ["strategy", "n", "accuracy", "low", "high", "gain", "gain_low", "gain_high"]
        return pd.DataFrame(rows, columns=columns)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary()}

    def printed(self, seed: int = 0, metric: str | None = None) -> dict[str, pd.DataFrame]:
        """The summary.

        Args:
            seed: of the bootstrap.
            metric: `contained`, `matched`, `exact_match`, `f1` or `paper`; if None what suits the
                template.
        """
        return {"summary": self.summary(metric, seed)}

    def findings(self) -> list[str]:
        rows = {row["strategy"]: row for row in rows_where(self.summary())}
        mean = rows.pop("mean")
        sentences = [
            f"of {self.run['settings']['k']} shuffles a random one is right for "
            f"{with_interval(mean['accuracy'], mean['low'], mean['high'])}."
        ]
        for strategy, row in rows.items():
            ends = {"low": row["gain_low"], "high": row["gain_high"]}
            gain = {"n": row["n"], "difference": row["gain"], **ends}
            difference = points(row["gain"], row["gain_low"], row["gain_high"])
            sentences.append(
                f"Chosen by {STRATEGIES[strategy]}: "
                f"{with_interval(row['accuracy'], row['low'], row['high'])}, {difference} over "
                f"a random shuffle: {verdict(gain)}."
            )
        return sentences

    def plot(self, ax: Axes | None = None, metric: str | None = None) -> Axes:
        """Draw accuracy by strategy."""
        from hopscope.experiments.documents import plots

        return plots.strategy_points(self.summary(metric), ax)


@analysis(
    "best-order",
    name="order_choice",
    title="Choosing an order",
    question="Does the peak of attention tell which of several orders to trust?",
    source="Masking in Multi-hop QA, section 5",
    control="a random shuffle, the majority vote and an oracle",
    asks="documents",
    subsets=("documents",),
    order=120,
    keywords=WITHOUT_MEMORY,
    accepts={
        "k": AtLeast(1),
        "mask": InstanceOf(str | Mask, optional=True),
        "read": OneOf(READ),
        "metric": OneOf(tuple(METRICS), optional=True),
        "template": OneTemplate(),
        "label": OneOf(get_args(Label)),
        "max_new_tokens": AtLeast(1, optional=True),
    },
    in_study=lambda scale: {"k": scale.shuffles},
    parity={"template": "paper_whole", "read": "generated"},
)
def best_order(
    model: DocumentModel,
    questions: QuestionSet,
    k: int = 20,
    mask: str | Mask | None = None,
    *,
    read: str = "answer",
    template: str | Template | None = None,
    label: Label = "position",
    max_new_tokens: int | None = None,
    **run: Unpack[RunKeywords],
) -> OrderChoice:
    """Answer under `k` shuffled orders, and choose one by the peak of attention.

    Args:
        model: the model.
        questions: the questions; each needs at least `k` orders.
        k: how many shuffled orders to try.
        mask: a name, such as `causal` or `document_block`, or a mask.
        read: `answer`, `last` or `generated`: whose attention is read; see
            `attention_to_documents`.
        template: `answer_only`, `cot`, `plain` or `chat`, `paper_whole`, which is the authors' in
            this choice, or a `Template`; what suits the questions if None.
        label: the number in front of a document: its displayed `position`, `fixed`, or `none`.
        max_new_tokens: tokens of an answer; the template's own number if None.

    Returns:
        An `OrderChoice`: `summary()` has the choice beside mean, majority vote and oracle.

    Raises:
        QueryError: if a question has fewer than `k` orders, or does not fit the context.
        UsageError: for a bad argument.
    """
    options, chosen = RunOptions(**run), check_masks(mask, model)[0]
    prompts = DocumentPrompts.of(model, questions, template, label, max_new_tokens, options.seed)
    for question in questions:
        shuffles(prompts.fitted_question(question).question, k, options.seed)
    settings = {**prompts.settings, "k": k, "mask": chosen.name, "read": read}
    chooser = _Chooser(prompts, k, chosen, read)
    return run_in_parts(
        OrderChoice, model, questions, settings, chooser.tables, options, per_part=PER_PART
    )


@dataclass(frozen=True)
class _Chooser:
    """Asks some questions in all their shuffles."""

    prompts: DocumentPrompts
    k: int
    mask: Mask
    read: str

    def tables(self, questions: QuestionSet) -> Tables:
        """Frame and details of some questions."""
        rows, details = [], []
        for question in questions:
            fitted = self.prompts.fitted_question(question)
            orders = shuffles(fitted.question, self.k, self.prompts.seed)
            versions = [Version(self.prompts.layout(fitted, each), self.mask) for each in orders]
            readings = self.prompts.read(versions, attention=True)
            assert readings.masses is not None
            details.append(question_details(fitted))
            for index, (order, version) in enumerate(zip(orders, versions, strict=True)):
                tokens = readings.outputs.tokens[index]
                mass, _ = read_masses(self.prompts, readings.masses[index], tokens, self.read)
                text = self.prompts.answer(tokens)
                rows.append(
                    {
                        "query": question.id,
                        "shuffle": index,
                        "order": order_name(order),
                        "generation": text,
                        "peak": peak_of(version.layout, mass),
                        **scores(text, question.names),
                    }
                )
        return {"frame": pd.DataFrame(rows), "details": pd.DataFrame(details)}
