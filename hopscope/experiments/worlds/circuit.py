"""Provides circuit(): what the analyses read off worlds, where the truth is known.

A model that composes must resolve the bridge at r1 and hand it on to r2. So knocking out r2 -> r1
must bite late; a fact that composes too late, since its first hop was never composed in training,
must be repaired by back-patching r1; one whose second hop was not must stay wrong; and a model
that has only memorised must show none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import pandas as pd
import torch

from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_numbered
from hopscope.experiments.arguments import AtLeast, SeveralOf
from hopscope.experiments.two_hop.attention_knockout import knockout
from hopscope.experiments.two_hop.back_patching import back_patch
from hopscope.experiments.two_hop.projection import project
from hopscope.interrupts import interrupt_safe
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.run_record import provenance
from hopscope.statistics import SHARE, t_intervals
from hopscope.worlds.train import accuracy
from hopscope.worlds.world import World, check_distinct

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATCHED = ("first_hop_ood", "second_hop_ood")
READ = ("in_distribution", "first_hop_ood")
EDGES = ("t2->t1", "t2->e1")
KEYS = ["world", "measure", "split", "control", "layer"]
COLUMNS = ["world", "seed", "measure", "split", "control", "layer", "value", "n"]


@dataclass(frozen=True, repr=False)
class Circuit(Result):
    """What was read off each world.

    `frame` has one row a world, seed and what was measured: `world, seed, measure, split, control,
    layer, value, n` (questions). The measures:

    - `accuracy`: share of a whole split that is right, with the end after the answer; all others
      look at the likeliest next token alone.
    - `patched`: share of half of a split that is right when the state at r1 is back-patched in the
      one cell that did best on the other half; `control` is `clean` (nothing is patched), `none`
      (the question's own state), `other`, `random`.
    - `any_cell`: share of the wrong ones that some cell repairs, by control.
    - `knockout`: share of in-distribution questions, right before, that stay right without an edge
      in one block; `control` is the edge.
    - `bridge`: mean reciprocal rank of the bridge at r1 after a block, by the logit lens.

    `details` has one row a question that was asked.
    """

    kind: ClassVar[str] = "circuit"

    def summary(self) -> pd.DataFrame:
        """The mean of each measure over seeds, with its 95 % t interval over them.

        Returns:
            Columns world, measure, split, control, layer, n_seeds, n (questions of all seeds),
            value, low, high. The interval is cut to [0, 1], as all measures are.
        """
        return t_intervals(self.frame, KEYS, "value", SHARE)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary()}

    def plot(self) -> Figure:
        """Draw the four measures side by side."""
        from hopscope.experiments.worlds import circuit_plots

        return circuit_plots.circuit_figure(self.frame)


@analysis(
    None,
    name="world_circuit",
    title="Circuits of worlds",
    question="Do the instruments read a known circuit correctly?",
    source="Grokked Transformers, Wang et al. 2024",
    control="a model that has only memorised; other and random states",
    asks="models",
    order=310,
    keywords=("seed", "progress", "out"),
    accepts={"worlds": SeveralOf(World), "limit": AtLeast(2)},
)
def circuit(
    worlds: Sequence[World],
    limit: int = 150,
    **run: Unpack[RunKeywords],
) -> Circuit:
    """Run accuracy, back-patching with controls, knock-out and the logit lens on worlds.

    torch computes in one thread meanwhile, as is faster with few questions to models this small.

    Args:
        worlds: whose task asks two-hop queries; several seeds of each, for intervals.
        limit: questions of a split for all but accuracy; half of them choose the cell.

    Raises:
        UsageError: for no world, a repeated one, one that asks no two-hop queries, or a limit
            below 2.

    Example:
        >>> worlds = [load_world("two-hop-looped", seed) for seed in range(3)]  # doctest: +SKIP
        >>> circuit(worlds).summary()                                          # doctest: +SKIP
    """
    options = RunOptions(**run)
    worlds = check_distinct(worlds)
    sampled = [_sampled(world, limit, options.seed) for world in worlds]
    everything = QuerySet(tuple(_renamed(worlds, sampled)), "worlds")
    settings = {
        "worlds": [[world.name, world.seed, world.model.fingerprint] for world in worlds],
        "limit": limit,
        "seed": options.seed,
    }
    first, *others = [world.model for world in worlds]
    record = provenance(first, everything, Circuit.kind, settings, others)

    def compute(number: int) -> Tables:
        with _one_thread():
            return _tables(worlds[number], sampled[number], options.seed)

    return run_numbered(Circuit, len(worlds), compute, record, options, unit="world")


@interrupt_safe
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread while the context is open."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sampled(world: World, limit: int, seed: int) -> dict[str, QuerySet]:
    splits = {split: world.queries(split) for split in dict.fromkeys((*READ, *PATCHED))}
    return {split: each.sample(min(limit, len(each)), seed) for split, each in splits.items()}


def _renamed(worlds: Sequence[World], sampled: Sequence[dict[str, QuerySet]]) -> Iterator[Any]:
    """All questions, with ids that tell worlds apart."""
    for world, splits in zip(worlds, sampled, strict=True):
        for split, queries in splits.items():
            for query in queries:
                yield replace(query, id=_id(world, split, query.id))


def _id(world: World, split: str, query: str) -> str:
    return f"{world.name}@{world.seed}.{split}.{query}"


def _tables(world: World, sampled: dict[str, QuerySet], seed: int) -> Tables:
    """What one world shows."""
    frames = [_accuracy(world)]
    frames += [_patched(world, sampled[split], split, seed) for split in PATCHED]
    frames.append(_knocked_out(world, sampled["in_distribution"]))
    frames += [_bridge(world, sampled[split], split) for split in READ]
    frame = pd.concat(frames, ignore_index=True).assign(world=world.name, seed=world.seed)
    details = pd.DataFrame(
        {
            "query": _id(world, split, query.id),
            "world": world.name,
            "seed": world.seed,
            "split": split,
            "prompt": query.compose()[0],
            "bridge": query.label("e2"),
            "answer": query.label("e3"),
        }
        for split, queries in sampled.items()
        for query in queries
    )
    return {"frame": frame.reindex(columns=COLUMNS), "details": details}


def _accuracy(world: World) -> pd.DataFrame:
    tests = world.task.tests()
    rows = [
        {"measure": "accuracy", "split": split, "value": value, "n": len(tests[split])}
        for split, value in accuracy(world.model, world.task).items()
    ]
    return pd.DataFrame(rows).assign(control="none", layer=-1)


def _patched(world: World, queries: QuerySet, split: str, seed: int) -> pd.DataFrame:
    result = back_patch(
        world.model, queries, ("t1",), criterion="first_token", seed=seed, progress=False
    )
    cell = result.best_cell(seed=seed)
    frame, clean = result.frame, result.details.set_index("query")["clean_hit"]
    scored = frame[~frame["query"].isin(result.choosing_half(seed))]
    there = scored["source_layer"].eq(cell.source_layer) & scored["target_layer"].eq(
        cell.target_layer
    )
    shares = {"clean": clean[scored["query"].unique()]} | {
        control: rows["hit"] for control, rows in scored[there].groupby("control", sort=False)
    }
    wrong = result.repaired().query("query in @clean[~@clean].index")
    rows = [("patched", name, each.mean(), len(each)) for name, each in shares.items()]
    rows += [
        ("any_cell", name, each.mean(), len(each))
        for name, each in wrong.groupby("control", sort=False)["hit"]
    ]
    table = pd.DataFrame(rows, columns=["measure", "control", "value", "n"])
    return table.assign(split=split, layer=-1)


def _knocked_out(world: World, queries: QuerySet) -> pd.DataFrame:
    """Of the questions that are right, those that stay so; a window is one block."""
    result = knockout(
        world.model,
        queries,
        EDGES,
        controls=(),
        window=0,
        criterion="first_token",
        progress=False,
    )
    right = result.details.query("clean_rank == 0")["query"].unique()
    kept = result.frame[result.frame["query"].isin(right)]
    table = kept.groupby(["edge", "layer"], sort=False, as_index=False).agg(
        value=("hit", "mean"), n=("hit", "size")
    )
    table = table.rename(columns={"edge": "control"})
    return table.assign(measure="knockout", split="in_distribution")


def _bridge(world: World, queries: QuerySet, split: str) -> pd.DataFrame:
    frame = project(world.model, queries, progress=False).frame
    own = frame.query("position == 't1' and target == 'e2' and site == 'resid_post'")
    own = own.assign(reciprocal=1 / (1 + own["rank"]))
    table = own.groupby("layer", as_index=False).agg(
        value=("reciprocal", "mean"), n=("reciprocal", "size")
    )
    return table.assign(measure="bridge", split=split, control="none")
