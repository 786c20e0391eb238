"""Attention to documents: how much the answer looks at each of them, when right and when wrong.

Masking in Multi-hop QA (Huang et al. 2025), section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, get_args

import numpy as np
import pandas as pd
from scipy import stats
from torch import Tensor

from hopscope.documents.layout import Label, Layout
from hopscope.documents.orders import Order, order_name
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
from hopscope.experiments.arguments import AtLeast, Masks, OneOf, OneTemplate, Orders, check_masks
from hopscope.masks.algebra import Mask
from hopscope.prompting.document_prompts import (
    RIGHT_OR_WRONG,
    DocumentModel,
    DocumentPrompts,
    FittedQuestion,
    question_details,
    scored_by,
    scores,
)
from hopscope.prompting.generation import answer_span
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import percent, rows_where
from hopscope.statistics import holm, intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PER_PART = 4
READ = ("answer", "last", "generated")
VERSION = ["query", "order", "mask"]


@dataclass(frozen=True, repr=False)
class DocumentAttention(Result):
    """How much attention goes from the answer to each document, in each block and head.

    `frame` has one row a question, order, mask, block, head and document: `mass`, GA(l, h, answer,
    d) of the paper: the attention weights from a token that is read to all tokens of document d,
    summed, and averaged over the tokens that are read; `hop`, the number of the document in the
    chain from 1, or 0 for a distractor; `slot`, its displayed place. `details` has one row a
    question, order and mask: what was answered, and how many tokens were read.
    """

    kind = "document_attention"
    columns: ClassVar = {
        **dict.fromkeys(VERSION, "str"),
        **dict.fromkeys(("layer", "head", "document", "hop", "slot"), "int64"),
        "mass": "float32",
    }

    def ic(self) -> pd.DataFrame:
        """IC(d) = sum over blocks of the mean over heads of GA: from 0 to the number of blocks.

        Huang et al. 2025, section 5.2 (information contribution).

        Returns:
            Columns `query, order, mask, document, hop, slot, ic`.
        """
        keys = [*VERSION, "document", "hop", "slot", "layer"]
        means = self.frame.groupby(keys, sort=False)["mass"].mean()
        summed = means.groupby(level=keys[:-1], sort=False).sum()
        return summed.rename("ic").reset_index()

    def peaks(self, metric: str | None = None) -> pd.DataFrame:
        """The largest IC of each version, of which document, and whether the answer is right.

        Of a question without a known answer, `correct` is None.

        Returns:
            Columns `query, order, mask, peak, document, hop, correct`.

        Raises:
            UsageError: for a metric that is not right or wrong.
        """
        ic = self.ic()
        highest = ic.loc[ic.groupby(VERSION, sort=False)["ic"].idxmax()]
        highest = highest.rename(columns={"ic": "peak"})
        table = highest.merge(self._verdicts(metric), on=VERSION)
        return table[[*VERSION, "peak", "document", "hop", "correct"]]

    def compare(self, metric: str | None = None) -> pd.DataFrame:
        """Peaks of right against wrong answers.

        Returns:
            Columns `order, mask, right, wrong` (how many), `median_right, median_wrong`, `auc`: how
            often a right answer has a higher peak than a wrong one (1/2: chance), `p` of the
            Mann-Whitney test, and `p_holm`, corrected for the rows of the table.
        """
        rows = []
        for key, group in self.peaks(metric).groupby(["order", "mask"], sort=False):
            right, wrong = (
                group.loc[group["correct"] == verdict, "peak"].to_numpy()
                for verdict in (True, False)
            )
            rows.append((*key, *_against(right, wrong)))
        columns = ["order", "mask", "right", "wrong", "median_right", "median_wrong", "auc", "p"]
        table = pd.DataFrame(rows, columns=columns)
        return table.assign(p_holm=holm(table["p"].to_numpy()))

    def by_layer(self, metric: str | None = None, seed: int = 0) -> pd.DataFrame:
        """The attention to a document of each hop by block, for right and for wrong answers.

        Heads are averaged; of the distractors the mean is taken.

        Returns:
            Columns `order, mask, correct, hop, layer, n, mass, low, high`.

        Raises:
            UsageError: for a metric that is not right or wrong.
        """
        means = self.frame.groupby([*VERSION, "hop", "layer"], sort=False)["mass"].mean()
        table = means.reset_index().merge(self._verdicts(metric), on=VERSION)
        return intervals(table, ["order", "mask", "correct", "hop", "layer"], "mass", "mass", seed)

    def _verdicts(self, metric: str | None) -> pd.DataFrame:
        """Whether the answer of each version is right."""
        told, metric = scored_by(self, metric, self.details, RIGHT_OR_WRONG)
        return told[[*VERSION, metric]].rename(columns={metric: "correct"})

    def by_head(self) -> pd.DataFrame:
        """The mean attention of each head to a document of each hop.

        Returns:
            Columns `order, mask, hop, layer, head, mass`.
        """
        keys = ["order", "mask", "hop", "layer", "head"]
        return self.frame.groupby(keys, sort=False)["mass"].mean().reset_index()

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"compare": self.compare(), "peaks": self.peaks()}

    def printed(self, seed: int = 0, metric: str | None = None) -> dict[str, pd.DataFrame]:
        """The peaks of right against wrong answers, and of each.

        Args:
            seed: as every result takes one; nothing is drawn here.
            metric: `contained`, `matched`, `exact_match` or `paper`; if None what suits the
                template.
        """
        return {"rows": self.compare(metric), "peaks": self.peaks(metric)}

    def findings(self) -> list[str]:
        sentences = []
        compared = self.compare()
        corrected = " by Holm" if compared["p"].count() > 1 else ""
        for row in rows_where(compared):
            if not row["right"] + row["wrong"]:  # no answer is known
                continue
            sentence = f"in the order {row['order']} {row['right']} answers are right"
            if row["auc"] == row["auc"]:
                sentence += (
                    f"; their median peak is {row['median_right']:.2f}, that of the "
                    f"{row['wrong']} wrong ones {row['median_wrong']:.2f} (a right one is higher "
                    f"in {percent(row['auc'])} of the pairs, chance 50 %; "
                    f"p{corrected} = {row['p_holm']:.2g})"
                )
            sentences.append(f"{sentence}.")
        return sentences

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the peaks of right and of wrong answers."""
        from hopscope.experiments.documents import plots

        return plots.peak_strips(self.peaks(), self.compare(), ax)


