"""Runs what the figures are drawn from: grading, then back-patching what was graded."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hopscope.errors import UsageError
from hopscope.experiments import Grading, back_patch, grade
from hopscope.models import LanguageModel
from hopscope.queries import QuerySet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """How much is run.

    Attributes:
        limit: queries that are graded; all if None.
        most: queries of each subset that are back-patched; all if None.
        layer_step: only every so many layers are sources and targets.
    """

    limit: int | None
    most: int | None
    layer_step: int


PRESETS = {"quick": Preset(limit=256, most=16, layer_step=3), "paper": Preset(None, None, 1)}


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UsageError: if there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def limited(queries: QuerySet, limit: int | None, seed: int = 0) -> QuerySet:
    """At most `limit` queries, drawn by seed."""
    return queries if limit is None or limit >= len(queries) else queries.sample(limit, seed)


def layer_cells(n_layers: int, step: int) -> list[tuple[int, int]] | None:
    """All (source, target) pairs with source > target of every `step`-th layer; None for all."""
    if step < 1:
        raise UsageError(f"the layer step must be 1 or more, not {step}")
    layers = range(0, n_layers, step)
    return None if step == 1 else [(a, b) for a in layers for b in layers if a > b]


def run_study(
    model: LanguageModel,
    queries: QuerySet,
    folder: Path,
    size: Preset,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Grading:
    """Grade, and back-patch both subsets, into `folder`; finished parts are kept.

    A subset without queries is left out, and a warning says so.
    """
    graded = grade(
        model,
        limited(queries, size.limit, seed),
        out=folder / "grading",
        progress=progress,
    )
    for name, subset in (("incorrect", graded.incorrect()), ("correct", graded.correct())):
        if not len(subset):
            logger.warning("no query was graded %s: it has no back-patching result", name)
            continue
        back_patch(
            model,
            limited(subset, size.most, seed),
            cells=layer_cells(model.n_layers, size.layer_step),
            seed=seed,
            out=folder / f"back_patching.{name}",
            progress=progress,
        )
    return graded


def study_folder(runs: Path, model: LanguageModel, queries: QuerySet, label: str) -> Path:
    """Where the results of one model, query set, few-shot number and size lie."""
    parts = (model.name, queries.name, f"{queries.few_shot}-shot", label)
    return runs / ".".join(re.sub(r"[^\w-]+", "-", part).strip("-") for part in parts)


def figure_scripts(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The figure scripts of a folder, one a figure: those named, or all.

    Raises:
        UsageError: for an unknown figure, or a folder without scripts.
    """
    there = {path.stem: path for path in sorted(folder.glob("*.py"))}
    if not there:
        raise UsageError(
            f"no figure scripts in {folder}: run this in a checkout of hopscope, or give --scripts"
        )
    unknown = [name for name in names if name not in there]
    if unknown:
        raise UsageError(f"no figure {unknown[0]!r} in {folder}: there is {', '.join(there)}")
    return {name: there[name] for name in names or there}


def draw_figures(scripts: Path, names: Sequence[str], runs: Path, rendered: Path) -> list[Path]:
    """Run the `draw` of figure scripts.

    Args:
        scripts: folder of the scripts.
        names: which; all if empty.
        runs: folder of saved results.
        rendered: where pictures and numbers go.

    Returns:
        The files that were written.
    """
    drawn: list[Path] = []
    for name, path in figure_scripts(scripts, names).items():
        spec = importlib.util.spec_from_file_location(f"hopscope_figure_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        drawn += module.draw(runs, rendered)
    return drawn
