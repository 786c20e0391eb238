"""Runs what the figures are drawn from that take no model and no queries of the user's.

They bring their own: worlds, models trained here, or a fixed choice of models. Beside `study`,
whose figures are of one model and one query set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from hopscope.study.figures import draw_figures
from hopscope.study.presets import Preset

if TYPE_CHECKING:
    from hopscope.worlds.world import World

SEEDS = (0, 1, 2)
CIRCUIT = ("two-hop-looped", "two-hop-memoriser")
THINKING = ("reachability", "reachability-pause")
HEADS = ("smollm2-135m", "gemma3-270m")
SNAPSHOTS = range(0, 2001, 200)
COVERED = ("coverage", "coverage-few-bridges", "coverage-path-ambiguity")


@dataclass(frozen=True)
class Setting:
    """How a figure's results are made.

    Attributes:
        folder: of the run folders; trained models lie beside it, whatever the size and seed.
        size: how much is run.
        seed: of all that is drawn, but for figures over several trainings, which are of `SEEDS`.
        device: where models go.
        progress: show progress bars.
    """

    folder: Path
    size: Preset
    seed: int = 0
    device: str | None = None
    progress: bool = True

    def worlds(self, names: Sequence[str]) -> list[World]:
        """Three seeds of some worlds."""
        from hopscope.worlds.load import load_world

        return [load_world(name, each, device=self.device) for name in names for each in SEEDS]

    def trained(self, name: str, seed: int, steps: Sequence[int]) -> Path:
        """The folder of a world that was trained with snapshots, trained if it is not there."""
        from hopscope.worlds.train import train_world

        where = self.folder.parent / "models" / f"{name}.seed-{seed}"
        train_world(name, seed, where, snapshots=steps, device=self.device, progress=self.progress)
        return where


def _world_circuit(how: Setting) -> None:
    from hopscope.experiments.worlds.circuit import circuit

    out = how.folder / "world_circuit"
    circuit(how.worlds(CIRCUIT), how.size.of_world, how.seed, how.progress, out=out)


def _emergence(how: Setting) -> None:
    from hopscope.experiments.worlds.circuit import Circuit, circuit
    from hopscope.experiments.worlds.emergence import over_checkpoints

    def read(world: World) -> Circuit:
        return circuit([world], how.size.of_world, how.seed, progress=False)

    where = how.trained("two-hop-looped", how.seed, SNAPSHOTS)
    out = how.folder / "emergence"
    over_checkpoints(where, read, progress=how.progress, device=how.device, out=out)


def _coverage(how: Setting) -> None:
    from hopscope.experiments.worlds.coverage import coverage
    from hopscope.experiments.worlds.emergence import over_checkpoints
    from hopscope.worlds.catalogue import WORLDS

    for name, seed in product(COVERED, SEEDS):
        last = WORLDS[name].schedule.steps
        where = how.trained(name, seed, range(0, last + 1, last // 10))
        out = how.folder / "coverage" / f"{name}.seed-{seed}"
        over_checkpoints(where, coverage, progress=how.progress, device=how.device, out=out)


def _data_needed(how: Setting) -> None:
    from hopscope.experiments.worlds.data_needed import data_needed

    out = how.folder / "data_needed"
    data_needed(seeds=(how.seed,), device=how.device, out=out, progress=how.progress)


def _search_graph(how: Setting) -> None:
    from hopscope.experiments.worlds.computation_graph import computation_graph
    from hopscope.worlds.catalogue import recipe_of
    from hopscope.worlds.load import load_world
    from hopscope.worlds.small_model import untrained

    world = load_world("graph-search", device=how.device)  # the seed that comes along
    recipe = recipe_of(world.name)
    words, device = recipe.task.words, world.model.device
    other = untrained(words, recipe.shape, how.seed, "untrained", device)
    for name, model in (("trained", world.model), ("untrained", other)):
        prompts = world.paths(4 * how.size.of_world)
        out = how.folder / "search_graph" / name
        computation_graph(model, prompts, progress=how.progress, out=out)


def _superposition(how: Setting) -> None:
    from hopscope.experiments.worlds.superposition import superposition

    out = how.folder / "superposition"
    superposition(how.worlds(THINKING), 8 * how.size.of_world, how.progress, out=out)


def _head_classes(how: Setting) -> None:
    from hopscope.experiments.two_hop.head_retrieval import classify_heads
    from hopscope.experiments.two_hop.rank_neighbours import rank_neighbours
    from hopscope.models.load import load_model
    from hopscope.queries.load import load_queries
    from hopscope.study.presets import limited

    queries = limited(load_queries("world"), how.size.limit, how.seed)
    for name in HEADS:
        model = load_model(name, device=how.device)
        folder = how.folder / "head_classes" / name
        classify_heads(model, queries, progress=how.progress, out=folder / "head_classes")
        rank_neighbours(
            model, queries, seed=how.seed, progress=how.progress, out=folder / "rank_neighbours"
        )


def _prefix_training(how: Setting) -> None:
    from hopscope.experiments.documents.prefix_training import compare_masks

    # Its seeds are those of the trainings, three of them in any case.
    compare_masks(out=how.folder / "prefix_training", progress=how.progress)


@dataclass(frozen=True)
class Alone:
    """A figure that brings its own models.

    Attributes:
        run: makes its results.
        costly: whether models are trained or fetched for it, which takes minutes to hours, so that
            it is run only when it is named.
    """

    run: Callable[[Setting], None]
    costly: bool = False


ALONE: Mapping[str, Alone] = {
    "world_circuit": Alone(_world_circuit),
    "emergence": Alone(_emergence, costly=True),
    "coverage": Alone(_coverage, costly=True),
    "data_needed": Alone(_data_needed, costly=True),
    "search_graph": Alone(_search_graph),
    "superposition": Alone(_superposition, costly=True),
    "head_classes": Alone(_head_classes, costly=True),
    "prefix_training": Alone(_prefix_training, costly=True),
}
"""The figures that take no model and no queries, and how their results are made."""


def draw_alone(
    names: Sequence[str], how: Setting, scripts: Path, rendered: Path, *, costly: bool
) -> list[Path]:
    """Run and draw those of some figures that bring their own models.

    Args:
        names: of figures.
        how: their results are made.
        scripts: folder of the scripts.
        rendered: where pictures and numbers go.
        costly: whether those are run, too, for which models are trained or fetched.

    Returns:
        The files that were written.
    """
    drawn: list[Path] = []
    for name, figure in ALONE.items():
        if name in names and (costly or not figure.costly):
            figure.run(how)
            drawn += draw_figures(scripts, [name], how.folder, rendered)
    return drawn
