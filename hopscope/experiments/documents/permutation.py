"""Permuted documents: how the order of documents and the mask change multi-hop answers.

Masking in Multi-hop QA (Huang et al. 2025), sections 3 and 4.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, get_args

import pandas as pd

from hopscope.documents.layout import Label, Way
from hopscope.documents.orders import Order, order_name
from hopscope.documents.question_set import MultiDocQuestion, QuestionSet
from hopscope.documents.templates import Template
from hopscope.engine.read_out import Version
from hopscope.errors import UsageError, as_list, of_type
from hopscope.experiments.analysis import (
    WITHOUT_MEMORY,
    RunKeywords,
    RunOptions,
    analysis,
    run_in_parts,
)
from hopscope.experiments.arguments import (
    AtLeast,
    ListOf,
    Masks,
    OneOf,
    OneTemplate,
    Orders,
    check_masks,
)
from hopscope.masks.algebra import Mask
from hopscope.prompting.document_prompts import (
    DEFAULT_ORDERS,
    METRICS,
    VERDICTS,
    DocumentModel,
    DocumentPrompts,
    accuracies,
    question_details,
    scored_by,
    scores,
    usual_metric,
)
from hopscope.results.headline import Headline
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import points, row_where, rows_where, verdict, with_interval
from hopscope.statistics import holm, paired

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

PER_PART = 4
GROUP = ["order", "mask", "permuting"]
STUDIED_MASKS = ("causal", "document_bidirectional", "document_block", "prefix_bidirectional")


@dataclass(frozen=True, repr=False)
class Permutation(Result):
    """What a model answers when documents are permuted and masks changed.

    `frame` has one row a question, order, mask and way of permuting, with the columns `query,
    order, mask, permuting, generation`, the metrics `contained` (the paper's "EM"), `matched`
    (whole words), `exact_match`, `f1`, and `bridge`: whether the answer holds that of the first
    hop instead.
    """

    kind = "permutation"
    columns: ClassVar = {
        "query": "str",
        "order": "str",
        "mask": "str",
        "permuting": "str",
        "generation": "str",
        **dict.fromkeys(VERDICTS, "bool"),
        "f1": "float64",
        "bridge": "bool",
    }

    def accuracy(self, metric: str | None = None, seed: int = 0) -> pd.DataFrame:
        """Accuracy for each order, mask and way of permuting.

        Args:
            metric: `contained`, `matched`, `exact_match`, `f1`, or `paper`, the containment of the
                authors' code; if None what suits the run's template: `contained`, or `paper`.
            seed: of the bootstrap, for `f1`.

        Returns:
            Columns `order, mask, permuting, n, accuracy, low, high`: Wilson 95 % intervals, or a
            bootstrap for `f1`.
        """
        frame, metric = scored_by(self, metric)
        return accuracies(frame, GROUP, metric, seed)

    def compare(
        self, base: str | None = None, metric: str | None = None, seed: int = 0
    ) -> pd.DataFrame:
        """Each order against another one on the same questions, mask and way of permuting.

        Args:
            base: the order that the others are compared with; the first one if None.
            metric: as for `accuracy`.
            seed: of the bootstrap, for `f1`.

        Returns:
            Columns `order, mask, permuting, base, n, difference, low, high, better, worse, p,
            p_holm`: `p` of the exact McNemar test, and corrected for the rows of the table.

        Raises:
            UsageError: if there is no such order.
        """
        return self._paired("order", base, ["mask", "permuting"], metric, seed)

    def compare_masks(
        self, base: str | None = None, metric: str | None = None, seed: int = 0
    ) -> pd.DataFrame:
        """Each mask against another one on the same questions and orders; as `compare`.

        Raises:
            UsageError: if there is no such mask.
        """
        return self._paired("mask", base, ["order", "permuting"], metric, seed)

    def _paired(
        self, column: str, base: str | None, within: list[str], metric: str | None, seed: int
    ) -> pd.DataFrame:
        base = self.in_run(column, base)
        frame, metric = scored_by(self, metric)
        rows: list[dict[str, Any]] = []
        for key, group in frame.groupby(within, sort=False):
            table = group.pivot(index="query", columns=column, values=metric)
            for name in dict.fromkeys(group[column]):
                if name == base or base not in table:
                    continue
                both = table[[base, name]].dropna()
                found = paired(both[base].to_numpy(), both[name].to_numpy(), seed)
                named = dict(zip(within, key, strict=True))
                rows.append({column: name, **named, "base": base, **found})
        columns = [*GROUP, "base", "n", "difference", "low", "high", "better", "worse", "p"]
        table = pd.DataFrame(rows, columns=columns)
        return table.assign(p_holm=holm(table["p"].to_numpy()))

    def tables(self) -> dict[str, pd.DataFrame]:
        return {
            "accuracy": self.accuracy(),
            "compare": self.compare(self._usual_base),
            "compare_masks": self.compare_masks(),
        }

    def answers(self) -> pd.DataFrame:
        """How many answers are empty, and one that is not, for each order, mask and permuting.

        Returns:
            Columns `order, mask, permuting, n, empty, example`.
        """
        texts = self.frame["generation"].str.strip()
        told = self.frame.assign(empty=texts.eq(""), example=texts.where(texts.ne("")))
        groups = told.groupby(GROUP, sort=False)
        table = groups.agg(
            n=("empty", "size"), empty=("empty", "sum"), example=("example", "first")
        )
        return table.reset_index().fillna({"example": ""})

    def printed(self, seed: int = 0, metric: str | None = None) -> dict[str, pd.DataFrame]:
        """Accuracy, each order against the first, and some of what was answered.

        Args:
            seed: of the bootstrap.
            metric: `contained`, `matched`, `exact_match`, `f1` or `paper`; if None what suits the
                template.
        """
        compared = self.compare(None, metric, seed)
        rows = self.accuracy(metric, seed)
        return {"rows": rows, "compare": compared, "answers": self.answers()}

    def findings(self) -> list[str]:
        accuracy, orders = self.accuracy(), self.compare(self._usual_base)
        sentences = []
        for mask in dict.fromkeys(accuracy["mask"]):
            parts = [
                f"{with_interval(row['accuracy'], row['low'], row['high'])} {row['order']}"
                for row in rows_where(accuracy, mask=mask)
            ]
            sentence = f"under the mask {mask} it answers {', '.join(parts)}"
            gain = row_where(orders, mask=mask, order="backward")
            if gain is not None:
                difference = points(gain["difference"], gain["low"], gain["high"])
                sentence += (
                    f"; backward over {gain['base']} {difference}: {verdict(gain, gain['base'])}"
                )
            sentences.append(f"{sentence}.")
        return sentences

    def headline(self) -> Headline | None:
        """How much oftener documents in backward order are answered than in the usual one."""
        gain = row_where(self.compare(self._usual_base), order="backward")
        if gain is None:
            return None
        sentence = (
            f"answers with documents in the order backward, under the mask {gain['mask']}: "
            f"{points(gain['difference'], gain['low'], gain['high'])} against {gain['base']}"
        )
        return Headline(f"{sentence}.", f"the order {gain['base']}", gain["n"], gain["p"])

    @property
    def _usual_base(self) -> str | None:
        """The order that others are compared with: `forward` if there is one, else the first."""
        return "forward" if (self.frame["order"] == "forward").any() else None

    def plot(self, ax: Axes | None = None, metric: str | None = None) -> Axes:
        """Draw accuracy by order, a colour for each mask."""
        from hopscope.experiments.documents import plots

        return plots.order_points(self.accuracy(metric), ax)


def accuracy_table(
    results: Iterable[Permutation] | Permutation, metric: str | None = None
) -> pd.DataFrame:
    """Lay the accuracy of several runs side by side, in the form of the paper's tables.

    Args:
        results: such as those of several models, or of one with several templates; or one alone.
        metric: as for `Permutation.accuracy`; if None that of the templates, which must agree.

    Returns:
        One row a model, template, mask, way of permuting and number of questions (the index), one
        column an order: accuracy in per cent, and beside it the ends of its 95 % interval, such as
        `forward`, `forward_low` and `forward_high`; NaN where a run has no such order.

    Raises:
        UsageError: for no result, or templates that are scored by different metrics.

    Example:
        >>> accuracy_table([load_result("runs/0.5b"), load_result("runs/1.5b")])  # doctest: +SKIP
    """
    hint = "such as [hs.load_result('runs/0.5b'), hs.load_result('runs/1.5b')]"
    results = [
        of_type("each of results", each, Permutation, hint)
        for each in as_list(results, Permutation, "results", hint)
    ]
    usual = list(dict.fromkeys(metric or usual_metric(each.run) for each in results))
    if len(usual) != 1:
        raise UsageError(
            f"the templates of these runs are scored by {' and '.join(usual)}: give one metric"
            if usual
            else "give at least one result of permute_documents"
        )
    asked = {each.run.get("queries", {}).get("sha256") for each in results}
    if len(asked) > 1:
        logger.warning("these runs do not ask the same questions, or not in the same way")
    tables = []
    for each in results:
        template = each.run.get("settings", {}).get("template")
        model = each.run.get("model", {}).get("name", "?")
        named = {"model": model, "template": template if isinstance(template, str) else "own"}
        tables.append(each.accuracy(usual[0]).assign(**named))
    table = pd.concat(tables, ignore_index=True)
    orders = list(dict.fromkeys(table["order"]))
    keys = ["model", "template", "mask", "permuting", "n"]
    rows = table[keys].drop_duplicates()
    columns = {
        f"{order}{end and '_'}{end}": (end or "accuracy", order)
        for order in orders
        for end in ("", "low", "high")
    }
    last = table.drop_duplicates([*keys, "order"], keep="last")
    wide = last.pivot(index=keys, columns="order", values=["accuracy", "low", "high"])
    wide = 100 * wide.loc[list(rows.itertuples(index=False, name=None)), list(columns.values())]
    return wide.set_axis(list(columns), axis=1)


@analysis(
    "permute",
    name="document_order",
    title="Order of documents and masks",
    question="How do the order of documents and the attention mask change multi-hop answers?",
    source="Masking in Multi-hop QA, sections 3 and 4",
    control="each order and mask paired with another on the same questions",
    asks="documents",
    subsets=("documents",),
    order=100,
    keywords=WITHOUT_MEMORY,
    accepts={
        "orders": Orders(),
        "permuting": ListOf(get_args(Way), noun="way"),
        "metric": OneOf(tuple(METRICS), optional=True),
        "masks": Masks(),
        "template": OneTemplate(),
        "label": OneOf(get_args(Label)),
        "max_new_tokens": AtLeast(1, optional=True),
    },
    parity={"template": "paper"},
    in_study=lambda _: {"masks": STUDIED_MASKS},
)
def permute_documents(
    model: DocumentModel,
    questions: QuestionSet,
    orders: Sequence[Order] = DEFAULT_ORDERS,
    masks: Sequence[str | Mask] | str | Mask | None = None,
    permuting: Sequence[Way] = ("text",),
    *,
    template: str | Template | None = None,
    label: Label = "position",
    max_new_tokens: int | None = None,
    **run: Unpack[RunKeywords],
) -> Permutation:
    """Ask questions with their documents in several orders, under several masks.

    Huang et al. 2025, section 3. All versions of a question are read together: what they share is
    computed once (see `hopscope.engine.masked.read`).

    Args:
        model: a decoder-only model, or a T5-like encoder-decoder.
        questions: the questions.
        orders: names, such as `original`, `forward`, `backward` or `shuffle_0`, or lists of
            indices; all names are in `hopscope.documents.orders.arrange`.
        masks: `causal`, `prefix_bidirectional`, `document_bidirectional`, `document_block` or
            `document_block_instruction`, or masks; the model's usual one if None: causal, or
            bidirectional in the encoder of an encoder-decoder.
        permuting: what an order changes: `text` (tokens move), `positions` (only their position
            ids), `mask` (only who sees whom), `positions+mask`.
        template: `answer_only`, `cot`, `plain` or `chat`, one of the authors' own (`paper`,
            `paper_cot`, `paper_cot_last_line`, `paper_tuned`), or a `Template`; what suits the
            questions if None.
        label: the number in front of a document: its displayed `position`, `fixed`, or `none`.
        max_new_tokens: tokens of an answer; the template's own number if None.

    Returns:
        A `Permutation`: `accuracy()`, `compare()`, `compare_masks()`.

    Raises:
        QueryError: for an order that a question cannot have, or one that does not fit the context.
        UsageError: for an unknown order, mask, way, label or template.

    Example:
        >>> questions = load_questions("world-docs").sample(40)              # doctest: +SKIP
        >>> permute_documents(model, questions).accuracy()                   # doctest: +SKIP
    """
    options, named = RunOptions(**run), check_masks(masks, model)
    prompts = DocumentPrompts.of(
        model, questions, template, label, max_new_tokens, options.seed, orders, permuting
    )
    settings = {
        **prompts.settings,
        "orders": [order_name(order) for order in orders],
        "masks": [mask.name for mask in named],
        "permuting": permuting,
    }
    permuter = _Permuter(prompts, list(product(orders, named, permuting)))
    return run_in_parts(
        Permutation, model, questions, settings, permuter.tables, options, per_part=PER_PART
    )


@dataclass(frozen=True)
class _Permuter:
    """Asks some questions in all orders, masks and ways."""

    prompts: DocumentPrompts
    variants: Sequence[tuple[Order, Mask, str]]

    def tables(self, questions: QuestionSet) -> Tables:
        """Frame and details of some questions."""
        rows, details = [], []
        for question in questions:
            fitted = self.prompts.fitted_question(question)
            details.append(question_details(fitted))
            layouts = {
                (order_name(order), way): self.prompts.layout(fitted, order, way)  # type: ignore[arg-type]
                for order, _, way in self.variants
            }
            versions = [
                Version(layouts[order_name(order), way], mask) for order, mask, way in self.variants
            ]
            outputs = self.prompts.read(versions).outputs
            for (order, mask, way), tokens in zip(self.variants, outputs.tokens, strict=True):
                names = {"order": order_name(order), "mask": mask.name, "permuting": way}
                rows.append({"query": question.id, **names, **self._scored(question, tokens)})
        return {"frame": pd.DataFrame(rows), "details": pd.DataFrame(details)}

    def _scored(self, question: MultiDocQuestion, tokens: Sequence[int]) -> dict[str, Any]:
        text = self.prompts.answer(tokens)
        first = [question.hops[0].answer] if question.hops[0].answer else []
        bridge = bool(scores(text, first)["contained"]) if first else False
        return {"generation": text, **scores(text, question.names), "bridge": bridge}
