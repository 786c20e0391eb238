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
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack, get_args

import pandas as pd

from hopscope.errors import ResultError
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis
from hopscope.experiments.arguments import Layers, OneOf, SettingsOf
from hopscope.experiments.registry import REGISTERED
from hopscope.experiments.two_hop.attention_knockout import Knockouts
from hopscope.experiments.two_hop.attention_knockout import knockout as knock_out
from hopscope.experiments.two_hop.description import Description, describe
from hopscope.experiments.two_hop.projection import Projection, project
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.results.headline import Headline
from hopscope.results.result import Result
from hopscope.results.runs import run_each
from hopscope.results.wording import layer_in_words, row_where, rows_where, with_interval
from hopscope.statistics import intervals, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES: Mapping[str, int] = {
    "bridge described at t1": 1,
    "knockout t2->t1 bites": 2,
    "attention at t2 projects bridge": 2,
    "answer described at t2": 3,
    "MLP at t2 projects prediction": 4,
}
"""The measures of the paper's four stages, in its order; two of them measure the second."""
MEAN_STAGE = "information leaves t1, mean of three"
"""What stands for the two measures of the second stage where the paper's code is followed."""
NUMBERS: Mapping[str, int] = dict(
    sorted({**STAGES, MEAN_STAGE: 2}.items(), key=lambda item: item[1])
)
"""The number of every stage that a result may have, in their order."""

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
            Columns `stage, number, queries, n, share, mean, low, high`: all queries, those in
            which it shows, their share; and their mean first layer with a bootstrap interval.
        """
        keys = ["stage", "number"]
        means = intervals(self.frame, keys, "first_layer", "mean", seed)
        counts = self.frame.groupby(keys, sort=False)["query"].nunique().rename("queries")
        table = counts.reset_index().merge(means, on=keys, how="left")
        table["n"] = table["n"].fillna(0).astype(int)
        table["share"] = table["n"] / table["queries"]
        return table[[*keys, "queries", "n", "share", "mean", "low", "high"]]

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
        there = [stage for stage in NUMBERS if stage in wide]
        tolerance = int(self.run.get("settings", {}).get("tolerance", 0))
        rows, any_broken = [], pd.Series(False, index=wide.index)
        paired = pd.Series(False, index=wide.index)
        for earlier, later in combinations(there, 2):
            if NUMBERS[earlier] == NUMBERS[later]:
                continue
            both = wide[[earlier, later]].notna().all(axis=1)
            wrong = both & (wide[earlier] > wide[later] + tolerance)
            paired, any_broken = paired | both, any_broken | wrong
            rows.append((earlier, later, int(both.sum()), int(wrong.sum())))
        rows.append(("any", "any", int(paired.sum()), int(any_broken.sum())))
        table = pd.DataFrame(rows, columns=["earlier", "later", "n", "broken"])
        shares = [wilson(broken, n) for _, _, n, broken in rows]
        return table.join(pd.DataFrame(shares, columns=["share", "low", "high"]))

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
    middle = knockout_layer == "middle"
    second = {
        "knockout t2->t1 bites": knocked.first_layers() if middle else _last_of_window(knocked),
        "attention at t2 projects bridge": projected.first_layers("e2", "t2", "attn_out"),
    }
    if second_stage == "mean":
        measures = [*second.values(), described.first_layers("e2", "t2")]
        second = {MEAN_STAGE: pd.concat(measures, axis=1).mean(axis=1)}
    firsts = {
        "bridge described at t1": described.first_layers("e2", "t1"),
        **second,
        "answer described at t2": described.first_layers("e3", "t2"),
        "MLP at t2 projects prediction": projected.first_layers("prediction", "t2", "mlp_out"),
    }
    table = pd.DataFrame(firsts).rename_axis("query")
    frame = table.melt(ignore_index=False, var_name="stage", value_name="first_layer")
    frame = frame.reset_index()
    frame.insert(2, "number", frame["stage"].map(dict(NUMBERS)))
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


def _last_of_window(knocked: Knockouts) -> pd.Series[float]:
    """The last layer of the first window that bites: a layer shows first at the window's end."""
    last = int(knocked.frame["layer"].max())
    half = int(knocked.run.get("settings", {}).get("window", 0))
    return (knocked.first_layers("t2->t1") + half).clip(upper=last)


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
    described, knocked = at_layers | dict(description), {"edges": ["t2->t1"], **knockout}
    results = run_each(
        lambda: describe(model, queries, **described, **given("description")),
        lambda: knock_out(model, queries, **knocked, **given("knockout")),
        lambda: project(model, queries, **projection, **given("projection", sweeps=False)),
    )
    result = combine(*results, second_stage=second_stage, knockout_layer=knockout_layer)
    if folder is not None:
        result.save(folder / "stages")
    return result
