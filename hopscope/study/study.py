"""Runs what the figures are drawn from: grading, then the experiments on what was graded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hopscope.errors import ModelError, QueryError
from hopscope.experiments.two_hop.attention_knockout import Knockouts
from hopscope.experiments.two_hop.description import Description
from hopscope.experiments.two_hop.grading import Grading, grade
from hopscope.experiments.two_hop.projection import Projection
from hopscope.experiments.two_hop.stages import combine
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.study.presets import Preset, limited
from hopscope.study.steps import STEPS, SUBSETS, _Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study:
    """What was run of one model and query set.

    Attributes:
        grading: which queries the model gets right.
        results: by name, such as `back_patching.incorrect`.
        left_out: why an experiment has no result, by the same names.
        folder: where the run folders lie.
    """

    grading: Grading
    results: Mapping[str, Result]
    left_out: Mapping[str, str]
    folder: Path


def run_study(
    model: LanguageModel,
    queries: QuerySet,
    folder: Path,
    size: Preset,
    steps: Sequence[str] | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Study:
    """Grade, and run experiments on what was graded, into `folder`; finished parts are kept.

    Args:
        model: the model.
        queries: the queries, of which `size` says how many are graded.
        folder: of the run folders.
        size: how much is run.
        steps: names of `STEPS`; all if None.
        seed: of all that is drawn.
        progress: show progress bars.

    An experiment that finds no query is left out, and a warning says so.
    """
    graded = grade(
        model, limited(queries, size.limit, seed), out=folder / "grading", progress=progress
    )
    task = _Task(model, queries, graded, folder, size, seed, progress)
    results: dict[str, Result] = {}
    left_out: dict[str, str] = {}
    for step in STEPS if steps is None else steps:
        for subset in STEPS[step].subsets:
            name = f"{step}.{subset}"
            try:
                results[name] = STEPS[step].run(task, subset, folder / name)
            except (QueryError, ModelError) as error:
                logger.warning("%s is left out: %s", name, error)
                left_out[name] = str(error)
    if {"description", "knockout", "projection"} <= set(STEPS if steps is None else steps):
        for subset in SUBSETS:
            _combine(results, left_out, subset, folder)
    return Study(graded, results, left_out, folder)


def _combine(
    results: dict[str, Result], left_out: dict[str, str], subset: str, folder: Path
) -> None:
    name = f"stages.{subset}"
    parts = [results.get(f"{step}.{subset}") for step in ("description", "knockout", "projection")]
    described, knocked, projected = parts
    if (
        isinstance(described, Description)
        and isinstance(knocked, Knockouts)
        and isinstance(projected, Projection)
    ):
        results[name] = combine(described, knocked, projected)
        results[name].save(folder / name)
    else:
        left_out[name] = "it needs description, knockout and projection of the same queries"


def study_folder(runs: Path, model: LanguageModel, queries: QuerySet, label: str) -> Path:
    """Where the results of one model, query set, few-shot number and size lie."""
    parts = (model.name, queries.name, f"{queries.few_shot}-shot", label)
    return runs / ".".join(re.sub(r"[^\w-]+", "-", part).strip("-") for part in parts)