def _against(right: np.ndarray, wrong: np.ndarray) -> tuple[Any, ...]:
    unknown = float("nan")
    middle = [float(np.median(each)) if len(each) else unknown for each in (right, wrong)]
    if not len(right) or not len(wrong):
        return (len(right), len(wrong), *middle, unknown, unknown)
    test = stats.mannwhitneyu(right, wrong, alternative="two-sided")
    auc = float(test.statistic) / (len(right) * len(wrong))
    return (len(right), len(wrong), *middle, auc, float(test.pvalue))


@analysis(
    "attention",
    name="attention_peaks",
    title="Attention to documents",
    question="Does a right answer attend harder to one document than a wrong one?",
    source="Masking in Multi-hop QA, section 5",
    control="the answers that are wrong",
    asks="documents",
    subsets=("documents",),
    order=110,
    keywords=WITHOUT_MEMORY,
    accepts={
        "orders": Orders(),
        "read": OneOf(READ),
        "metric": OneOf(RIGHT_OR_WRONG, optional=True),
        "masks": Masks(),
        "template": OneTemplate(),
        "label": OneOf(get_args(Label)),
        "max_new_tokens": AtLeast(1, optional=True),
    },
    in_study=lambda _: {"orders": ("forward", "backward")},
    parity={"template": "paper_whole", "read": "generated"},
)
def attention_to_documents(
    model: DocumentModel,
    questions: QuestionSet,
    orders: Sequence[Order] = ("original",),
    masks: Sequence[str | Mask] | str | Mask | None = None,
    *,
    read: str = "answer",
    template: str | Template | None = None,
    label: Label = "position",
    max_new_tokens: int | None = None,
    **run: Unpack[RunKeywords],
) -> DocumentAttention:
    """Measure how much attention the model's answer pays to each document.

    Of an encoder-decoder it is the cross-attention of the decoder. Only the rows that are read are
    computed: prompts are read by a fused attention without weights, and the weights are kept for
    the answer's tokens alone.

    Args:
        model: a decoder-only model, or a T5-like encoder-decoder.
        questions: the questions.
        orders: names, such as `original`, `forward` or `shuffle_0`, or lists of indices.
        masks: names, such as `causal` or `document_block`, or masks; the model's usual one if None.
        read: the tokens whose attention is read: those of the `answer` as the model generates it
            (its first line); the `last` one of the prompt, which predicts its first token; or all
            that are `generated` but the end of the turn and a closing brace right before it, as in
            the authors' code.
        template: `answer_only`, `cot`, `plain` or `chat`, `paper_whole`, which is the authors', or
            a `Template`; what suits the questions if None.
        label: the number in front of a document: its displayed `position`, `fixed`, or `none`.
        max_new_tokens: tokens of an answer; the template's own number if None.

    Returns:
        A `DocumentAttention`: `ic()`, `peaks()`, `compare()`, `by_layer()`, `by_head()`.

    Raises:
        QueryError, UsageError: as `permute_documents`.
        ModelError: if the family's attention cannot be read.

    Example:
        >>> attention_to_documents(model, questions, ["forward"]).compare()   # doctest: +SKIP
    """
    options, named = RunOptions(**run), check_masks(masks, model)
    prompts = DocumentPrompts.of(
        model,
        questions,
        template,
        label,
        max_new_tokens,
        options.seed,
        orders=orders,
        scored=False,
    )
    settings = {
        **prompts.settings,
        "orders": [order_name(order) for order in orders],
        "masks": [mask.name for mask in named],
        "read": read,
    }
    reader = _Reader(prompts, list(product(orders, named)), read)
    return run_in_parts(
        DocumentAttention, model, questions, settings, reader.tables, options, per_part=PER_PART
    )


