"""Provides over_checkpoints(): any analysis, on the weights of every kept step of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hopscope.errors import ResultError, UsageError
from hopscope.experiments.analysis import RunKeywords, RunOptions, run_numbered
from hopscope.experiments.analysis import analysis as register
from hopscope.experiments.arguments import Device, Folder, InstanceOf, WholeNumbers
from hopscope.models.load import load_model
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.training.fit import snapshot_path
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.small_model import learn, untied, untrained
from hopscope.worlds.world import World, read_world

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Emergence(Result):
    """An analysis over the steps of a training.

    `frame` is the analysis's own, with a first column `step` (of the optimizer; 0 is before the
    first). `details` are those of the last step.
    """

    kind: ClassVar[str] = "emergence"

    def curves(self, value: str, by: str | Sequence[str] = ()) -> pd.DataFrame:
        """The mean of a column at each step.

        Args:
            value: the column.
            by: columns that tell curves apart.

        Returns:
            Columns step, those of `by`, `value`, n (rows).

        Raises:
            UsageError: for a column that is not there.
        """
        keys = [by] if isinstance(by, str) else list(by)
        self._check(value, *keys)
        grouped = self.frame.groupby(["step", *keys], sort=False, dropna=False, as_index=False)
        table = grouped.agg(**{value: (value, "mean"), "n": (value, "size")})
        return table.astype({value: float})

    def film(self, value: str, rows: str, columns: str) -> dict[int, pd.DataFrame]:
        """At each step a table of the mean of a column.

        Args:
            value: the column, such as `hit`.
            rows: what the rows are, such as `target_layer`.
            columns: what the columns are, such as `source_layer`.

        Raises:
            UsageError: for a column that is not there.
        """
        self._check(value, rows, columns)
        how = {"index": rows, "columns": columns, "values": value, "aggfunc": "mean"}
        steps = sorted(self.frame["step"].unique().tolist())
        return {step: self.frame[self.frame["step"] == step].pivot_table(**how) for step in steps}

    def plot(self, value: str, by: str | Sequence[str] = (), ax: Axes | None = None) -> Axes:
        """Draw the curves of a column."""
        from hopscope.experiments.worlds import emergence_plots

        return emergence_plots.curves(self.curves(value, by), value, ax)

    def plot_film(self, value: str, rows: str, columns: str, most: int = 6) -> Figure:
        """Draw the tables of a column side by side, at most so many steps."""
        from hopscope.experiments.worlds import emergence_plots

        return emergence_plots.film_strip(self.film(value, rows, columns), value, most)

    def _check(self, *columns: str) -> None:
        unknown = [each for each in columns if each not in self.frame]
        if unknown:
            raise UsageError(
                f"no column {unknown[0]!r}: the frame has {', '.join(map(str, self.frame))}"
            )


def kept_steps(folder: str | Path) -> list[int]:
    """The steps whose weights a training has kept."""
    found = Path(folder).glob(snapshot_path(Path(), 0).name.replace("000000", "*"))
    return sorted(int(path.stem.removeprefix("step-")) for path in found)


def world_at(folder: str | Path, step: int, *, device: str | torch.device | None = None) -> World:
    """A world with the weights that its model had after so many steps.

    Args:
        folder: of a world that was trained with snapshots.
        step: one of `kept_steps(folder)`.
        device: where the model goes; CUDA by default if there is any.

    Raises:
        UsageError: for a folder that holds no finished world, or a step that was not kept.
    """
    world = read_world(Path(folder), device)
    path = snapshot_path(Path(folder), step)
    if not path.is_file():
        steps = ", ".join(map(str, kept_steps(folder))) or "none"
        raise UsageError(
            f"{folder} has not kept step {step}; it has {steps}. Train with snapshots= "
            "(`hopscope worlds train --snapshots N`)"
        )
    recipe = Recipe.from_json(world.record["recipe"])
    name = f"{world.model.name} step {step}"
    model = untrained(recipe.task.words, recipe.shape, world.seed, name)
    learn(model.hf, recipe.shape)
    with torch.no_grad():
        for parameter, kept in _kept_weights(model.hf, path):
            parameter.copy_(kept)
    where = world.model.device
    placed = load_model(untied(model.hf), where, tokenizer=model.tokenizer, name=name)
    return replace(world, model=placed)


def _kept_weights(hf: nn.Module, path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """The parameters of a model that are trained, each once, beside what a snapshot has for them.

    Raises:
        ResultError: if the snapshot is damaged or of other parameters.
    """
    try:
        kept = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ResultError(f"{path} is damaged: {error}") from error
    own = {name: each for name, each in hf.named_parameters() if each.requires_grad}
    if {name: each.shape for name, each in own.items()} != {n: k.shape for n, k in kept.items()}:
        raise ResultError(f"{path} has the weights of another model")
    yield from ((own[name], kept[name]) for name in own)


@register(
    None,
    title="Emergence",
    question="When in its training does a model learn what an analysis measures?",
    source="Wang et al. 2024",
    control="the controls of the analysis",
    asks="models",
    order=350,
    keywords=("progress", "out"),
    accepts={
        "folder": Folder(optional=False),
        "analysis": InstanceOf(Callable),  # type: ignore[arg-type]
        "steps": WholeNumbers(optional=True),
        "device": Device(),
    },
)
def over_checkpoints(
    folder: str | Path,
    analysis: Callable[[World], Result],
    steps: Sequence[int] | None = None,
    *,
    device: str | torch.device | None = None,
    **run: Unpack[RunKeywords],
) -> Emergence:
    """Run an analysis on the weights of every kept step.

    Args:
        folder: of a world that was trained with snapshots.
        analysis: what is run on the world as it was at a step.
        steps: which; all that were kept by default.
        device: where the models go; CUDA by default if there is any.

    Raises:
        UsageError: for a folder without a world or snapshots, or a step that was not kept.

    Example:
        >>> def patched(world):
        ...     wrong = world.queries("first_hop_ood").sample(50)
        ...     return back_patch(world.model, wrong, ("t1",), progress=False)
        >>> result = over_checkpoints("worlds/looped", patched)              # doctest: +SKIP
        >>> result.plot_film("hit", "target_layer", "source_layer")          # doctest: +SKIP
    """
    options = RunOptions(**run)
    steps = kept_steps(folder) if steps is None else list(steps)
    if not steps:
        raise UsageError(
            f"{folder} has kept no step: train with snapshots= "
            "(`hopscope worlds train --snapshots N`)"
        )
    last = analysis(world_at(folder, steps[-1], device=device))

    def compute(number: int) -> Tables:
        step, final = steps[number], number == len(steps) - 1
        result = last if final else analysis(world_at(folder, step, device=device))
        frame = result.frame.copy()
        frame.insert(0, "step", step)
        return {"frame": frame, "details": last.details if final else last.details.iloc[:0]}

    record = _run_of(last, steps)
    return run_numbered(Emergence, len(steps), compute, record, options, unit="step")


def _run_of(last: Result, steps: Sequence[int]) -> dict[str, Any]:
    settings = {"analysis": last.kind, "steps": list(steps), **last.run.get("settings", {})}
    return {**last.run, "kind": Emergence.kind, "settings": settings}
