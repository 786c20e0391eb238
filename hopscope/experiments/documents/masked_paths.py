"""Masked paths: which edges between documents and question carry each hop, block by block.

Attention knockout (Geva et al. 2023) on spans of a prompt over documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Unpack, get_args

import numpy as np
import pandas as pd
import torch

from hopscope.display.progress import divided
from hopscope.documents.layout import Label, Layout
from hopscope.documents.orders import Order, order_name
from hopscope.documents.question_set import QuestionSet
from hopscope.documents.templates import Template
from hopscope.engine.edits import Knockout
from hopscope.engine.masked.reader import ReadBlocked
from hopscope.engine.read_out import ReadOut
from hopscope.errors import QueryError
from hopscope.experiments.analysis import (
    WITHOUT_MEMORY,
    RunKeywords,
    RunOptions,
    analysis,
    limited,
    run_in_parts,
)
from hopscope.experiments.arguments import (
    AtLeast,
    Edges,
    Layers,
    ListOf,
    OneOf,
    OneOrder,
    OneTemplate,
)
from hopscope.experiments.randomness import generator_for
from hopscope.models.token_model import FIRST_TOKENS
from hopscope.prompting.document_prompts import (
    DocumentModel,
    DocumentPrompts,
    FittedQuestion,
    question_details,
    scores,
)
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import largest_row, row_where, verdict, with_interval
from hopscope.statistics import intervals, paired_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PER_PART = 2
DEFAULT_EDGES = ("gold 2->gold 1", "question->gold 1", "question->gold 2", "last->gold 2")
CONTROLS = ("distractor",)
MEASURES = ("changed", "lost", "answer_change")


@dataclass(frozen=True, repr=False)
class MaskedPaths(Result):
    """What happens when edges between parts of a prompt over documents are blocked.

    `frame` has one row a question, edge, control and block (the middle of the window): `changed`,
    whether the answer is another one; `lost`, whether a right answer became a wrong one (missing
    where it was wrong); `answer_logprob` of the answer's first token, and `answer_change` from the
    clean prompt, nats. `control` is `none`, or `distractor`: the same edge to a distractor.
    """

    kind = "masked_paths"
    rules = FIRST_TOKENS
    columns: ClassVar = {
        "query": "str",
        "edge": "str",
        "control": "str",
        "layer": "int64",
        "generation": "str",
        "changed": "bool",
        "lost": "float64",
        "answer_logprob": "float32",
        "answer_change": "float32",
    }

    def effect(self, measure: str = "changed", seed: int = 0) -> pd.DataFrame:
        """The mean of a measure over questions, for each edge, control and block.

        Args:
            measure: `changed`, `lost` or `answer_change`.
            seed: of the bootstrap.

        Returns:
            Columns `edge, control, layer, n, effect, low, high`: Wilson 95 % intervals of shares,
            bootstrap intervals of nats.

        Raises:
            UsageError: for another measure.
        """
        return intervals(
            self._measured(measure), ["edge", "control", "layer"], measure, "effect", seed
        )

    def above_chance(self, measure: str = "changed", seed: int = 0) -> pd.DataFrame:
        """How much more each edge does than the same edge to a distractor, paired.

        Returns:
            Columns `edge, layer, n, difference, low, high`: exact paired intervals of shares, see
            `hopscope.statistics.share_difference`; bootstrap intervals of nats.
        """
        keys = ["query", "edge", "layer"]
        wide = self._measured(measure).pivot(index=keys, columns="control", values=measure)
        wide = wide.reindex(columns=["none", "distractor"]).reset_index()
        return paired_intervals(wide, keys[1:], "distractor", "none", seed)

    def _measured(self, measure: str) -> pd.DataFrame:
        """The frame, in which `lost`, a number as it may be missing, is a boolean."""
        OneOf(MEASURES).checked("measure", measure, None)
        return self.frame.astype({"lost": "boolean"}) if measure == "lost" else self.frame

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"effect": self.effect(), "above_chance": self.above_chance()}

    def printed(self, seed: int = 0, measure: str = "changed") -> dict[str, pd.DataFrame]:
        """The effect of each edge, and how much more it does than to a distractor.

        Args:
            seed: of the bootstrap.
            measure: `changed`, `lost` or `answer_change`.
        """
        gains = self.above_chance(measure, seed)
        return {"effect": self.effect(measure, seed), "above_chance": gains}

    def findings(self) -> list[str]:
        effect, gains = self.effect(), self.above_chance()
        window = 2 * self.run["settings"]["window"] + 1
        sentences = []
        for edge in dict.fromkeys(effect["edge"]):
            own = effect[(effect["edge"] == edge) & (effect["control"] == "none")]
            best = largest_row(own, "effect")
            sentence = (
                f"blocking {edge} in {window} layers changes most answers around layer "
                f"{best['layer']}, {with_interval(best['effect'], best['low'], best['high'])}"
            )
            other = row_where(effect, edge=edge, control="distractor", layer=best["layer"])
            if other is not None:
                chance = with_interval(other["effect"], other["low"], other["high"])
                sentence += f", the same edge to a distractor {chance}"
            gain = row_where(gains, edge=edge, layer=best["layer"])
            if gain is not None:
                sentence += f": {verdict(gain)} (the best of {len(own)} windows)"
            sentences.append(f"{sentence}.")
        return sentences

    def plot(self, ax: Axes | None = None, measure: str = "changed") -> Axes:
        """Draw the effect of each edge by block, with its control dotted."""
        from hopscope.experiments.documents import plots

        return plots.path_lines(self.effect(measure), ax, measure=measure)


@analysis(
    "masked-paths",
    name="document_paths",
    title="Masked paths",
    question="Which edges between documents and question carry each hop, and in which layers?",
    source="Geva et al. 2023",
    control="the same edge to a distractor",
    asks="documents",
    subsets=("documents",),
    order=130,
    keywords=WITHOUT_MEMORY,
    accepts={
        "edges": Edges(),
        "controls": ListOf(CONTROLS, empty=True),
        "window": AtLeast(0),
        "layers": Layers(),
        "measure": OneOf(MEASURES),
        "order": OneOrder(),
        "template": OneTemplate(),
        "label": OneOf(get_args(Label)),
        "max_new_tokens": AtLeast(1, optional=True),
    },
    layers=lambda layers: {"layers": layers},
    chosen=lambda questions, scale: limited(questions, scale.most, scale.seed),
)
def masked_paths(
    model: DocumentModel,
    questions: QuestionSet,
    edges: Sequence[str] = DEFAULT_EDGES,
    controls: Sequence[str] = CONTROLS,
    *,
    order: Order = "forward",
    window: int = 3,
    layers: Sequence[int] | None = None,
    template: str | Template | None = None,
    label: Label = "position",
    max_new_tokens: int | None = None,
    **run: Unpack[RunKeywords],
) -> MaskedPaths:
    """Block edges from parts of a prompt to others in a window of blocks, for every window.

    All heads, while the prompt is read: under a causal mask, where cells share everything before
    the first token whose attention changes (see `hopscope.engine`); of an encoder-decoder in its
    encoder, where edges may look ahead.

    Args:
        model: a decoder-only model, or a T5-like encoder-decoder.
        questions: the questions.
        edges: `query->key`, each a span of `Layout.tokens`, such as `question->gold 1`. An edge
            that looks ahead in this order does nothing and is an error.
        controls: `distractor` also blocks the edge to another document that comes before the same
            query: the one whose length is nearest.
        order: the order of the documents.
        window: blocks on each side of the middle one.
        layers: 0-based middles; all if None.
        template: `answer_only`, `cot`, `plain` or `chat`; what suits the questions if None.
        label: the number in front of a document: its displayed `position`, `fixed`, or `none`.
        max_new_tokens: tokens of an answer; the template's own number if None.

    Returns:
        A `MaskedPaths`: `effect()`, `above_chance()`.

    Raises:
        QueryError: for an order or edge that a question cannot have.
        UsageError: for a bad argument.
    """
    options = RunOptions(**run)
    prompts = DocumentPrompts.of(
        model, questions, template, label, max_new_tokens, options.seed, orders=[order]
    )
    settings = {
        **prompts.settings,
        "edges": edges,
        "controls": controls,
        "order": order_name(order),
        "window": window,
        "layers": layers,
    }
    blocker = _Blocker(prompts, edges, controls, order, window, layers or ())
    return run_in_parts(
        MaskedPaths, model, questions, settings, blocker.tables, options, per_part=PER_PART
    )


Answers = tuple[list[str], np.ndarray]
"""What is answered in each cell, and the log-probability of the answer's first token."""


