"""Stages: when each step of the two-hop computation first shows, and how often their order breaks.

Hopping Too Late (Biran et al. 2024), figure 1 and section 5, puts mean first layers on one axis:
the bridge is named at t1, its information leaves t1, the answer is named at t2, the prediction is
read off the MLPs. Layer-Order Inversion (2601.03542) disputes the order, so it is checked query by
query, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Unpack, get_args

import pandas as pd

from hopscope.errors import QueryError, ResultError
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis
from hopscope.experiments.arguments import Layers, OneOf, Queries, SettingsOf
from hopscope.experiments.registry import REGISTERED
from hopscope.experiments.two_hop.attention_knockout import Knockouts
from hopscope.experiments.two_hop.attention_knockout import knockout as knock_out
from hopscope.experiments.two_hop.description import Description, describe
from hopscope.experiments.two_hop.partners import relations_of
from hopscope.experiments.two_hop.projection import Projection, project
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query import POSITIONS
from hopscope.queries.query_set import QuerySet
from hopscope.results.headline import Headline
from hopscope.results.result import Result
from hopscope.results.runs import run_each
from hopscope.results.wording import (
    entity_name,
    layer_in_words,
    row_where,
    rows_where,
    with_interval,
)
from hopscope.statistics import holm, intervals, unpaired, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEAN_STAGE = "information leaves {}, mean of three"
"""What stands for the two measures of a hand-over where the paper's code is followed."""


class HandOver(NamedTuple):
    """From one hop to the next: where the bridge is described, and what takes it along.

    Attributes:
        number: of the stage in which the bridge is described; the next one is the hand-over.
        bridge: the entity, such as "e2".
        here, there: the positions, such as "t1" and "t2".
        name: of the bridge in names of stages.
    """

    number: int
    bridge: str
    here: str
    there: str
    name: str


def hand_overs(n_hops: int) -> list[HandOver]:
    """The hand-overs of n hops, one less than there are hops."""
    return [
        HandOver(2 * k - 1, f"e{k + 1}", f"t{k}", f"t{k + 1}", entity_name(f"e{k + 1}", n_hops))
        for k in range(1, n_hops)
    ]


def stages_of(n_hops: int) -> dict[str, int]:
    """The measures of the stages of n hops with their numbers, in the paper's order.

    The paper has four stages of two hops: the bridge is described at t1, its information leaves t1
    (two measures), the answer is described at t2, the prediction is read off the MLPs there. Each
    further hop has the first two of its own.
    """
    found: dict[str, int] = {}
    for number, _, here, there, name in hand_overs(n_hops):
        found[f"{name} described at {here}"] = number
        found[f"knockout {there}->{here} bites"] = number + 1
        found[f"attention at {there} projects {name}"] = number + 1
    last = f"t{n_hops}"
    found[f"answer described at {last}"] = 2 * n_hops - 1
    found[f"MLP at {last} projects prediction"] = 2 * n_hops
    return found


STAGES: Mapping[str, int] = stages_of(2)
"""The measures of the paper's four stages, in its order; two of them measure the second."""

SecondStage = Literal["apart", "mean"]
KnockoutLayer = Literal["end", "middle"]


