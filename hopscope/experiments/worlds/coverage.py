"""Provides coverage(): when inputs are learned, by how well the examples cover them.

The Coverage Principle (Chang et al. 2025): inputs with a higher k-cutoff are learned earlier, and
states of the same bridge come to point the same way (IICG) as they are; where the second token
takes a way of its own to the answer, they do so by bridge and second token instead. States at that
token share it, so that a gap by both is there before anything is learned; here the gap by bridge
among states of the same token is measured, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hopscope.errors import UsageError, one_of
from hopscope.experiments.analysis import analysis
from hopscope.experiments.arguments import Flag, InstanceOf
from hopscope.experiments.worlds.coverage_cutoffs import cutoffs
from hopscope.probes import iicg
from hopscope.prompting.capture import capture
from hopscope.results.result import Result
from hopscope.results.run_record import provenance
from hopscope.statistics import intervals
from hopscope.worlds.tasks.composed_tables import ComposedTables
from hopscope.worlds.train import answered
from hopscope.worlds.world import World

GROUPINGS = ("bridge", "bridge and x2", "bridge among equal x2")


@dataclass(frozen=True, repr=False)
class Coverage(Result):
    """How a world answers held-out inputs of each cutoff, and what its states are grouped by.

    `frame` has one row for each thing that was measured: `measure, cutoff, grouping, position,
    layer, value, n`. `accuracy`: the share of right answers among held-out inputs of a cutoff.
    `iicg`: the intra-inter cosine gap at a place (0 is x1) after a block, with states grouped by
    one of `GROUPINGS` (`among equal x2`: only pairs that share x2 are compared), over all held-out
    inputs (`cutoff` is -1) or those of a cutoff; n is the number of states. `details` has one row a
    held-out input: its cutoff, bridge, answer, and whether it was right.
    """

    kind: ClassVar[str] = "coverage"
    added_settings: ClassVar = {"same_answer": False}

    def accuracy(self, seed: int = 0) -> pd.DataFrame:
        """The share of right answers by cutoff.

        Returns:
            Columns cutoff, n, accuracy, low, high: Wilson 95 % intervals over inputs.
        """
        table = self.details.sort_values("cutoff", kind="stable")
        return intervals(table, ["cutoff"], "right", "accuracy", seed)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"accuracy": self.accuracy(), "iicg": self.iicg().reset_index()}

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {"accuracy": self.accuracy(seed)}

    def iicg(self, grouping: str = "bridge") -> pd.DataFrame:
        """The gap over all held-out inputs; rows layers, columns places.

        Args:
            grouping: one of `GROUPINGS`.

        Raises:
            UsageError: for another.
        """
        one_of("grouping", grouping, GROUPINGS)
        chosen = self.frame.query("measure == 'iicg' and cutoff == -1 and grouping == @grouping")
        return chosen.pivot_table(index="layer", columns="position", values="value")


@analysis(
    None,
    title="Coverage",
    question="Are inputs that the examples cover better learned earlier?",
    source="Coverage Principle, Chang et al. 2025",
    control="inputs that are not covered; states with the same second token",
    asks="models",
    order=330,
    keywords=(),
    accepts={"world": InstanceOf(World), "progress": Flag(), "same_answer": Flag()},
)
def coverage(world: World, progress: bool = False, same_answer: bool = False) -> Coverage:
    """Measure accuracy and IICG by the cutoffs of a world's held-out inputs.

    Args:
        world: one whose task is `ComposedTables`.
        progress: show a progress bar.
        same_answer: let substitutions join inputs of the same answer only, as the authors' code
            does; see `hopscope.experiments.worlds.coverage_cutoffs`.

    Raises:
        UsageError: for a world of another task.

    Example:
        >>> coverage(load_world("coverage")).accuracy()       # doctest: +SKIP
        >>> over_checkpoints("worlds/coverage", coverage)     # doctest: +SKIP
    """
    task, model = world.task, world.model
    if not isinstance(task, ComposedTables):
        raise UsageError(f"{world.name} composes no tables; take a world such as 'coverage'")
    held_out, queries = task.held_out, world.queries()
    cutoff = cutoffs(task.inputs, task.answers, task.examples, same_answer)[held_out]
    right = answered(model, task.written(held_out)).numpy()
    texts = [query.compose()[0] for query in queries]
    places = range(task.n_places)
    states = capture(model, texts, positions=places, progress=progress, batch_size=512)
    bridges, second = task.bridges[held_out], task.inputs[held_out, 1]
    grouped = ((bridges,), (bridges * task.n_tokens + second,), (bridges, second))
    frames = [_accuracy(cutoff, right)]
    for k in (-1, *np.unique(cutoff).tolist()):
        chosen = (cutoff == k) | (k < 0)
        own = states["resid_post"][torch.as_tensor(chosen, device=model.device)]
        for grouping, labels in zip(GROUPINGS, grouped, strict=True):
            gap = _gaps(own, *(each[chosen] for each in labels))
            frames.append(gap.assign(cutoff=k, grouping=grouping, n=int(chosen.sum())))
    details = pd.DataFrame(
        {
            "query": [query.id for query in queries],
            "prompt": texts,
            "cutoff": cutoff,
            "bridge": [query.label("e2") for query in queries],
            "answer": [query.label("e3") for query in queries],
            "right": right,
        }
    )
    columns = ["measure", "cutoff", "grouping", "position", "layer", "value", "n"]
    frame = pd.concat(frames, ignore_index=True).reindex(columns=columns)
    settings = {"world": world.record["recipe"], "same_answer": same_answer}
    run = provenance(model, queries, Coverage.kind, settings)
    return Coverage.of({"frame": frame, "details": details}, run)


def _accuracy(cutoff: np.ndarray, right: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame({"cutoff": cutoff, "right": right})
    grouped = table.groupby("cutoff", as_index=False)
    return grouped.agg(value=("right", "mean"), n=("right", "size")).assign(
        measure="accuracy", grouping="none", position=-1, layer=-1
    )


def _gaps(states: Tensor, *labels: np.ndarray) -> pd.DataFrame:
    """The IICG of states (input, place, layer, d_model), a row a place and layer.

    Args:
        states: of the inputs.
        labels: their groups and, perhaps, what they are compared among.
    """
    gap = iicg(states, *(torch.as_tensor(each, device=states.device) for each in labels)).cpu()
    place, layer = torch.meshgrid(*map(torch.arange, gap.shape), indexing="ij")
    table = {"position": place.flatten(), "layer": layer.flatten(), "value": gap.flatten()}
    return pd.DataFrame({name: each.numpy() for name, each in table.items()}).assign(measure="iicg")
