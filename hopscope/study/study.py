"""Provides run_study(): grading, then every analysis on what was graded, into run folders."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hopscope.distributed.engines import engine_of
from hopscope.documents.load import load_questions
from hopscope.documents.question_set import QuestionSet
from hopscope.errors import ModelError, QueryError, UsageError
from hopscope.experiments.analysis import Analysis, Scale, limited
from hopscope.experiments.catalogue import analyses
from hopscope.experiments.estimate import Estimate, rehearse
from hopscope.experiments.registry import REGISTERED
from hopscope.experiments.two_hop.grading import Grading, grade, grade_until, needed
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.study.estimates import GradedSample
from hopscope.study.presets import Preset

logger = logging.getLogger(__name__)

COMPOSED = {"claims": ("description", "knockout", "projection", "back_patching")}
"""The analyses of figures that are drawn from several, in the order in which they are drawn."""
GRADED = ("correct", "incorrect")
"""The subsets that a study analyses."""


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
    named = {step for name in figures for step in COMPOSED.get(name, (name,))}
    drawn = [each for each in there if not named or each.name in named]
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
    on: Any = None,
    finished: Callable[[str], None] | None = None,
) -> Study:
    """Grade, and run analyses on what was graded, into `folder`; finished parts are kept.

    Args:
        model: the model; with `on` also what it is loaded by, so that workers alone load it.
        queries: the queries, of which `size` says how many are graded.
        folder: of the run folders.
        size: how much is run.
        steps: names of `study_analyses()`; all if None. One that only puts others together runs
            where these do.
        seed: of everything that is drawn at random.
        progress: show progress bars.
        on: where the parts of each run are computed; see `RunOptions`.
        finished: called with the name of each analysis when all its results are there.

    An analysis that finds no query is left out, and a warning says so.
    """
    with nullcontext() if on is None else engine_of(on).held():
        return _run_study(model, queries, folder, size, steps, seed, progress, on, finished)


def _run_study(
    model: LanguageModel,
    queries: QuerySet,
    folder: Path,
    size: Preset,
    steps: Sequence[str] | None,
    seed: int,
    progress: bool,
    on: Any,
    finished: Callable[[str], None] | None,
) -> Study:
    """Grade and run analyses, as `run_study`, whose engine is held."""
    queries = _asked(queries, size)
    run: dict[str, Any] = {"out": folder / "grading", "progress": progress, "on": on}
    graded = _graded(model, queries, size, seed, **run)
    task = _Task(model, queries, graded, folder, size, seed, progress, on)
    entries = _chosen(steps)
    results: dict[str, Result] = {}
    left_out: dict[str, str] = {}
    told = finished or (lambda _: None)
    told("grading")
    for done, entry in enumerate(entries, 1):
        if progress:
            text = f"{done} of {len(entries) + 1} analyses are done, next is {entry.name}"
            tqdm.write(text, file=sys.stderr)
        for subset in entry.subsets:
            name = f"{entry.name}.{subset}"
            try:
                results[name] = task.run(entry, subset, results)
            except (QueryError, ModelError) as error:
                logger.warning("%s is left out: %s", name, error)
                left_out[name] = str(error)
        told(entry.name)
    return Study(graded, results, left_out, folder)


def _graded(
    model: LanguageModel, queries: QuerySet, size: Preset, seed: int, **run: Any
) -> Grading:
    """The grading of as many queries as are wanted and needed; one without a need goes on so."""
    grading = REGISTERED["grading"]
    run |= grading.parity if size.setting == grading.preset else {}
    need = _needed(size, run["out"])
    if size.limit is None or not need:
        return grade(model, limited(queries, size.limit, seed), **run)
    return grade_until(model, queries, need, size.limit, seed=seed, **run)


def _needed(size: Preset, grading: Path) -> dict[str, int]:
    """Until how many there are of each subset queries are graded beyond the limit."""
    return needed(dict.fromkeys(GRADED, size.need), size.limit, grading)


def _asked(queries: QuerySet, size: Preset) -> QuerySet:
    """The queries as a study asks them: in the setting of a paper without demonstrations."""
    return queries if size.setting is None else queries.with_few_shot(0, queries.few_shot_seed)


def estimate_study(
    model: LanguageModel,
    queries: QuerySet,
    folder: Path,
    size: Preset,
    *,
    seed: int = 0,
    seconds: float = 1.0,
) -> dict[str, Estimate]:
    """What a study costs, by the names of its runs; nothing is written.

    Args:
        model, queries, folder, size, seed: as for `run_study`.
        seconds: for how long each run is measured; see `estimate`.

    If the queries are not graded yet, a few are, and the subsets are taken to be as large as they
    are among these.
    """
    queries, out = _asked(queries, size), folder / "grading"
    need = _needed(size, out)
    asked = queries if need else limited(queries, size.limit, seed)
    at_least = (size.limit if need else None) or len(asked)

    sample = GradedSample.of(_graded, model, asked, need, at_least, size=size, seed=seed, out=out)
    task = _Task(model, queries, sample, folder, size, seed, progress=False)
    found = {} if sample.cost is None else {"grading": sample.cost}
    for entry in _chosen(None):
        for subset in entry.subsets if entry.combine is None else ():
            name, run = f"{entry.name}.{subset}", partial(task.run_on, entry, subset)
            try:
                found[name] = rehearse(run, model, seconds=seconds).estimate()
            except (UsageError, ModelError) as error:  # a probe is computed in one piece
                logger.warning("%s is left out: %s", name, error)
    return found


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
    graded: Grading | GradedSample
    folder: Path
    size: Preset
    seed: int
    progress: bool
    on: Any = None

    @property
    def scale(self) -> Scale:
        """How much of an analysis is run."""
        size = self.size
        return Scale(size.most, size.shuffles, size.probed, self.seed)

    def run(self, entry: Analysis, subset: str, results: Mapping[str, Result]) -> Result:
        """Run an analysis, or put together the results that it is made of."""
        out = self.folder / f"{entry.name}.{subset}"
        if entry.combine is not None:
            parts = [results.get(f"{part}.{subset}") for part in entry.parts]
            if any(part is None for part in parts):
                needed = ", ".join(entry.parts)
                raise QueryError(f"it needs the results of {needed} of the same queries")
            combined = entry.combine(*parts, **self.of_combining(entry))
            combined.save(out)
            return combined
        return self.run_on(entry, subset, self.model)

    def of_combining(self, entry: Analysis) -> Mapping[str, Any]:
        """The arguments of the study's setting that putting results together takes."""
        assert entry.combine is not None
        taken = inspect.signature(entry.combine).parameters
        there = entry.parity if entry.preset == self.size.setting else {}
        return {name: value for name, value in there.items() if name in taken}

    def run_on(self, entry: Analysis, subset: str, model: LanguageModel) -> Result:
        """Run an analysis."""
        inputs, out = self.inputs(entry, subset), self.folder / f"{entry.name}.{subset}"
        scaled = {} if entry.in_study is None else entry.in_study(self.scale)
        common: dict[str, Any] = {"seed": self.seed, "progress": self.progress, "out": out}
        if entry.layers is not None:
            common["layer_step"] = self.size.layer_step
        if "on" in entry.keywords:
            common["on"] = self.on
        if entry.parity and entry.preset == self.size.setting:
            common["preset"] = entry.preset
        result: Result = entry.function(model, inputs, **scaled, **common)
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
            questions = load_questions(entry.usual_questions, seed=self.seed)
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
        chosen = self.graded.subset(name)
        if not len(chosen):
            raise QueryError(
                f"no query was graded {name}; grade more queries (a larger limit), or give "
                "another model"
            )
        return limited(chosen, self.size.most, self.seed)


def study_folder(runs: Path, model: LanguageModel, queries: QuerySet, label: str) -> Path:
    """Where the results of one model, query set, few-shot number and size lie."""
    shots = f"{queries.few_shot}-shot" + ("-chat" if queries.chat else "")
    parts = (model.name, queries.name, shots, label)
    return runs / ".".join(re.sub(r"[^\w-]+", "-", part).strip("-") for part in parts)