@dataclass(frozen=True, repr=False)
class Stages(Result):
    """The first layer of each stage, for each query.

    `frame` has one row a query and stage: `query, stage, number, first_layer` (NaN if the stage
    never shows).
    """

    kind = "stages"
    added_settings: ClassVar = {"second_stage": "apart", "knockout_layer": "end"}
    columns: ClassVar = {
        "query": "str",
        "stage": "str",
        "number": "int64",
        "first_layer": "float64",
    }

    def summary(self, seed: int = 0) -> pd.DataFrame:
        """Mean first layer of each stage over the queries in which it shows.

        Returns:
            Columns `stage, number, queries, n, share, share_low, share_high, mean, low, high`: all
            queries, those in which it shows, their share with its Wilson interval; and their mean
            first layer with a bootstrap interval, NaN as in `hopscope.statistics.mean_intervals`.
        """
        keys = ["stage", "number"]
        means = intervals(self.frame, keys, "first_layer", "mean", seed)
        counts = self.frame.groupby(keys, sort=False)["query"].nunique().rename("queries")
        table = counts.reset_index().merge(means, on=keys, how="left")
        table["n"] = table["n"].fillna(0).astype(int)
        shown = self.frame.assign(shows=self.frame["first_layer"].notna())
        names = {"low": "share_low", "high": "share_high"}
        shares = intervals(shown, keys, "shows", "share", seed).rename(columns=names)
        table = table.merge(shares.drop(columns="n"), on=keys)
        share = ["share", "share_low", "share_high"]
        return table[[*keys, "queries", "n", *share, "mean", "low", "high"]]

    def broken(self) -> pd.DataFrame:
        """How often a later stage shows before an earlier one, query by query.

        Only queries in which both stages show count. An order is broken if the later stage shows
        at an earlier layer, by more than the layers that description skipped. The last row,
        `any`, counts the queries in which at least two stages show and some pair is out of order.

        Returns:
            Columns `earlier, later, n, broken, share, low, high`: Wilson 95 % intervals.
        """
        wide = self.frame.pivot_table(
            index="query", columns="stage", values="first_layer", sort=False, dropna=False
        )
        numbers = (
            self.frame.groupby("stage", sort=False)["number"].first().sort_values(kind="stable")
        )
        there = [stage for stage in numbers.index if stage in wide]
        tolerance = int(self.run.get("settings", {}).get("tolerance", 0))
        rows, any_broken = [], pd.Series(False, index=wide.index)
        paired = pd.Series(False, index=wide.index)
        for earlier, later in combinations(there, 2):
            if numbers[earlier] == numbers[later]:
                continue
            both = wide[[earlier, later]].notna().all(axis=1)
            wrong = both & (wide[earlier] > wide[later] + tolerance)
            paired, any_broken = paired | both, any_broken | wrong
            rows.append((earlier, later, int(both.sum()), int(wrong.sum())))
        rows.append(("any", "any", int(paired.sum()), int(any_broken.sum())))
        table = pd.DataFrame(rows, columns=["earlier", "later", "n", "broken"])
        shares = [wilson(broken, n) for _, _, n, broken in rows]
        return table.join(pd.DataFrame(shares, columns=["share", "low", "high"]))

    def later_than(
        self, other: Stages, queries: QuerySet | None = None, seed: int = 0
    ) -> pd.DataFrame:
        """How much later each stage first shows here than in other queries.

        Hopping Too Late (section 6) holds that compositions fail because the hops are resolved too
        late: `stages(model, graded.incorrect()).later_than(stages(model, graded.correct()))`. Only
        queries in which a stage shows count, and failing ones may compose other relations than
        right ones. With `queries`, those of the same relations are compared, which tells the two
        apart.

        Args:
            other: the result to compare with, of the same model.
            queries: of both results; compare all with all if None.
            seed: seed of the permutations (`hopscope.statistics.unpaired`).

        Returns:
            Columns `stage, number, n, n_other, mean, mean_other, difference, low, high, p, p_holm`,
            in layers. Of a stage that shows too rarely for an interval the last five are NaN.

        Raises:
            ResultError: if the two are of different models.
            QueryError: if `queries` lacks a query of either.
        """
        if self.run["model"]["sha256"] != other.run["model"]["sha256"]:
            raise ResultError("the two results are of different models: run both on one")
        relations = {} if queries is None else {each.id: relations_of(each) for each in queries}
        asked = {*self.frame["query"], *other.frame["query"]}
        if queries is not None and (missing := asked - set(relations)):
            raise QueryError(
                f"{len(missing)} queries of the results are not in the query set, such as "
                f"{min(missing)!r}: give the set that was graded"
            )
        rows = []
        for (stage, number), here in self.frame.groupby(["stage", "number"], sort=False):
            there = other.frame[other.frame["stage"] == stage]
            b, a = (each.dropna().set_index("query")["first_layer"] for each in (here, there))
            of_a, of_b = ([relations.get(query, ()) for query in each.index] for each in (a, b))
            found = unpaired(a.to_numpy(), b.to_numpy(), of_a, of_b, seed)
            rows.append({"stage": stage, "number": number, **found})
        names = {"n_b": "n", "n_a": "n_other", "mean_b": "mean", "mean_a": "mean_other"}
        columns = ["stage", "number", *names.values(), "difference", "low", "high", "p"]
        table = pd.DataFrame(rows).rename(columns=names)[columns]
        return table.assign(p_holm=holm(table["p"].to_numpy(dtype=float)))

    def tables(self) -> dict[str, pd.DataFrame]:
        return dict(self.printed())

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary(seed), "broken": self.broken()}

    def findings(self) -> list[str]:
        steps = [
            f"{row['stage'].replace('->', ' → ')} {layer_in_words(row['mean'])} ({row['n']} of "
            f"{row['queries']} queries)"
            for row in rows_where(self.summary())
            if row["n"]
        ]
        sentences = [f"mean first layers: {'; '.join(steps)}." if steps else "no stage shows."]
        some = row_where(self.broken(), earlier="any")
        if some is not None and some["n"]:
            share = with_interval(some["share"], some["low"], some["high"])
            sentences.append(
                f"Of {some['n']} queries in which two stages or more show, {share} have some pair "
                "in another order than the paper's."
            )
        return sentences

    def headline(self) -> Headline | None:
        """How often the order of the stages is broken; there is nothing to compare it with."""
        some = row_where(self.broken(), earlier="any")
        if some is None or not some["n"]:
            return None
        sentence = (
            "some stages show in another order than the paper's in "
            f"{with_interval(some['share'], some['low'], some['high'])} of {some['n']} queries"
        )
        return Headline(f"{sentence}.", "", int(some["n"]), float("nan"))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the first layers of all stages on one axis."""
        from hopscope.experiments.two_hop import plots

        return plots.stage_axis(self.frame, self.summary(), ax)


def combine(
    described: Description,
    knocked: Knockouts,
    projected: Projection,
    *,
    second_stage: SecondStage = "apart",
    knockout_layer: KnockoutLayer = "end",
) -> Stages:
    """The stages that three results of the same queries and model show.

    Args:
        described, knocked, projected: the results.
        second_stage: the measures of the second stage `apart`; or, as the paper's code has it,
            the `mean`, over those that show, of the knockout, of attention that projects e2, and
            of e2 described at t2.
        knockout_layer: a knockout bites at the `end` of the first window that changes the answer,
            or, as the paper's code has it, at its `middle`.

    Raises:
        ResultError: if they are of different models or queries.
        QueryError: if the queries do not have the ends of all phrases.
    """
    runs = (described.run, knocked.run, projected.run)
    for key in ("model", "queries"):
        if any(
            run.get(key, {}).get("sha256") != runs[0].get(key, {}).get("sha256") for run in runs
        ):
            raise ResultError(
                f"the three results are not of the same {key}: run describe, knockout and "
                "project on one model and one query set"
            )
    _check_positions(described.frame["position"], len(described.entities) - 1)
    n_hops, middle = len(described.entities) - 1, knockout_layer == "middle"
    firsts: dict[tuple[str, int], pd.Series[float]] = {}
    for number, bridge, here, there, name in hand_overs(n_hops):
        edge = f"{there}->{here}"
        bites = _bites(knocked, edge, middle)
        attends = projected.first_layers(bridge, there, "attn_out")
        firsts[f"{name} described at {here}", number] = described.first_layers(bridge, here)
        if second_stage == "mean":
            measures = [bites, attends, described.first_layers(bridge, there)]
            mean = pd.concat(measures, axis=1).mean(axis=1)
            firsts[MEAN_STAGE.format(here), number + 1] = mean
        else:
            firsts[f"knockout {edge} bites", number + 1] = bites
            firsts[f"attention at {there} projects {name}", number + 1] = attends
    last, number = f"t{n_hops}", 2 * n_hops
    said = described.first_layers(f"e{n_hops + 1}", last)
    firsts[f"answer described at {last}", number - 1] = said
    read = projected.first_layers("prediction", last, "mlp_out")
    firsts[f"MLP at {last} projects prediction", number] = read
    columns = {stage: layers for (stage, _), layers in firsts.items()}
    table = pd.DataFrame(columns).rename_axis("query")
    frame = table.melt(ignore_index=False, var_name="stage", value_name="first_layer")
    frame = frame.reset_index()
    frame.insert(2, "number", frame["stage"].map(dict(firsts.keys())))
    details = projected.details[["query", "prompt", "bridge", "answer"]]
    run: dict[str, Any] = {
        **projected.run,
        "kind": Stages.kind,
        "settings": {one["kind"]: one["settings"] for one in runs if "kind" in one}
        | {
            "tolerance": _step(described) - 1,
            "second_stage": second_stage,
            "knockout_layer": knockout_layer,
        },
    }
    return Stages(frame, details, run)


def _check_positions(there: Iterable[str], n_hops: int) -> None:
    """Raise QueryError if the end of a phrase is missing."""
    missing = set(POSITIONS[:n_hops]) - set(there)
    if missing:
        raise QueryError(
            f"stages need the ends of all phrases, and the queries have no {min(missing)}: a "
            "question in its own words, such as MuSiQue's, is not composed of its hops"
        )


def _bites(knocked: Knockouts, edge: str, middle: bool) -> pd.Series[float]:
    """The middle, or the last layer, of the first window that bites; NaN without such an edge.

    A layer shows first at the window's end. Two phrases that end at one token have no edge between.
    """
    if edge not in set(knocked.frame["edge"]):
        return pd.Series(float("nan"), index=knocked.frame["query"].unique())
    if middle:
        return knocked.first_layers(edge)
    last = int(knocked.frame["layer"].max())
    half = int(knocked.run.get("settings", {}).get("window", 0))
    return (knocked.first_layers(edge) + half).clip(upper=last)


def _step(described: Description) -> int:
    """How many layers lie between two that were described."""
    layers = sorted(described.frame["source_layer"].unique())
    return max((int(b - a) for a, b in pairwise(layers)), default=1)


@analysis(
    "stages",
    title="Stages",
    question="When does each step first show, and does the order hold query by query?",
    source="Hopping Too Late, figure 1; Layer-Order Inversion",
    control="the share of queries that break the order",
    subsets=("incorrect", "correct"),
    order=50,
    keywords=("seed", "progress", "max_memory", "out", "on"),
    accepts={
        "queries": Queries(),
        "layers": Layers(),
        "description": SettingsOf("description"),
        "knockout": SettingsOf("knockout"),
        "projection": SettingsOf("projection"),
        "second_stage": OneOf(get_args(SecondStage)),
        "knockout_layer": OneOf(get_args(KnockoutLayer)),
    },
    parity={
        "second_stage": "mean",
        "knockout_layer": "middle",
        "description": REGISTERED["description"].parity,
        "knockout": {**REGISTERED["knockout"].parity, "edges": ("t2->t1",)},
        "projection": REGISTERED["projection"].parity,
    },
    layers=lambda layers: {"layers": layers},
    parts=("description", "knockout", "projection"),
    combine=combine,
)
def stages(
    model: LanguageModel,
    queries: QuerySet,
    *,
    layers: Iterable[int] | None = None,
    description: Mapping[str, Any] = MappingProxyType({}),
    knockout: Mapping[str, Any] = MappingProxyType({}),
    projection: Mapping[str, Any] = MappingProxyType({}),
    second_stage: SecondStage = "apart",
    knockout_layer: KnockoutLayer = "end",
    **run: Unpack[RunKeywords],
) -> Stages:
    """Run description, knockout and projection, and put their first layers on one axis.

    Args:
        model: the model.
        queries: usually `graded.correct()`.
        layers: source and target layers of the description; all if None.
        description, knockout, projection: further settings of `describe`, `knockout` and
            `project`, by name.
        second_stage: the two measures of the second stage `apart`; or, as the paper's code has
            it, the `mean`, over those that show, of the knockout, of attention that projects e2,
            and of e2 described at t2.
        knockout_layer: a knockout bites at the `end` of the first window that changes the answer,
            or, as the paper's code has it, at its `middle`.

    Raises:
        UsageError: for an empty set, a layer that the model does not have, or a setting that
            its analysis does not have.

    Example:
        >>> stages(model, graded.correct()).summary()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    folder = None if options.out is None else Path(options.out)

    def given(name: str, sweeps: bool = True) -> RunKeywords:
        out = None if folder is None else folder / name
        common: RunKeywords = {"seed": options.seed, "progress": options.progress, "out": out}
        common["on"] = options.on
        return {**common, "max_memory": options.max_memory} if sweeps else common

    at_layers = {} if layers is None else {"source_layers": layers, "target_layers": layers}
    _check_positions(queries.positions, queries.n_hops)
    edges = [f"{over.there}->{over.here}" for over in hand_overs(queries.n_hops)]
    described, knocked = at_layers | dict(description), {"edges": edges, **knockout}
    results = run_each(
        lambda: describe(model, queries, **described, **given("description")),
        lambda: knock_out(model, queries, **knocked, **given("knockout")),
        lambda: project(model, queries, **projection, **given("projection", sweeps=False)),
    )
    result = combine(*results, second_stage=second_stage, knockout_layer=knockout_layer)
    if folder is not None:
        result.save(folder / "stages")
    return result
