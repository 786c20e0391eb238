"""Provides identity_bridge(): whether zero-hop facts help a world to compose what it never did.

Identity Bridge (Lin et al. 2025): with the identity of each entity among the training facts, small
models compose two hops out of distribution, which they otherwise fail to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, ClassVar, Unpack, get_args

import pandas as pd
import torch

from hopscope.errors import UsageError, as_list
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis
from hopscope.experiments.arguments import Device, InstanceOf, WholeNumbers
from hopscope.experiments.worlds.trainings import Trainings, of_training, run_trainings
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import points, with_interval
from hopscope.statistics import DIFFERENCE, SHARE, t_interval, t_intervals
from hopscope.training.settings import Schedule
from hopscope.worlds.catalogue import WORLDS
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.two_hop_facts import TwoHopFacts, ZeroHop
from hopscope.worlds.world import World

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHAPE, SCHEDULE = WORLDS["two-hop"].shape, WORLDS["two-hop"].schedule
FACTS = TwoHopFacts()
ARMS: tuple[ZeroHop, ...] = get_args(ZeroHop)
COMPARED: tuple[tuple[ZeroHop, ZeroHop], ...] = (
    ("identity", "none"),
    ("identity", "shuffled"),
    ("shuffled", "none"),
)
SPLITS = {
    "in_distribution": "held out",
    "first_hop_ood": "whose first hop was never composed",
    "second_hop_ood": "whose second hop was never composed",
}


@dataclass(frozen=True, repr=False)
class IdentityBridge(Result):
    """What worlds answer that were trained with zero-hop facts of some kind, or without.

    `frame` has one row a training and split: `zero_hop` (as in `TwoHopFacts`; `shuffled` is the
    control), `seed`, `split` (`zero_hop`, `atoms`, `trained` and those of the task), `n` (of
    examples), `accuracy`, `seconds` (of the training), `device`. All trainings of a seed have the
    same facts, first weights and number of steps. `details` has one row a training.
    """

    kind: ClassVar[str] = "identity_bridge"

    def summary(self) -> pd.DataFrame:
        """The mean accuracy over seeds.

        Returns:
            Columns zero_hop, split, n_seeds, n (examples of all seeds), accuracy, low, high (95 % t
            interval over seeds, cut to [0, 1]).
        """
        return t_intervals(self.frame, ["zero_hop", "split"], "accuracy", SHARE)

    def gains(self) -> pd.DataFrame:
        """What one kind of zero-hop facts gains over another, or over none, paired by seed.

        Returns:
            Columns split, zero_hop, minus, n_seeds, difference, low, high (95 % t interval over
            seeds).
        """
        table = self.frame.pivot(index="seed", columns=["split", "zero_hop"], values="accuracy")
        # A part of a run lacks some.
        table = table.reindex(columns=pd.MultiIndex.from_product([SPLITS, ARMS]))
        rows = []
        for split, (one, other) in product(SPLITS, COMPARED):
            differences = (table[split, one] - table[split, other]).dropna().to_numpy()
            mean = t_interval(differences, DIFFERENCE)
            rows.append((split, one, other, len(differences), *mean))
        columns = ["split", "zero_hop", "minus", "n_seeds", "difference", "low", "high"]
        return pd.DataFrame(rows, columns=columns)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary(), "gains": self.gains()}

    def findings(self) -> list[str]:
        """What identities gain over no zero-hop facts, and over shuffled ones."""
        gains, summary = self.gains(), self.summary()
        gains = gains[gains["zero_hop"] == "identity"]
        reached = summary[summary["zero_hop"] == "identity"].set_index("split")
        told = []
        for split, row in reached.reindex(list(SPLITS)).iterrows():
            share = with_interval(row["accuracy"], row["low"], row["high"])
            rows = gains.loc[gains["split"] == split, ["difference", "low", "high"]]
            over_none, over_shuffled = (points(*row) for row in rows.to_numpy().tolist())
            told.append(
                f"With identities {share} of the compositions {SPLITS[str(split)]} are "
                f"right: {over_none} over none, and {over_shuffled} over shuffled ones."
            )
        return told

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the accuracy of each split, a bar a kind of zero-hop facts and a dot a seed."""
        from hopscope.experiments.worlds.identity_plots import zero_hop_bars

        return zero_hop_bars(self.summary(), self.frame, ax)


@analysis(
    None,
    title="Identity bridge",
    question="Do zero-hop facts help to compose what was never composed?",
    source="Identity Bridge, Lin et al. 2025",
    control="zero-hop facts that lead to another entity",
    asks="models",
    order=345,
    keywords=("progress", "out", "shard"),
    accepts={
        "seeds": WholeNumbers(),
        "facts": InstanceOf(TwoHopFacts),
        "shape": InstanceOf(Shape),
        "schedule": InstanceOf(Schedule),
        "device": Device(),
    },
)
def identity_bridge(
    seeds: Sequence[int] = (0, 1, 2),
    *,
    facts: TwoHopFacts = FACTS,
    shape: Shape = SHAPE,
    schedule: Schedule = SCHEDULE,
    device: str | torch.device | None = None,
    **run: Unpack[RunKeywords],
) -> IdentityBridge:
    """Train worlds without zero-hop facts, with identities, and with shuffled ones as a control.

    Zero-hop facts are drawn as often as atomic facts, and all trainings have as many steps, so that
    identities and shuffled facts take the same share of the examples.

    Args:
        seeds: of the facts and weights; one training for each kind of zero-hop facts.
        facts: sizes of the task; its own seed and kind of zero-hop facts do not matter.
        shape: of the models.
        schedule: of each training, the same for all.
        device: where to train; CUDA by default if there is any.

    Raises:
        UsageError: if there are no seeds, or one of them leaves a split of the facts empty.

    Example:
        >>> result = identity_bridge(out="runs/identity_bridge")  # doctest: +SKIP
        >>> result.gains()                                        # doctest: +SKIP
    """
    options = RunOptions(**run)
    seeds = as_list(seeds, int)
    if not seeds:
        raise UsageError("give at least one seed")
    tasks = [replace(facts, seed=seed, zero_hop=arm) for seed in seeds for arm in ARMS]
    trainings = Trainings(tasks, "two-hop facts")
    return run_trainings(
        IdentityBridge, trainings, _name, _tables, shape, schedule, device, options
    )


def _name(task: TwoHopFacts) -> str:
    """What the world of a task is called."""
    return f"two-hop-{task.zero_hop}-{task.seed}"


def _tables(task: TwoHopFacts, world: World) -> Tables:
    """The tables of one training."""
    known = {"zero_hop": task.zero_hop, "seed": task.seed, **of_training(world)}
    rows = [
        {**known, "split": split, "n": len(examples), "accuracy": world.accuracy[split]}
        for split, examples in task.tests().items()
    ]
    return {"frame": pd.DataFrame(rows), "details": pd.DataFrame([{"query": world.name, **known}])}
