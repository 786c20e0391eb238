"""Provides the steps of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hopscope.documents.load import load_questions
from hopscope.documents.question_set import QuestionSet
from hopscope.errors import QueryError
from hopscope.experiments.documents.attention import attention_to_documents
from hopscope.experiments.documents.masked_paths import masked_paths
from hopscope.experiments.documents.order_choice import best_order
from hopscope.experiments.documents.permutation import permute_documents
from hopscope.experiments.two_hop.activation_patching import activation_patch
from hopscope.experiments.two_hop.attention_knockout import knockout
from hopscope.experiments.two_hop.back_patching import back_patch
from hopscope.experiments.two_hop.causal_tracing import trace
from hopscope.experiments.two_hop.description import describe
from hopscope.experiments.two_hop.entity_recall import recall
from hopscope.experiments.two_hop.grading import Grading
from hopscope.experiments.two_hop.probing import FOLDS, labelled, probe, sample_entities
from hopscope.experiments.two_hop.projection import project
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.study.presets import Preset, layer_cells, limited

SUBSETS = ("incorrect", "correct")


NEEDS: Mapping[str, tuple[str, ...]] = {
    "grading": (),
    "back_patching": ("back_patching",),
    "description": ("description",),
    "projection": ("projection",),
    "knockout": ("knockout",),
    "stages": ("description", "projection", "knockout"),
    "patching": ("patching",),
    "tracing": ("tracing",),
    "recall": ("recall",),
    "probing": ("probing",),
    "document_order": ("document_order",),
    "attention_peaks": ("attention_peaks",),
    "order_choice": ("order_choice",),
    "document_paths": ("document_paths",),
    "mask_gallery": (),
}
"""The experiments that each figure of a study is drawn from, grading aside. Others bring their own
models: see `hopscope.study.standalone_figures.ALONE`."""


def needed(figures: Sequence[str]) -> list[str]:
    """The experiments that some figures need, in their order; all if no figure is named."""
    wanted = {step for name in figures or NEEDS for step in NEEDS.get(name, ())}
    return [step for step in STEPS if step in wanted]


@dataclass(frozen=True)
class _Task:
    """What every step is given."""

    model: LanguageModel
    queries: QuerySet
    graded: Grading
    folder: Path
    size: Preset
    seed: int
    progress: bool

    def subset(self, name: str) -> QuerySet:
        """The queries of a subset.

        Raises:
            QueryError: if there is none.
        """
        chosen = self.graded.incorrect() if name == "incorrect" else self.graded.correct()
        if not len(chosen):
            raise QueryError(
                f"no query was graded {name}; grade more queries (a larger limit), or give "
                "another model"
            )
        return limited(chosen, self.size.most, self.seed)

    def questions(self, most: int | None = None) -> QuestionSet:
        """Questions over documents, of the bundled set."""
        wanted = min(self.size.questions, most or self.size.questions)
        return limited(load_questions(DOCUMENTS, seed=self.seed), wanted, self.seed)

    @property
    def layers(self) -> range:
        """The layers of a grid of sources and targets."""
        return range(0, self.model.n_layers, self.size.layer_step)

    @property
    def common(self) -> dict[str, Any]:
        """What all experiments take."""
        return {"seed": self.seed, "progress": self.progress}


@dataclass(frozen=True)
class _Step:
    """One experiment: on which subsets, and how."""

    run: Callable[[_Task, str, Path], Result]
    subsets: tuple[str, ...] = SUBSETS


def _back_patching(task: _Task, subset: str, out: Path) -> Result:
    cells = layer_cells(task.model.n_layers, task.size.layer_step)
    return back_patch(task.model, task.subset(subset), cells=cells, out=out, **task.common)


def _description(task: _Task, subset: str, out: Path) -> Result:
    return describe(
        task.model,
        task.subset(subset),
        source_layers=task.layers,
        target_layers=task.layers,
        out=out,
        **task.common,
    )


def _projection(task: _Task, subset: str, out: Path) -> Result:
    return project(task.model, task.subset(subset), out=out, **task.common)


def _knockout(task: _Task, subset: str, out: Path) -> Result:
    return knockout(task.model, task.subset(subset), out=out, **task.common)


def _patching(task: _Task, subset: str, out: Path) -> Result:
    return activation_patch(task.model, task.subset(subset), out=out, **task.common)


def _tracing(task: _Task, subset: str, out: Path) -> Result:
    return trace(task.model, task.subset(subset), out=out, **task.common)


def _recall(task: _Task, subset: str, out: Path) -> Result:
    return recall(task.model, task.subset(subset), out=out, **task.common)


def _probing(task: _Task, _: str, out: Path) -> Result:
    usable, _labels, _classes = labelled(task.queries, "e2", FOLDS)
    chosen = sample_entities(usable, PROBED, task.seed)
    return probe(task.model, chosen, layers=task.layers, out=out, **task.common)


def _document_order(task: _Task, _: str, out: Path) -> Result:
    return permute_documents(
        task.model, task.questions(), masks=STUDIED_MASKS, out=out, **task.common
    )


def _attention_peaks(task: _Task, _: str, out: Path) -> Result:
    orders = ("forward", "backward")
    return attention_to_documents(task.model, task.questions(), orders, out=out, **task.common)


def _order_choice(task: _Task, _: str, out: Path) -> Result:
    return best_order(task.model, task.questions(), k=task.size.shuffles, out=out, **task.common)


def _document_paths(task: _Task, _: str, out: Path) -> Result:
    chosen = task.questions(task.size.most)
    return masked_paths(task.model, chosen, layers=task.layers, out=out, **task.common)


DOCUMENTS = "world-docs"


STUDIED_MASKS = ("causal", "document_bidirectional", "document_block", "prefix_bidirectional")


PROBED = 1000
"""Queries that are probed at most, whether they were graded or not."""


STEPS: Mapping[str, _Step] = {
    "back_patching": _Step(_back_patching),
    "description": _Step(_description),
    "projection": _Step(_projection),
    "knockout": _Step(_knockout),
    "patching": _Step(_patching, ("correct",)),
    "tracing": _Step(_tracing, ("correct",)),
    "recall": _Step(_recall),
    "probing": _Step(_probing, ("all",)),
    "document_order": _Step(_document_order, ("documents",)),
    "attention_peaks": _Step(_attention_peaks, ("documents",)),
    "order_choice": _Step(_order_choice, ("documents",)),
    "document_paths": _Step(_document_paths, ("documents",)),
}
"""The experiments of a study, in their order."""
