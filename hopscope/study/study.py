"""Runs what the figures are drawn from: grading, then the experiments on what was graded."""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hopscope.documents.question_set import QuestionSet, load_questions
from hopscope.errors import ModelError, QueryError, ResultError, UsageError
from hopscope.experiments.documents.attention import attention_to_documents
from hopscope.experiments.documents.masked_paths import masked_paths
from hopscope.experiments.documents.order_choice import best_order
from hopscope.experiments.documents.permutation import permute_documents
from hopscope.experiments.two_hop.activation_patching import activation_patch
from hopscope.experiments.two_hop.attention_knockout import Knockouts, knockout
from hopscope.experiments.two_hop.back_patching import back_patch
from hopscope.experiments.two_hop.causal_tracing import trace
from hopscope.experiments.two_hop.description import Description, describe
from hopscope.experiments.two_hop.entity_recall import recall
from hopscope.experiments.two_hop.grading import Grading, grade
from hopscope.experiments.two_hop.probing import FOLDS, labelled, probe, sample_entities
from hopscope.experiments.two_hop.projection import Projection, project
from hopscope.experiments.two_hop.stages import combine
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result, is_run

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Preset:
    """How much is run.

    Attributes:
        limit: queries that are graded; all if None.
        most: queries of each subset that are analysed; all if None.
        layer_step: only every so many layers are sources and targets, or probed.
        questions: questions over documents that are asked.
        shuffles: orders of their documents among which one is chosen.
        of_world: questions of each split of a world.
    """

    limit: int | None
    most: int | None
    layer_step: int
    questions: int = 500
    shuffles: int = 20
    of_world: int = 1000


PRESETS = {
    "quick": Preset(limit=256, most=16, layer_step=3, questions=40, shuffles=8, of_world=36),
    "paper": Preset(None, None, 1),
}


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UsageError: if there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


S = TypeVar("S", QuerySet, QuestionSet)


def limited(queries: S, limit: int | None, seed: int = 0) -> S:
    """At most `limit` queries, drawn by seed."""
    return queries if limit is None or limit >= len(queries) else queries.sample(limit, seed)


def layer_cells(n_layers: int, step: int) -> list[tuple[int, int]] | None:
    """All (source, target) pairs with source > target of every `step`-th layer; None for all."""
    if step < 1:
        raise UsageError(f"the layer step must be 1 or more, not {step}")
    layers = range(0, n_layers, step)
    return None if step == 1 else [(a, b) for a in layers for b in layers if a > b]


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


def study_folder(runs: Path, model: LanguageModel, queries: QuerySet, label: str) -> Path:
    """Where the results of one model, query set, few-shot number and size lie."""
    parts = (model.name, queries.name, f"{queries.few_shot}-shot", label)
    return runs / ".".join(re.sub(r"[^\w-]+", "-", part).strip("-") for part in parts)


def figure_scripts(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The figure scripts of a folder, one a figure: those named, or all.

    Raises:
        UsageError: for an unknown figure, or a folder without scripts.
    """
    there = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    if not there:
        raise UsageError(
            f"no figure scripts in {folder}: run this in a checkout of hopscope, or give --scripts"
        )
    unknown = [name for name in names if name not in there]
    if unknown:
        raise UsageError(f"no figure {unknown[0]!r} in {folder}: there is {', '.join(there)}")
    return {name: there[name] for name in names or there}


def results_of(runs: Path, step: str, kind: type[R]) -> dict[str, R]:
    """The results of an experiment that lie in a folder of runs, by subset.

    Raises:
        ResultError: if there is none.
    """
    found = {
        subset: kind.load(runs / f"{step}.{subset}")
        for subset in (*SUBSETS, "all", "documents")
        if is_run(runs / f"{step}.{subset}")
    }
    if not found:
        name = step.replace("_", "-")
        raise ResultError(
            f"{runs} holds no {name} result: no query was graded incorrect or correct, or "
            "`hopscope figures` has not run; grade more queries (--limit) or another model"
        )
    return found


def redraw(
    scripts: Path, names: Sequence[str], root: Path, rendered: Path, *, strict: bool
) -> list[Path]:
    """Draw figures from results that lie in folders of runs, without a model.

    Args:
        scripts: folder of the scripts.
        names: of the figures.
        root: a folder of results, or one of such folders.
        rendered: where pictures and numbers go.
        strict: whether a figure without a result is an error.

    Returns:
        The files that were written.

    Raises:
        ResultError: if there is nothing to draw.
        UsageError: if there are several results for a figure.
    """
    inside = sorted(path for path in root.glob("*") if path.is_dir())
    drawn: list[Path] = []
    for name in names:
        with tempfile.TemporaryDirectory() as beside:
            found = _drawn_from(scripts, name, (root, *inside), Path(beside))
            if len(found) > 1:
                raise UsageError(
                    f"{root} has several runs for the figure {name}: give one of them to --from, "
                    f"such as {next(iter(found))}"
                )
            if strict and not found:
                raise ResultError(f"{root} holds no result for the figure {name}")
            rendered.mkdir(parents=True, exist_ok=True)
            for path in (path for paths in found.values() for path in paths):
                drawn.append(Path(shutil.copy(path, rendered)))
    if not drawn:
        raise ResultError(f"{root} holds no result to draw: run `hopscope figures` or `study`")
    return drawn


def _drawn_from(
    scripts: Path, name: str, places: Sequence[Path], beside: Path
) -> dict[Path, list[Path]]:
    """A figure drawn from each place that has its results; the first alone if it has."""
    found: dict[Path, list[Path]] = {}
    for number, place in enumerate(places):
        try:
            found[place] = draw_figures(scripts, [name], place, beside / str(number))
        except ResultError as error:
            if "damaged" in str(error):
                raise
            logger.debug("no figure %s in %s: %s", name, place, error)
        if places[0] in found:
            break
    return found


def draw_figures(
    scripts: Path,
    names: Sequence[str],
    runs: Path,
    rendered: Path,
    *,
    strict: bool | None = None,
) -> list[Path]:
    """Run the `draw` of figure scripts.

    Args:
        scripts: folder of the scripts.
        names: which; if empty, all that have a result.
        runs: folder of saved results.
        rendered: where pictures and numbers go.
        strict: whether a figure without a result is an error; if it is named, by default.

    Returns:
        The files that were written.

    Raises:
        ResultError: if a figure that must be drawn has no result, or none of them has.
    """
    drawn: list[Path] = []
    for name, path in figure_scripts(scripts, names).items():
        spec = importlib.util.spec_from_file_location(f"hopscope_figure_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        try:
            drawn += module.draw(runs, rendered)
        except ResultError as error:
            if bool(names) if strict is None else strict:
                raise
            logger.warning("no figure %s: %s", name, error)
    if not drawn:
        raise ResultError(f"{runs} holds no result to draw: run `hopscope figures` or `study`")
    return drawn