@dataclass(frozen=True)
class _Blocker:
    """Blocks edges in the prompts of some questions."""

    prompts: DocumentPrompts
    edges: Sequence[str]
    controls: Sequence[str]
    order: Order
    window: int
    middles: Sequence[int]

    def tables(self, questions: QuestionSet) -> Tables:
        """Frame and details of some questions."""
        frames, details = [], []
        for question in questions:
            fitted = self.prompts.fitted_question(question)
            layout = self.prompts.layout(fitted, self.order)
            blocking = self.prompts.reader.blocking(layout)
            read_out = self.prompts.read_out(self.prompts.answer_tokens(layout))
            texts, logprobs = self._answers(blocking, read_out, [None])
            before = texts[0], float(logprobs[0])
            # Each edge alone, since cells share what comes before their edits.
            for edge in divided(self.edges):
                cells, names = self._cells(layout, edge)
                frame = _measured(fitted, before, *self._answers(blocking, read_out, cells))
                frames.append(pd.concat([names, frame], axis=1).assign(query=question.id))
            answered = scores(before[0], fitted.question.names)
            told = self.prompts.model.texts_of(read_out.answer_tokens)
            said = {"answer_tokens": told, "generation": before[0], **answered}
            details.append({**question_details(fitted), **said})
        return {"frame": MaskedPaths.joined(frames), "details": pd.DataFrame(details)}

    def _answers(
        self, blocking: ReadBlocked, read_out: ReadOut, cells: Sequence[Knockout | None]
    ) -> Answers:
        """What is answered in each cell of a prompt."""
        outputs = blocking(cells, read_out)
        return [self.prompts.answer(each) for each in outputs.tokens], outputs.logprob.numpy()

    def _cells(self, layout: Layout, edge: str) -> tuple[list[Knockout], pd.DataFrame]:
        """A cell of one edge for each control and middle, and their names."""
        cells: list[Knockout] = []
        n_layers = self.prompts.reader.n_mask_layers
        names = []
        for control in ("none", *self.controls):
            ends = self._ends(layout, edge, control)
            if ends is None:
                continue
            for middle in self.middles:
                low, high = middle - self.window, middle + self.window
                layers = range(max(0, low), min(n_layers, high + 1))
                cells.append(Knockout(layers, *ends))
                names.append((edge, control, middle))
        return cells, pd.DataFrame(names, columns=["edge", "control", "layer"])

    def _ends(
        self, layout: Layout, edge: str, control: str
    ) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The tokens that look and those that they no longer see."""
        query, _, key = (part.strip() for part in edge.partition("->"))
        queries, keys = layout.tokens(query), layout.tokens(key)
        causal = not self.prompts.reader.looks_ahead
        if not queries or not keys or (causal and max(queries) <= min(keys)):
            raise QueryError(
                f"question {layout.question.id!r}: the edge {edge!r} looks ahead or at nothing in "
                f"the order {order_name(self.order)!r}, so blocking it does nothing"
            )
        if control == "none":
            return queries, keys
        spans = [tuple(layout.document(each)) for each in layout.question.distractors]
        apart = [span for span in spans if span and not set(span) & {*queries, *keys}]
        before = [span for span in apart if not causal or max(span) < min(queries)]
        if not before:
            return None
        drawn = generator_for(self.prompts.seed, layout.question.id, edge)
        mixed = [before[index] for index in torch.randperm(len(before), generator=drawn).tolist()]
        return queries, min(mixed, key=lambda span: abs(len(span) - len(keys)))


def _measured(
    fitted: FittedQuestion, before: tuple[str, float], texts: Sequence[str], logprobs: np.ndarray
) -> pd.DataFrame:
    """What each cell does, beside the answer and log-probability of the clean prompt."""
    names, (clean, logprob) = fitted.question.names, before
    right = bool(scores(clean, names)["contained"])
    lost = [float(not scores(text, names)["contained"]) if right else np.nan for text in texts]
    return pd.DataFrame(
        {
            "generation": texts,
            "changed": [text != clean for text in texts],
            "lost": lost,
            "answer_logprob": logprobs,
            "answer_change": logprobs - logprob,
        }
    )
