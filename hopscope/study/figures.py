"""Provides how figure scripts are found and run."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from matplotlib import pyplot as plt

from hopscope.errors import DamagedResultError, NoResultError, ResultError, UsageError
from hopscope.files import make_folder, replacing
from hopscope.plots.figures import Drawn, save_figure
from hopscope.plots.style import figure_style
from hopscope.results.result import Result
from hopscope.results.run_folder import is_run

logger = logging.getLogger(__name__)


R = TypeVar("R", bound=Result)
T = TypeVar("T")


def scripts_folder() -> Path:
    """The folder of figure scripts: `figures` of a checkout that this is run in, or the package's.

    Raises:
        UsageError: if there are none.
    """
    here = Path("figures")
    if any(here.glob("[!_]*.py")):
        return here
    packaged = importlib.util.find_spec("hopscope.figures")
    if packaged is None or not packaged.submodule_search_locations:
        raise UsageError(
            "no figure scripts: install hopscope, run this in a checkout of it, or give --scripts"
        )
    return Path(packaged.submodule_search_locations[0])


def figure_scripts(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The figure scripts of a folder, one a figure: those named, or all.

    Raises:
        UsageError: for an unknown figure, or a folder without scripts.
    """
    there = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    if not there:
        raise UsageError(f"no figure scripts in {folder}: give another folder to --scripts")
    unknown = [name for name in names if name not in there]
    if unknown:
        raise UsageError(f"no figure {unknown[0]!r} in {folder}: there is {', '.join(there)}")
    return {name: there[name] for name in names or there}


def figure_script(
    name: str, load: Callable[[Path], T]
) -> Callable[[Callable[[T], Drawn]], Callable[[Path, Path], list[Path]]]:
    """Turn a function that draws results into the `draw(runs, rendered)` of a figure script.

    Args:
        name: of the figure.
        load: gives, from a folder of runs, what the function draws.

    Returns:
        A decorator. What it gives loads the results, draws in the style of the figures, and writes
        picture and numbers into a folder.

    Example:
        >>> @figure_script("recall", by_subset("recall", Recall))      # doctest: +SKIP
        ... def draw(results: Mapping[str, Recall]) -> Drawn:
        ...     return summary_panels(results, recall_lines, "Recall at t1", "substitute")
    """

    def script(make: Callable[[T], Drawn]) -> Callable[[Path, Path], list[Path]]:
        def draw(runs: Path, rendered: Path) -> list[Path]:
            results = load(runs)
            with figure_style():
                figure, numbers = make(results)
                paths = save_figure(figure, numbers, rendered, name)
                plt.close(figure)
            return paths

        draw.__doc__ = make.__doc__
        return draw

    return script


def main(draw: Callable[[Path, Path], list[Path]]) -> None:
    """Run a figure script: `python figures/NAME.py RUNS` draws into `rendered` beside it."""
    script, *runs = sys.argv
    for drawn in draw(Path(*runs[:1]), Path(script).parent / "rendered"):
        print(drawn)


def by_subset(step: str, kind: type[R]) -> Callable[[Path], dict[str, R]]:
    """Loads the results of an analysis in a study, by subset."""
    return lambda runs: results_of(runs, step, kind)


def of_documents(step: str, kind: type[R]) -> Callable[[Path], R]:
    """Loads the result of an analysis over documents in a study."""
    return lambda runs: results_of(runs, step, kind)["documents"]


def alone(name: str, kind: type[R]) -> Callable[[Path], R]:
    """Loads the one result that a figure is drawn from."""
    return lambda runs: kind.load(runs / name)


def by_folder(name: str, kind: type[R]) -> Callable[[Path], dict[str, R]]:
    """Loads the results of a figure that lie in folders of their own, by the folder's name."""

    def load(runs: Path) -> dict[str, R]:
        folders = sorted((runs / name).glob("*"))
        places = {
            each.name: place
            for each in folders
            for place in (each / kind.kind, each)
            if is_run(place)
        }
        if not places:
            raise NoResultError(f"{runs / name} holds no result: run `hopscope figures {name}`")
        return {each: kind.load(place) for each, place in places.items()}

    return load


def runs_folder(runs: Path) -> Path:
    """The folder of runs itself, for figures that are drawn from several."""
    return runs


def results_of(runs: Path, step: str, kind: type[R]) -> dict[str, R]:
    """The results of an experiment that lie in a folder of runs, by subset.

    Raises:
        ResultError: if there is none.
    """
    found = {
        subset: kind.load(runs / f"{step}.{subset}")
        for subset in ("incorrect", "correct", "all", "documents")
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
        NoResultError: if there is nothing to draw.
        UsageError: if there are several results for a figure.
    """
    if not root.is_dir():
        raise NoResultError(f"{root} is no folder of results: give one that is there to --from")
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
                raise NoResultError(f"{root} holds no result for the figure {name}")
            make_folder(rendered)
            for path in (path for paths in found.values() for path in paths):
                drawn.append(rendered / path.name)
                with replacing(drawn[-1]) as temporary:
                    shutil.copy(path, temporary)
    if not drawn:
        raise NoResultError(f"{root} holds no result to draw: run `hopscope figures` or `study`")
    return drawn


def _drawn_from(
    scripts: Path, name: str, places: Sequence[Path], beside: Path
) -> dict[Path, list[Path]]:
    """A figure drawn from each place that has its results; the first alone if it has."""
    found: dict[Path, list[Path]] = {}
    for number, place in enumerate(places):
        try:
            found[place] = draw_figures(scripts, [name], place, beside / str(number))
        except DamagedResultError:
            raise
        except ResultError as error:
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
        raise NoResultError(f"{runs} holds no result to draw: run `hopscope figures` or `study`")
    return drawn
