"""Provides data_needed(): how many examples a composition takes, by the size of its tables.

The Coverage Principle (Chang et al. 2025), section 5: the examples that a transformer needs grow as
a power of the number of tokens, with an exponent above 2 that is larger for longer compositions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Unpack, get_args

import numpy as np
import pandas as pd
import torch
from scipy import stats

from hopscope.errors import UsageError, as_list
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis
from hopscope.experiments.arguments import Device, InstanceOf, NumbersEach, OneOf, WholeNumbers
from hopscope.experiments.worlds.trainings import Trainings, of_training, run_trainings
from hopscope.results.references import references
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.statistics import Exponent
from hopscope.training.settings import Schedule
from hopscope.worlds.catalogue import COVERED, WORLDS
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.composed_tables import ComposedTables, Structure
from hopscope.worlds.world import World

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEARNED = 0.5
SHAPE = WORLDS["coverage"].shape
SCHEDULE = replace(COVERED, steps=2000, batch_size=1024)


@dataclass(frozen=True, repr=False)
class DataNeeded(Result):
    """What models with more and more examples of tables of several sizes learn.

    `frame` has one row a training: `structure`, `n_tokens`, `n_examples`, `n_inputs` (all that
    there are), `seed`, `accuracy` (on held-out inputs), `trained` (on the examples), `seconds`,
    `device`.
    `details` has the same rows by name.
    """

    kind: ClassVar[str] = "data_needed"

    def needed(self, learned: float = LEARNED) -> pd.DataFrame:
        """The number of examples at which held-out accuracy passes a value.

        It lies between two numbers that were tried, and is interpolated between them, in the
        logarithm of the number. A size whose accuracy never passes, or always, has NaN.

        Args:
            learned: the accuracy, averaged over seeds.

        Returns:
            Columns n_tokens, examples, below, above (the numbers tried on both sides).
        """
        means = self.frame.groupby(["n_tokens", "n_examples"])["accuracy"].mean()
        rows = [
            (size, *_crossing(own.droplevel(0), learned)) for size, own in means.groupby(level=0)
        ]
        return pd.DataFrame(rows, columns=["n_tokens", "examples", "below", "above"])

    def exponent(self, learned: float = LEARNED) -> Exponent:
        """The power of the number of tokens with which the examples that are needed grow.

        Raises:
            UsageError: if fewer than two sizes pass the accuracy within what was tried.
        """
        table = self.needed(learned).dropna()
        if len(table) < 2:
            raise UsageError(
                f"only {len(table)} sizes pass {learned:.0%} within the numbers of examples tried; "
                "try others"
            )
        fit = stats.linregress(np.log(table["n_tokens"]), np.log(table["examples"]))
        free = len(table) - 2
        half = stats.t.ppf(0.975, free) * fit.stderr if free else float("nan")
        published = references("data_needed").set_index("setting")["value"]
        return Exponent(
            value=float(fit.slope),
            low=float(fit.slope - half),
            high=float(fit.slope + half),
            factor=float(np.exp(fit.intercept)),
            published=published.get(str(self.frame["structure"].iloc[0])),
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"needed": self.needed()}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the examples that are needed against the number of tokens."""
        from hopscope.experiments.worlds import coverage_plots

        return coverage_plots.needed_points(self.needed(), self.exponent(), ax)


def _crossing(accuracy: pd.Series, learned: float) -> tuple[float, float, float]:
    """Where a curve passes a value first: there, and the numbers tried before and after."""
    unknown = float("nan")
    tried, values = accuracy.index.to_numpy(dtype=float), accuracy.to_numpy(dtype=float)
    passing = np.flatnonzero(values >= learned)
    if not len(passing) or passing[0] == 0:
        return unknown, unknown, unknown
    above = int(passing[0])
    x, y = np.log(tried[above - 1 : above + 1]), values[above - 1 : above + 1]
    at = float(np.exp(np.interp(learned, y, x)))
    return at, float(tried[above - 1]), float(tried[above])


def examples_to_try(
    n_tokens: int, factors: Sequence[float] = (0.5, 0.7, 1.0, 1.4), exponent: float = 2.3
) -> list[int]:
    """Numbers of examples around those that a table of so many tokens may need.

    They bracket 4,000 for 20 tokens, scaled to other sizes by an exponent. A size that needs more
    or fewer than are tried has no number.
    """
    return [round(4000 * (n_tokens / 20) ** exponent * factor) for factor in factors]


@analysis(
    None,
    title="Data needed to compose",
    question="How much data does a composition take?",
    source="Coverage Principle, Chang et al. 2025",
    control="the published exponent",
    asks="models",
    order=340,
    keywords=("progress", "out", "shard"),
    accepts={
        "sizes": WholeNumbers(1),
        "structure": OneOf(get_args(Structure)),
        "seeds": WholeNumbers(),
        "examples": NumbersEach(),
        "shape": InstanceOf(Shape),
        "schedule": InstanceOf(Schedule),
        "device": Device(),
    },
)
def data_needed(
    sizes: Sequence[int] = (14, 18, 23, 30),
    structure: Structure = "two_hop",
    seeds: Sequence[int] = (0,),
    *,
    examples: Sequence[Sequence[int]] | None = None,
    shape: Shape = SHAPE,
    schedule: Schedule = SCHEDULE,
    device: str | torch.device | None = None,
    **run: Unpack[RunKeywords],
) -> DataNeeded:
    """Train a model for each size and number of examples, and measure what it composes.

    All are trained for as many steps, so that larger sets of examples are seen less often. Where
    that is not enough for the largest, the exponent comes out too large.

    Args:
        sizes: numbers of tokens of the tables.
        structure: of the composition.
        seeds: of the tables, examples and weights.
        examples: for each size the numbers to try; those of `examples_to_try` by default.
        shape: of the models.
        schedule: of each training, the same for all.
        device: where to train; CUDA by default if there is any.

    Raises:
        UsageError: for numbers that are no task's, or that do not go with the sizes.

    Example:
        >>> result = data_needed(sizes=(14, 18, 23), out="runs/data_needed")  # doctest: +SKIP
        >>> result.exponent()                                                 # doctest: +SKIP
    """
    options = RunOptions(**run)
    sizes, seeds = as_list(sizes, int), as_list(seeds, int)
    if examples is None:
        examples = [examples_to_try(size) for size in sizes]
    if not sizes or len(examples) != len(sizes):
        raise UsageError(f"give numbers of examples for each of {len(sizes)} sizes")
    tasks = [
        ComposedTables(structure, size, n, seed)
        for size, numbers in zip(sizes, examples, strict=True)
        for n in numbers
        for seed in seeds
    ]
    if not tasks:
        raise UsageError("give at least one size, number of examples and seed")
    return run_trainings(
        DataNeeded, Trainings(tasks, "tables"), _name, _tables, shape, schedule, device, options
    )


def _name(task: ComposedTables) -> str:
    """What the world of a task is called."""
    return f"{task.structure}-{task.n_tokens}-{task.n_examples}-{task.seed}"


def _tables(task: ComposedTables, world: World) -> Tables:
    """The tables of one training."""
    row = {
        "structure": task.structure,
        "n_tokens": task.n_tokens,
        "n_examples": task.n_examples,
        "n_inputs": len(task.inputs),
        "seed": task.seed,
        "accuracy": world.accuracy["in_distribution"],
        "trained": world.accuracy["trained"],
        **of_training(world),
    }
    return {"frame": pd.DataFrame([row]), "details": pd.DataFrame([{"query": world.name, **row}])}
