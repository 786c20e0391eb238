"""Provides DocumentPrompts: questions over documents as one model reads them, and their answers.

Imports what reads prompts under masks; the experiments over documents import it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import pandas as pd

from hopscope.documents.framing import encoder_of, frame_of
from hopscope.documents.lay_out import check_positions, lay_out
from hopscope.documents.layout import Encode, Label, Layout, Way
from hopscope.documents.orders import Order, arrange
from hopscope.documents.question_set import MultiDocQuestion, QuestionSet
from hopscope.documents.templates import TEMPLATES, Template, template_for, template_of
from hopscope.engine.masked.reader import Reader, reader_of
from hopscope.engine.read_out import Readings, ReadOut, Version
from hopscope.errors import QueryError, ResultError, one_of
from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.generation import answer_text, check_tokens, stop_at_line_end
from hopscope.queries.answers import (
    ANSWER_RULES,
    contains,
    contains_ascii,
    exact_match,
    f1_score,
    matches,
)
from hopscope.results.result import Result
from hopscope.statistics import intervals

logger = logging.getLogger(__name__)

DocumentModel = LanguageModel | EncoderDecoder
"""A model that answers questions over documents."""
VERDICTS = ("contained", "matched", "exact_match")
"""The columns that say whether an answer is right."""
PAPER = "paper"
"""The metric of the code of Huang et al. 2025, which is told from what was answered."""
RIGHT_OR_WRONG = (*VERDICTS, PAPER)
METRICS: Mapping[str, Callable[[str, Sequence[str]], bool | float]] = MappingProxyType(
    {
        "contained": contains,
        "matched": matches,
        "exact_match": exact_match,
        PAPER: contains_ascii,
        "f1": f1_score,
    }
)
"""What compares an answer with the right ones, by name."""
SCORES = (*VERDICTS, "f1")
"""Those that are columns of results."""
DEFAULT_ORDERS = ("original", "forward", "backward")
SPARE_TOKENS = 8
"""Room for labels that take more tokens in another order."""


@dataclass(frozen=True)
class FittedQuestion:
    """A question as it fits into the model's context.

    Attributes:
        question: with the documents that fit.
        dropped: titles of the distractors that do not.
        demonstrations: what stands in front.
    """

    question: MultiDocQuestion
    dropped: tuple[str, ...]
    demonstrations: tuple[MultiDocQuestion, ...]


@dataclass(frozen=True)
class DocumentPrompts:
    """Asks the questions of a set; keeps what their prompts begin with.

    Attributes:
        model: the model.
        questions: the set.
        template: how a question becomes a prompt.
        label: the numbers in front of the documents.
        max_new_tokens: tokens of an answer; the template's own number if None.
        seed: of shuffled orders.
    """

    model: DocumentModel
    questions: QuestionSet
    template: str | Template = "answer_only"
    label: Label = "position"
    max_new_tokens: int | None = None
    seed: int = 0
    fitted: dict[str, FittedQuestion] = field(init=False, default_factory=dict)

    @classmethod
    def of(
        cls,
        model: DocumentModel,
        questions: QuestionSet,
        template: str | Template | None,
        label: Label,
        max_new_tokens: int | None,
        seed: int,
        orders: Sequence[Order] = ("original",),
        ways: Sequence[str] = (),
        scored: bool = True,
    ) -> DocumentPrompts:
        """The prompts of all questions, checked in some orders before anything runs.

        Args:
            model: as the attribute, like the next ones.
            questions: the questions.
            template: what suits the questions if None.
            label: the numbers in front of the documents.
            max_new_tokens: tokens of an answer.
            seed: of shuffled orders.
            orders: those that are asked in.
            ways: what the orders change.
            scored: whether what is answered is compared with the right answer.

        Raises:
            QueryError: for an order that a question cannot have, one that does not fit, or one
                without the answer that is needed.
            UsageError: for a label or template that cannot be.
        """
        chosen = template_for(questions, template)
        prompts = cls(model, questions, chosen, label, max_new_tokens, seed)
        prompts.check(orders, ways, scored=scored)
        return prompts

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            check_tokens(self.max_new_tokens)

    @cached_property
    def reader(self) -> Reader:
        """What reads the prompts; it keeps what they begin with."""
        return reader_of(self.model)

    @cached_property
    def form(self) -> Template:
        """The template; without turns for an encoder-decoder, which knows none."""
        form = template_of(self.template)
        return form.without_turns() if isinstance(self.model, EncoderDecoder) else form

    @property
    def room(self) -> int:
        """How many tokens an answer may take."""
        return self.max_new_tokens or self.form.max_new_tokens

    @cached_property
    def encode(self) -> Encode:
        """Gives the tokens of a text and their character ranges."""
        return encoder_of(self.model, self.form)

    @cached_property
    def frame(self) -> tuple[str, str]:
        """What the chat template puts around a user's turn.

        Raises:
            UsageError: if the tokenizer has no chat template, or one that does not take the turns.
        """
        return frame_of(self.model, self.form)

    def fitted_question(self, question: MultiDocQuestion) -> FittedQuestion:
        """A question with as many distractors as fit, the last ones left out first.

        Raises:
            QueryError: if the gold documents alone do not fit.
        """
        if question.id not in self.fitted:
            self.fitted[question.id] = self._fit(question)
        return self.fitted[question.id]

    asked = fitted_question
    """The older name of `fitted_question`."""

    def _fit(self, question: MultiDocQuestion) -> FittedQuestion:
        shown = self.questions.demonstrations(question)
        limit = self.model.max_context
        whole = self.layout(FittedQuestion(question, (), shown), "original")
        if limit is None or len(whole) + self.room <= limit:
            return FittedQuestion(question, (), shown)
        excess = len(whole) + self.room + SPARE_TOKENS - limit
        dropped: list[int] = []
        for index in reversed(question.distractors):
            if excess > 0:
                dropped.append(index)
                excess -= len(whole.document(index))
        if excess > 0:
            raise QueryError(
                f"question {question.id!r} does not fit into the {limit} tokens of "
                f"{self.model.name}, not even with its gold documents alone; use fewer "
                "demonstrations, a shorter template or a model with a longer context"
            )
        titles = tuple(question.documents[index].title for index in sorted(dropped))
        logger.warning(
            "question %r: %d of %d documents are dropped, since %s reads %d tokens: %s",
            *(question.id, len(titles), len(question.documents), self.model.name, limit),
            ", ".join(titles),
        )
        return FittedQuestion(question.without(dropped), titles, shown)

    def layout(self, fitted: FittedQuestion, order: Order, way: Way = "text") -> Layout:
        """A question's prompt in an order."""
        return lay_out(
            self.encode,
            fitted.question,
            order,
            way=way,
            template=self.form,
            label=self.label,
            seed=self.seed,
            demonstrations=fitted.demonstrations,
            frame=self.frame,
        )

    def read(
        self,
        versions: Sequence[Version],
        *,
        attention: bool = False,
        answer_tokens: tuple[int, ...] = (),
    ) -> Readings:
        """Let the model answer."""
        return self.reader.read(versions, self.read_out(answer_tokens), attention=attention)

    def answer_tokens(self, layout: Layout) -> tuple[int, ...]:
        """The next tokens that tell the answer from those of the earlier hops; there may be none.

        An encoder-decoder begins its answer anew; other models continue the prompt.
        """
        question = layout.question
        return self.model.answer_tokens(
            question.names,
            required=False,
            after=layout.text,
            beside=[hop.answer for hop in question.hops[:-1]],
        )

    def read_out(self, answer_tokens: tuple[int, ...] = ()) -> ReadOut:
        """What is read of a prompt: an answer, up to the end of its line if that ends it."""
        stop = stop_at_line_end(self.model) if self.form.one_line else None
        return ReadOut(answer_tokens, max_new_tokens=self.room, stop=stop)

    def answer(self, tokens: Sequence[int]) -> str:
        """What was answered: the first line, or where the template says that it stands.

        A box that the prompt has opened counts as if it had been generated.
        """
        text = answer_text(self.model.decode(tokens), self.form.one_line)
        if self.form.one_line:
            return text
        opened = self.form.prefill if "boxed" in self.form.answer else ""
        return ANSWER_RULES[self.form.answer](opened + text)

    def check(
        self,
        orders: Sequence[Order] = ("original",),
        ways: Sequence[str] = (),
        *,
        scored: bool = True,
    ) -> None:
        """Check the orders of every question, so that a bad one is reported before anything runs.

        Args:
            orders: the orders.
            ways: what they change.
            scored: whether what is answered is compared with the right answer.

        Raises:
            QueryError: with the question and the reason.
            UsageError: for a label or template that cannot be.
        """
        for question in self.questions:
            if scored and not question.answer:
                raise QueryError(
                    f"question {question.id!r} has no answer with which to compare what the model "
                    "answers; leave it out (questions.filter(lambda q: q.answer))"
                )
            for order in orders:  # first what no model could be asked
                arrange(question, order, self.seed)
        for question in self.questions:
            fitted = self.fitted_question(question).question
            for order in orders:
                shown = arrange(fitted, order, self.seed)
                if "positions" in ways:
                    check_positions(fitted, shown)

    @property
    def settings(self) -> dict[str, Any]:
        """What a run record says."""
        template = self.template if isinstance(self.template, str) else self.form.as_record()
        return {
            "template": template,
            "label": self.label,
            "max_new_tokens": self.room,
            "seed": self.seed,
        }


