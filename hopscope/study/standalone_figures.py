"""Runs what the figures are drawn from that take no model and no queries of the user's.

They bring their own: worlds, models trained here, or a fixed choice of models. Beside `study`,
whose figures are of one model and one query set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from hopscope.errors import UsageError
from hopscope.results.run_folder import is_run, read_run
from hopscope.study.figures import draw_figures
from hopscope.study.presets import Preset

if TYPE_CHECKING:
    from hopscope.queries.query_set import QuerySet
    from hopscope.worlds.world import World

SEEDS = (0, 1, 2)
CIRCUIT = ("two-hop-looped", "two-hop-memoriser")
BRIDGED = ("two-hop", "two-hop-looped")
READ = ("first_hop_ood", "in_distribution")
"""The splits that a trained attention is asked."""
ATTENTION_STEPS = 300
"""Of the training of such an attention on a world."""
THINKING = ("reachability", "reachability-pause")
AHEAD = "reachability-ahead"
HEADS = ("smollm2-135m", "gemma3-270m")
LADDER = ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
LADDER_STEPS = (
    *("back_patching", "description", "knockout", "projection", "stages"),
    *("patching", "recall"),
)
MORE_HOPS = ("three-hop-looped", "world", "world-three-hops", "world-four-hops")
"""A world of three hops, and the bundled chains of two, three and four."""
NEEDED = 200
"""Queries of each subset that each model of the ladder is asked for, if it has them."""
SNAPSHOTS = range(0, 2001, 200)
COVERED = ("coverage", "coverage-few-bridges", "coverage-path-ambiguity")


class _Run(TypedDict):
    """Keywords that every analysis of a figure is given."""

    progress: bool
    out: Path


@dataclass(frozen=True)
class Settings:
    """How a figure's results are made.

    Attributes:
        folder: of the run folders; trained models lie beside it, whatever the size and seed.
        size: how much is run.
        seed: of all that is drawn, but for figures over several trainings, which are of `SEEDS`.
        device: where models go.
        dtype: of pretrained models; hopscope's default if None.
        quantization: of pretrained models, while they are loaded; none if None.
        progress: show progress bars.
    """

    folder: Path
    size: Preset
    seed: int = 0
    device: str | None = None
    progress: bool = True
    dtype: str | None = None
    quantization: str | None = None

    @property
    def loading(self) -> dict[str, Any]:
        """The keywords by which a pretrained model is loaded."""
        return {"device": self.device, "dtype": self.dtype, "quantization": self.quantization}

    def into(self, *names: str) -> _Run:
        """The keywords of an analysis whose run folder is the one of these names."""
        return {"progress": self.progress, "out": self.folder.joinpath(*names)}

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


def _world_circuit(settings: Settings) -> None:
    from hopscope.experiments.worlds.circuit import circuit

    worlds, limit = settings.worlds(CIRCUIT), settings.size.of_world
    circuit(worlds, limit, seed=settings.seed, **settings.into("world_circuit"))


def _emergence(settings: Settings) -> None:
    from hopscope.experiments.worlds.circuit import Circuit, circuit
    from hopscope.experiments.worlds.emergence import over_checkpoints

    def read(world: World) -> Circuit:
        return circuit([world], settings.size.of_world, seed=settings.seed, progress=False)

    folder = settings.trained("two-hop-looped", settings.seed, SNAPSHOTS)
    over_checkpoints(folder, read, device=settings.device, **settings.into("emergence"))


def _coverage(settings: Settings) -> None:
    from hopscope.experiments.worlds.coverage import coverage
    from hopscope.experiments.worlds.emergence import over_checkpoints
    from hopscope.worlds.catalogue import WORLDS

    for name, seed in product(COVERED, SEEDS):
        last = WORLDS[name].schedule.steps
        folder = settings.trained(name, seed, range(0, last + 1, last // 10))
        run = settings.into("coverage", f"{name}.seed-{seed}")
        over_checkpoints(folder, coverage, device=settings.device, **run)


def _data_needed(settings: Settings) -> None:
    from hopscope.experiments.worlds.data_needed import data_needed

    run = settings.into("data_needed")
    data_needed(seeds=(settings.seed,), device=settings.device, **run)


def _identity_bridge(settings: Settings) -> None:
    from hopscope.experiments.worlds.identity_bridge import identity_bridge
    from hopscope.worlds.catalogue import WORLDS

    for name in BRIDGED:
        run, shape = settings.into("identity_bridge", name), WORLDS[name].shape
        identity_bridge(SEEDS, shape=shape, device=settings.device, **run)


def _search_graph(settings: Settings) -> None:
    from hopscope.experiments.worlds.computation_graph import computation_graph
    from hopscope.worlds.catalogue import recipe_of
    from hopscope.worlds.load import load_world
    from hopscope.worlds.small_model import untrained

    world = load_world("graph-search", device=settings.device)  # the seed that is shipped
    recipe = recipe_of(world.name)
    words, device = recipe.task.words, world.model.device
    other = untrained(words, recipe.shape, settings.seed, "untrained", device)
    prompts = world.paths(4 * settings.size.of_world)
    for name, model in (("trained", world.model), ("untrained", other)):
        computation_graph(model, prompts, **settings.into("search_graph", name))


def _superposition(settings: Settings) -> None:
    from hopscope.experiments.worlds.superposition import superposition

    worlds, limit = settings.worlds(THINKING), 8 * settings.size.of_world
    superposition(worlds, limit, **settings.into("superposition"))


def _thoughts_ahead(settings: Settings) -> None:
    from hopscope.experiments.worlds.superposition import superposition
    from hopscope.worlds.load import load_world

    world = load_world(AHEAD, device=settings.device)  # the seed that is shipped
    superposition([world], 8 * settings.size.of_world, **settings.into("thoughts_ahead"))


def _head_classes(settings: Settings) -> None:
    from hopscope.experiments.analysis import limited
    from hopscope.experiments.two_hop.head_retrieval import classify_heads
    from hopscope.experiments.two_hop.rank_neighbours import rank_neighbours
    from hopscope.loading import load_model, load_queries

    queries = limited(load_queries("world"), settings.size.limit, settings.seed)
    for name in HEADS:
        model = load_model(name, **settings.loading)
        classify_heads(model, queries, **settings.into("head_classes", name, "head_classes"))
        run = settings.into("head_classes", name, "rank_neighbours")
        rank_neighbours(model, queries, seed=settings.seed, **run)


def _size_ladder(settings: Settings) -> None:
    from hopscope.loading import load_model, load_queries
    from hopscope.study.study import run_study

    size = replace(settings.size, need=NEEDED, most=NEEDED)
    queries, folder = load_queries("world"), settings.folder / "size_ladder"
    for name in LADDER:
        model = load_model(name, **settings.loading)
        run_study(
            model,
            queries,
            folder / name,
            size,
            LADDER_STEPS,
            seed=settings.seed,
            progress=settings.progress,
        )


def _more_hops(settings: Settings) -> None:
    from hopscope.experiments.analysis import limited
    from hopscope.experiments.two_hop.layer_order import layer_order
    from hopscope.loading import load_model, load_queries
    from hopscope.worlds.load import load_world

    world = load_world(MORE_HOPS[0], device=settings.device)
    known = limited(world.queries(), 4 * settings.size.of_world, settings.seed)
    run = settings.into("more_hops", world.name)
    layer_order(world.model, known, rank=0, seed=settings.seed, **run)
    model = load_model(HEADS[0], **settings.loading)
    for name in MORE_HOPS[1:]:
        queries = limited(load_queries(name), settings.size.limit, settings.seed)
        run = settings.into("more_hops", name)
        layer_order(model, queries, seed=settings.seed, **run)


def _auto_patching(settings: Settings) -> None:
    from hopscope.experiments.two_hop.auto_patching import auto_patch
    from hopscope.loading import load_model, load_queries

    for world in settings.worlds(CIRCUIT[:1]):
        auto_patch(
            world.model,
            _of_splits(world, world.task.splits, 4 * settings.size.of_world),
            criterion="first_token",
            seed=settings.seed,
            **settings.into("auto_patching", f"{world.name}.seed-{world.seed}"),
        )
    for name in LADDER:
        if runs := _back_patched(settings, name):
            auto_patch(
                load_model(name, settings.device, read_run(runs[0])["model"]["dtype"]),
                load_queries("world"),
                patched=runs,
                seed=settings.seed,
                **settings.into("auto_patching", name),
            )


def _back_attention(settings: Settings) -> None:
    from hopscope.experiments.two_hop.back_attention import ARMS, back_attention
    from hopscope.experiments.two_hop.back_patching import BackPatching
    from hopscope.loading import load_model, load_queries

    for world in settings.worlds(CIRCUIT[:1]):
        # Second hops that were never composed would be asked in both halves.
        queries = _of_splits(world, READ, 4 * settings.size.of_world)
        back_attention(
            world.model,
            queries,
            tuple(ARMS),
            steps=ATTENTION_STEPS,
            seed=settings.seed,
            **settings.into("back_attention", f"{world.name}.seed-{world.seed}"),
        )
    name = LADDER[0]
    if runs := _back_patched(settings, name):
        ids = [each for run in runs for each in BackPatching.load(run).details["query"].unique()]
        world_queries = load_queries("world")
        back_attention(
            load_model(name, settings.device, read_run(runs[0])["model"]["dtype"]),
            replace(world_queries, queries=tuple(map(world_queries.by_id, ids))),
            steps=60,
            batch_size=16,
            seed=settings.seed,
            **settings.into("back_attention", name),
        )


def _back_patched(settings: Settings, name: str) -> list[Path]:
    """The runs of back-patching that the size ladder has of a model; none unless it has both."""
    folder = settings.folder / "size_ladder" / name
    runs = [folder / f"back_patching.{subset}" for subset in ("incorrect", "correct")]
    return runs if all(map(is_run, runs)) else []


def _of_splits(world: World, splits: Sequence[str], limit: int) -> QuerySet:
    """At most so many queries of each of some splits of a world."""
    from hopscope.queries.query_set import QuerySet

    sampled = (world.queries(split) for split in splits)
    asked = tuple(query for each in sampled for query in each.sample(min(limit, len(each))))
    return QuerySet(asked, " and ".join(splits))


def _prefix_training(settings: Settings) -> None:
    from hopscope.experiments.documents.prefix_training import compare_masks

    # Its seeds are those of the trainings, three of them in any case.
    compare_masks(**settings.into("prefix_training"))


def _nothing(_: Settings) -> None:
    """Run nothing, for a figure that is drawn without results."""


@dataclass(frozen=True)
class StandaloneFigure:
    """A figure that brings its own models, or needs none.

    Attributes:
        run: makes its results.
        costly: whether models are trained or fetched for it, which takes minutes to hours, so that
            it is run only when it is named.
        pretrained: whether its models are pretrained ones, whose dtype can be chosen.
    """

    run: Callable[[Settings], None]
    costly: bool = False
    pretrained: bool = False


STANDALONE_FIGURES: Mapping[str, StandaloneFigure] = {
    "mask_gallery": StandaloneFigure(_nothing),
    "world_circuit": StandaloneFigure(_world_circuit),
    "emergence": StandaloneFigure(_emergence, costly=True),
    "coverage": StandaloneFigure(_coverage, costly=True),
    "data_needed": StandaloneFigure(_data_needed, costly=True),
    "identity_bridge": StandaloneFigure(_identity_bridge, costly=True),
    "search_graph": StandaloneFigure(_search_graph),
    "superposition": StandaloneFigure(_superposition, costly=True),
    "thoughts_ahead": StandaloneFigure(_thoughts_ahead),
    "head_classes": StandaloneFigure(_head_classes, costly=True, pretrained=True),
    "size_ladder": StandaloneFigure(_size_ladder, costly=True, pretrained=True),
    "more_hops": StandaloneFigure(_more_hops, costly=True, pretrained=True),
    "auto_patching": StandaloneFigure(_auto_patching, costly=True),
    "back_attention": StandaloneFigure(_back_attention, costly=True),
    "prefix_training": StandaloneFigure(_prefix_training, costly=True),
}
"""The figures that take no model and no queries, and how their results are made."""


def check_options(names: Sequence[str], *, chat: bool, precision: Sequence[str]) -> None:
    """Check that figures are not asked for what their own models cannot be.

    Args:
        names: of figures that were named.
        chat: whether queries are to be asked in a chat.
        precision: the dtype and the quantization that models are to have.

    Raises:
        UsageError: if one of them brings models that cannot.
    """
    for name in names:
        figure = STANDALONE_FIGURES.get(name)
        if figure is None:
            continue
        refused = [*(["--chat"] if chat else []), *([] if figure.pretrained else precision)]
        if refused:
            raise UsageError(
                f"the figure {name} takes no model of yours, and no {' or '.join(refused)}: draw "
                "it in a call of its own, without"
            )


def draw_standalone(
    names: Sequence[str], settings: Settings, scripts: Path, rendered: Path, *, costly: bool
) -> list[Path]:
    """Run and draw those of some figures that take no model.

    Args:
        names: of figures.
        settings: how their results are made.
        scripts: folder of the scripts.
        rendered: where pictures and numbers go.
        costly: whether those are run, too, for which models are trained or fetched.

    Returns:
        The files that were written.
    """
    drawn: list[Path] = []
    for name, figure in STANDALONE_FIGURES.items():
        if name in names and (costly or not figure.costly):
            figure.run(settings)
            drawn += draw_figures(scripts, [name], settings.folder, rendered)
    return drawn
