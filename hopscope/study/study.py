"""Provides run_study(): grading, then every analysis on what was graded, into run folders."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from tqdm.auto import tqdm

from hopscope.documents.load import load_questions
from hopscope.documents.question_set import QuestionSet
from hopscope.errors import ModelError, QueryError
from hopscope.experiments.analysis import Analysis, Scale, limited
from hopscope.experiments.catalogue import analyses
from hopscope.experiments.two_hop.grading import SUBSETS, Grading, grade, grade_until
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import is_run, read_run
from hopscope.study.presets import Preset

logger = logging.getLogger(__name__)

DOCUMENTS = "world-docs"
"""The questions over documents that a study asks."""


@dataclass(frozen=True)
class Study:
    """What was run of one model and query set.

    Attributes:
        grading: which queries the model gets right.
        results: by name, such as `back_patching.incorrect`.
        left_out: why an analysis has no result, by the same names.
        folder: where the run folders lie.
    """

    grading: Grading
    results: Mapping[str, Result]
    left_out: Mapping[str, str]
    folder: Path


def study_analyses(figures: Sequence[str] = ()) -> list[Analysis]:
    """The analyses of a study, in their order.

    Args:
        figures: only those that these figures are drawn from; all if none is named.
    """
    there = [each for each in analyses() if each.subsets]
    drawn = [each for each in there if not figures or each.name in figures]
    wanted = {name for each in drawn for name in (each.name, *each.parts)}
    return [each for each in there if each.name in wanted]


def run_study(
    model: LanguageModel,
    queries: QuerySet,
    folder: Path,
    size: Preset,
    steps: Sequence[str] | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
    finished: Callable[[str], None] | None = None,
) -> Study:
    """Grade, and run analyses on what was graded, into `folder`; finished parts are kept.

    Args:
        model: the model.
        queries: the queries, of which `size` says how many are graded.
        folder: of the run folders.
        size: how much is run.
        steps: names of `study_analyses()`; all if None. One that only puts others together runs
            where these do.
        seed: of everything that is drawn at random.
        progress: show progress bars.
        finished: called with the name of each analysis when all its results are there.

    An analysis that finds no query is left out, and a warning says so.
    """
    begun = monotonic()
    graded = _graded(model, queries, size, seed, out=folder / "grading", progress=progress)
    task = _Task(model, queries, graded, folder, size, seed, progress)
    clock = _Clock(task, (monotonic() - begun) / graded.n_queries, _chosen(steps))
    results: dict[str, Result] = {}
    left_out: dict[str, str] = {}
    told = finished or (lambda _: None)
    told("grading")
    clock.tell("grading")
    for entry in _chosen(steps):
        for subset in entry.subsets:
            name = f"{entry.name}.{subset}"
            try:
                results[name] = task.run(entry, subset, results)
            except (QueryError, ModelError) as error:
                logger.warning("%s is left out: %s", name, error)
                left_out[name] = str(error)
        told(entry.name)
        clock.tell(entry.name)
    return Study(graded, results, left_out, folder)


def _graded(
    model: LanguageModel, queries: QuerySet, size: Preset, seed: int, **run: Any
) -> Grading:
    """The grading of as many queries as are wanted and needed; one without a need goes on so."""
    begun = is_run(run["out"]) and "need" not in read_run(run["out"])["settings"]
    if begun or not size.need or size.limit is None:
        return grade(model, limited(queries, size.limit, seed), **run)
    need = dict.fromkeys(SUBSETS, size.need)
    return grade_until(model, queries, need, size.limit, seed=seed, **run)


def _chosen(steps: Sequence[str] | None) -> list[Analysis]:
    """The analyses that are run."""
    return [
        entry
        for entry in study_analyses()
        if steps is None or set(entry.parts or (entry.name,)) <= set(steps)
    ]


@dataclass(frozen=True)
class _Task:
    """What every analysis of a study is given."""

    model: LanguageModel
    queries: QuerySet
    graded: Grading
    folder: Path
    size: Preset
    seed: int
    progress: bool

    @property
    def scale(self) -> Scale:
        """How much of an analysis is run."""
        layers = range(0, self.model.n_layers, self.size.layer_step)
        return Scale(layers, self.size.most, self.size.shuffles, self.seed)

    def run(self, entry: Analysis, subset: str, results: Mapping[str, Result]) -> Result:
        """Run an analysis, or put together the results that it is made of."""
        out = self.folder / f"{entry.name}.{subset}"
        if entry.combine is not None:
            parts = [results.get(f"{part}.{subset}") for part in entry.parts]
            if any(part is None for part in parts):
                needed = ", ".join(entry.parts)
                raise QueryError(f"it needs the results of {needed} of the same queries")
            combined = entry.combine(*parts)
            combined.save(out)
            return combined
        inputs = self.inputs(entry, subset)
        scaled = {} if entry.in_study is None else entry.in_study(self.scale)
        layers = entry.at_layers(self.model, self.size.layer_step)
        common: dict[str, Any] = {"seed": self.seed, "progress": self.progress, "out": out}
        result: Result = entry.function(self.model, inputs, **scaled, **layers, **common)
        return result

    def inputs(self, entry: Analysis, subset: str) -> QuerySet | QuestionSet:
        """What an analysis is run on.

        Raises:
            QueryError: if no query is of the subset.
        """
        inputs: QuerySet | QuestionSet = self.queries
        if entry.asks == "subset":
            inputs = self.subset(subset)
        elif entry.asks == "documents":
            questions = load_questions(DOCUMENTS, seed=self.seed)
            inputs = limited(questions, self.size.questions, self.seed)
        chosen: QuerySet | QuestionSet = (
            inputs if entry.chosen is None else entry.chosen(inputs, self.scale)
        )
        return chosen

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


@dataclass(frozen=True)
class _Clock:
    """Says how much of a study is done, and about how long the rest takes.

    Attributes:
        task: the study.
        unit: seconds that grading a query took.
        entries: the analyses that are run.
    """

    task: _Task
    unit: float
    entries: Sequence[Analysis]

    def tell(self, name: str) -> None:
        """Say, beside the progress bars, what comes after an analysis."""
        names = ["grading", *(each.name for each in self.entries)]
        done = names.index(name) + 1
        if self.task.progress and done < len(names):
            left = sum(self.unit * each.cost * self._n(each) for each in self.entries[done - 1 :])
            about = f"; about {math.ceil(left / 60)} min left" if left > 1 else ""
            text = f"{done} of {len(names)} analyses are done, next is {names[done]}{about}"
            tqdm.write(text, file=sys.stderr)

    def _n(self, entry: Analysis) -> int:
        """How many queries an analysis takes."""
        if entry.asks == "documents":
            return self.task.size.questions
        counts, most = self.task.graded.counts(), self.task.size.most
        sizes = (counts.get(subset, 0) for subset in entry.subsets)
        return sum(size if most is None else min(size, most) for size in sizes)


def study_folder(runs: Path, model: LanguageModel, queries: QuerySet, label: str) -> Path:
    """Where the results of one model, query set, few-shot number and size lie."""
    parts = (model.name, queries.name, f"{queries.few_shot}-shot", label)
    return runs / ".".join(re.sub(r"[^\w-]+", "-", part).strip("-") for part in parts)