def scores(text: str, names: Sequence[str]) -> dict[str, Any]:
    """The metrics of an answer; None for all of them if the right one is unknown."""
    return {name: METRICS[name](text, names) if names else None for name in SCORES}


def question_details(fitted: FittedQuestion) -> dict[str, Any]:
    """A question's columns in the details of a result."""
    question = fitted.question
    return {
        "query": question.id,
        "question": question.question,
        "answer": question.answer,
        "names": json.dumps(question.names, ensure_ascii=False),
        "bridge": question.hops[0].answer if question.hops else "",
        "hops": len(question.hops),
        "documents": len(question.documents),
        "dropped": ", ".join(fitted.dropped),
    }


def usual_metric(run: Mapping[str, Any]) -> str:
    """The metric of a run's template, `contained` if it has none."""
    template = run.get("settings", {}).get("template")
    if isinstance(template, str):
        template = TEMPLATES[template].as_record() if template in TEMPLATES else {}
    return str((template or {}).get("metric") or "contained")


def scored_by(
    result: Result,
    metric: str | None,
    table: pd.DataFrame | None = None,
    known: Iterable[str] = METRICS,
) -> tuple[pd.DataFrame, str]:
    """A table of a result with the column of a metric, and the metric's name.

    Args:
        result: of an analysis over documents.
        metric: one of `known`; that of the run's template if None.
        table: with the columns `query` and `generation`; the result's frame if None.
        known: the metrics that can be asked for.

    Raises:
        UsageError: for an unknown metric.
        ResultError: if the metric is `paper`, and the result is of a version that did not keep the
            aliases.
    """
    table = result.frame if table is None else table
    metric = one_of("metric", metric or usual_metric(result.run), known)
    if metric != PAPER:
        return table, metric
    if "names" not in result.details or result.details["names"].isna().any():
        raise ResultError(
            "this result, or a part of it, is of a version that did not keep the aliases of "
            "answers, which the metric 'paper' needs: run it anew in another folder"
        )
    told = result.details.drop_duplicates("query").set_index("query")["names"]
    names = {query: json.loads(each) for query, each in told.items()}
    verdicts = [
        METRICS[PAPER](text, names[query]) if names[query] else None
        for query, text in zip(table["query"], table["generation"], strict=True)
    ]
    return table.assign(paper=pd.Series(verdicts, index=table.index)), metric


def check_metric(metric: str, known: Iterable[str] = METRICS) -> None:
    """Raise a `UsageError` for an unknown metric."""
    one_of("metric", metric, known)


def accuracies(frame: pd.DataFrame, by: Sequence[str], metric: str, seed: int = 0) -> pd.DataFrame:
    """The mean of a metric over questions for each group, with 95 % intervals.

    Wilson's for what is right or wrong; a percentile bootstrap for F1.

    Args:
        frame: one row a question and group.
        by: the columns that make a group.
        metric: one of `METRICS`.
        seed: of the bootstrap.

    Returns:
        Columns: `by`, `n`, `accuracy`, `low`, `high`.

    Raises:
        UsageError: for another metric.
    """
    check_metric(metric)
    return intervals(frame, by, metric, "accuracy", seed)