@dataclass(frozen=True)
class _Reader:
    """Reads the attention of some questions."""

    prompts: DocumentPrompts
    variants: Sequence[tuple[Order, Mask]]
    read: str

    def tables(self, questions: QuestionSet) -> Tables:
        """Frame and details of some questions."""
        frames, details = [], []
        for question in questions:
            fitted = self.prompts.fitted_question(question)
            versions = [
                Version(self.prompts.layout(fitted, order), mask) for order, mask in self.variants
            ]
            readings = self.prompts.read(versions, attention=True)
            assert readings.masses is not None
            for index, (order, mask) in enumerate(self.variants):
                tokens = readings.outputs.tokens[index]
                names = {"query": question.id, "order": order_name(order), "mask": mask.name}
                mass, n_read = read_masses(self.prompts, readings.masses[index], tokens, self.read)
                frames.append(document_masses(versions[index].layout, mass).assign(**names))
                details.append({**self._detail(fitted, tokens), **names, "tokens_read": n_read})
        return {"frame": DocumentAttention.joined(frames), "details": pd.DataFrame(details)}

    def _detail(self, fitted: FittedQuestion, tokens: Sequence[int]) -> dict[str, Any]:
        text = self.prompts.answer(tokens)
        return {
            **question_details(fitted),
            "generation": text,
            **scores(text, fitted.question.names),
        }


def read_masses(
    prompts: DocumentPrompts, masses: Tensor, tokens: Sequence[int], read: str
) -> tuple[Tensor, int]:
    """The attention to segments, averaged over the tokens that are read.

    Thoughts before the answer are not read, except as `generated`. Of an answer of no token (an
    empty line, or none before a thought ends) the prompt's last token is read.

    Args:
        prompts: the questions as the model reads them.
        masses: as in `Readings.masses`, shape (token, layer, head, segment).
        tokens: what was generated.
        read: `answer`, `last` or `generated`.

    Returns:
        Shape (layer, head, segment), and how many tokens were read.
    """
    if read == "generated":
        answer = _generated(prompts, tokens)
    else:
        answer = answer_span(prompts.model, tokens, prompts.form.one_line)
    if read == "last" or not answer:
        return masses[0], 0
    return masses[1 + answer.start : 1 + answer.stop].mean(dim=0), len(answer)


def _generated(prompts: DocumentPrompts, tokens: Sequence[int]) -> range:
    """The generated tokens that the code of Huang et al. 2025 reads.

    All but the last, which ends the turn or is the last that there was room for, and but a closing
    brace before that.
    """
    n = min(len(tokens), prompts.room - 1)
    closes = n > 1 and prompts.model.decode(tokens[n - 1 : n]) == "}"
    return range(n - closes)


def document_masses(layout: Layout, mass: Tensor) -> pd.DataFrame:
    """The attention to each document as a table: `layer, head, document, hop, slot, mass`."""
    n_layers, n_heads, _ = mass.shape
    numbers = np.array([layout.question.numbers[each] for each in layout.order])
    here = mass[:, :, 1 : 1 + len(numbers)].numpy()
    layer, head, slot = np.meshgrid(
        *(np.arange(n) for n in (n_layers, n_heads, len(numbers))), indexing="ij"
    )
    gold = list(layout.question.gold)
    hops = np.array([gold.index(each) + 1 if each in gold else 0 for each in layout.order])
    return pd.DataFrame(
        {
            "layer": layer.ravel(),
            "head": head.ravel(),
            "document": numbers[slot.ravel()],
            "hop": hops[slot.ravel()],
            "slot": slot.ravel(),
            "mass": here.ravel().astype(np.float32),
        }
    )


def peak_of(layout: Layout, mass: Tensor) -> float:
    """The highest IC of a document: the sum over blocks of the mean over heads."""
    documents = mass[:, :, 1 : 1 + len(layout.order)]
    return float(documents.mean(dim=1).sum(dim=0).max())
