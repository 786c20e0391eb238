"""Provides the grids of results on two-hop queries: which heatmap each of them shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from hopscope.display.grid import EVERYTHING, Axis, Choice, Kind, Measure, Option, Slice
from hopscope.experiments.two_hop.path_ends import RECEIVER, SENDER, end_name, ends_of
from hopscope.plots.figures import title_of
from hopscope.plots.style import CONTROLS
from hopscope.queries.query import ENTITIES
from hopscope.results.result import Result
from hopscope.results.wording import SITE_LABELS, entity_name

HIT = Measure("hit", "answered", "yes")
ANSWERED = Measure("hit", "queries answered", "share")
READ = (
    Measure("answer_probability", "P(answer)", "probability"),
    Measure("answer_rank", "rank of the answer, from 0", "rank"),
    Measure("bridge_probability", "P(bridge)", "probability"),
    Measure("bridge_rank", "rank of the bridge, from 0", "rank"),
)
CELL = ["target_layer", "source_layer"]
MOST_NAMED = 8
"""Queries whose names are shown in a cell that answers them."""


@dataclass(frozen=True)
class _LayerGrid:
    """The axes of what reads the state after one block and puts it after another."""

    result: Result

    @property
    def x(self) -> Axis:
        return Axis("source layer (read)", _ascending(self.result.frame["source_layer"]))

    @property
    def y(self) -> Axis:
        return Axis("target layer (replaced)", _ascending(self.result.frame["target_layer"]))


@dataclass(frozen=True)
class BackPatchingGrid(_LayerGrid):
    """Source × target layers of a back-patching result, for all queries or one.

    Attributes:
        result: the result.
        hit: what a cell that answers one query is called.
    """

    result: Result
    hit: Measure = HIT

    @property
    def title(self) -> str:
        return title_of(self.result, "Back-patching")

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        frame = self.result.frame
        labels = {name: look.label for name, look in CONTROLS.items()}
        return (
            _queries(self.result.details, "prompt"),
            Choice.of("position", "position", list(frame["position"].unique()), {}),
            Choice.of("control", "state", list(frame["control"].unique()), labels),
        )

    @cached_property
    def _groups(self) -> dict[tuple[Any, ...], pd.DataFrame]:
        """The cells of each position, control and query; old runs lack the bridge.

        An entity that no first token identifies has no log-probability, and so no rank.
        """
        frame = self.result.frame.set_index(CELL)
        read = {}
        for entity in ("answer", "bridge"):
            if f"{entity}_logprob" in frame:
                logprob = frame[f"{entity}_logprob"]
                read[f"{entity}_probability"] = np.exp(logprob)
                read[f"{entity}_rank"] = frame[f"{entity}_rank"].where(logprob.notna())
        groups = frame.assign(**read).groupby(["position", "control", "query"], sort=False)
        return {key: cells for key, cells in groups if isinstance(key, tuple)}

    @cached_property
    def _nothing(self) -> pd.DataFrame:
        """The cells of a query that no other one lent its states to."""
        return next(iter(self._groups.values())).head(0)

    def slice(self, chosen: Mapping[str, str]) -> Slice:
        """The cells of one position and control: of one query, or the mean of all."""
        position, control, query = (chosen[name] for name in ("position", "control", "query"))
        if query == EVERYTHING:
            return self._mean(position, control)
        cells = self._groups.get((position, control, query), self._nothing)
        details = self.result.details
        row = details[(details["query"] == query) & (details["position"] == position)].iloc[0]
        return Slice(
            cells,
            (self.hit, *_read(cells)),
            {"says": "generation"},
            tuple(_facts(row)),
            marked=self.hit.name,
        )

    def _mean(self, position: str, control: str) -> Slice:
        """The means of all queries, and which of them are answered."""
        there = {
            key: cells for key, cells in self._groups.items() if key[:2] == (position, control)
        }
        cells = pd.concat([self._nothing, *there.values()])
        measures = (ANSWERED, *_read(cells))
        means = cells.groupby(level=CELL)[[each.name for each in measures]].mean()
        named = cells[cells["hit"]].groupby(level=CELL)["query"].agg(_some)
        facts = (("queries", str(len(there))), ("measures", "means over them"))
        darkest = {"hit": self._largest_share}
        texts = {"answered": "named"}
        return Slice(means.assign(named=named), measures, texts, facts, largest=darkest)

    @cached_property
    def _largest_share(self) -> float:
        """Of queries answered in a cell, over all positions and states, so that shades compare."""
        where = ["position", "control", "target_layer", "source_layer"]
        return float(self.result.frame.groupby(where)["hit"].mean().max())


def _read(cells: pd.DataFrame) -> tuple[Measure, ...]:
    """What was read of answer and bridge; old runs lack the bridge."""
    return tuple(each for each in READ if each.name in cells)


def _facts(row: pd.Series[Any]) -> list[tuple[str, str]]:
    """Facts shown for a query at one position, before anything was patched."""
    facts = [
        ("query", str(row["prompt"])),
        ("bridge", str(row["bridge"])),
        ("answer", str(row["answer"])),
        ("unpatched it says", str(row["clean_generation"])),
        ("P(answer), rank", _probability_and_rank(row["clean_logprob"], row["clean_rank"])),
    ]
    if "clean_bridge_logprob" in row:
        rank = row["clean_bridge_rank"]
        facts.append(("P(bridge), rank", _probability_and_rank(row["clean_bridge_logprob"], rank)))
    if row["donor"] is not None and row["donor"] == row["donor"]:
        facts.append(("other state from", str(row["donor"])))
    return facts


def _probability_and_rank(logprob: float, rank: float) -> str:
    """A probability and a rank, which there are not of a name that no first token identifies."""
    unread = np.isnan(rank) or np.isnan(logprob)
    return "not read" if unread else f"{np.exp(logprob):.3g}, {int(rank)}"


def _some(queries: pd.Series[str]) -> str:
    """The first names of many."""
    shown = ", ".join(queries.iloc[:MOST_NAMED])
    more = len(queries) - MOST_NAMED
    return shown if more <= 0 else f"{shown} and {more} more"


@dataclass(frozen=True)
class DescriptionGrid(_LayerGrid):
    """Source × target layers of entity descriptions, for all queries or one."""

    result: Result

    @property
    def title(self) -> str:
        return title_of(self.result, "Entity description")

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        frame = self.result.frame
        return (
            _queries(self.result.details, "question"),
            Choice.of("position", "position", list(frame["position"].unique()), {}),
            Choice.of("prompt", "target prompt", list(frame["prompt"].unique()), {}),
        )

    def slice(self, chosen: Mapping[str, str]) -> Slice:
        """The cells of one position and target prompt: of one query, or the share of all."""
        frame = self.result.frame
        cells = frame[
            (frame["position"] == chosen["position"]) & (frame["prompt"] == chosen["prompt"])
        ]
        n = sum(entity in frame for entity in ENTITIES) - 1
        entities = {
            f"{entity}{other}": f"names {'another' if other else 'the'} {entity_name(entity, n)}"
            for other in ("", "_other")
            for entity in (*ENTITIES[1:], "e1")
            if f"{entity}{other}" in frame
        }
        everything = chosen["query"] == EVERYTHING
        if not everything:
            cells = cells[cells["query"] == chosen["query"]]
        samples = cells["sample"].nunique()
        kind: Kind = "share" if everything or samples > 1 else "yes"
        means = cells.groupby(CELL)[list(entities)].mean()
        measures = tuple(Measure(name, label, kind) for name, label in entities.items())
        if everything:
            return Slice(means, measures, facts=(("queries", str(cells["query"].nunique())),))
        generations = cells.drop_duplicates(CELL).set_index(CELL)["generation"]
        row = self.result.details.set_index("query").loc[[chosen["query"]]].iloc[0]
        facts = tuple((name, str(row[name])) for name in ("question", "bridge", "answer"))
        texts = {f"first of {samples} samples" if samples > 1 else "described as": "generation"}
        return Slice(means.assign(generation=generations), measures, texts, facts, marked="e2")


PARTNER_LABELS = {"none": "the partner's state", "random": "random vector"}
ESTIMATED = (
    Measure("recovery", "estimated recovery of the partner's answer", "number"),
    Measure("exact_recovery", "exact recovery", "number"),
    Measure("attribution", "estimated change of the logit difference", "number"),
    Measure("exact", "exact change of the logit difference", "number"),
)


def _patched(everything: bool) -> tuple[Measure, ...]:
    """What is told of a patch, in all queries or one."""
    return (
        Measure("recovery", "recovery of the partner's answer", "number"),
        Measure("flipped", "answer flipped", "share" if everything else "yes"),
        Measure("logit_diff", "logit difference", "number"),
    )


@dataclass(frozen=True)
class HeadsGrid:
    """Layer × head of an activation or attribution patching result: what each head carries."""

    result: Result

    @property
    def title(self) -> str:
        what = "Attribution" if "attribution" in self.result.frame else "Activation"
        return title_of(self.result, f"{what} patching of heads")

    @cached_property
    def _heads(self) -> pd.DataFrame:
        frame = self.result.frame
        return frame[frame["site"] == "z"]

    @property
    def x(self) -> Axis:
        return Axis("head", _ascending(self._heads["head"]))

    @property
    def y(self) -> Axis:
        return Axis("layer", _ascending(self._heads["layer"]))

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        return (
            _queries(self.result.details, "prompt"),
            Choice.of("position", "position", list(self._heads["position"].unique()), {}),
            Choice.of("control", "state", list(self._heads["control"].unique()), PARTNER_LABELS),
        )

    def slice(self, chosen: Mapping[str, str]) -> Slice:
        """The heads at one position: of one query, or the mean of all."""
        heads = self._heads[self._heads["position"] == chosen["position"]]
        return _partner_slice(heads, "head", chosen)


@dataclass(frozen=True)
class AttributionGrid:
    """Layer × site and position of an attribution patching result, but for single heads."""

    result: Result

    @property
    def title(self) -> str:
        return title_of(self.result, "Attribution patching")

    @cached_property
    def _cells(self) -> pd.DataFrame:
        """What is shown; `place` numbers the sites at their positions."""
        frame = self.result.frame[self.result.frame["site"] != "z"]
        places = {place: number for number, place in enumerate(self._places)}
        found = zip(frame["site"], frame["position"], strict=True)
        return frame.assign(place=[places[place] for place in found])

    @cached_property
    def _places(self) -> list[tuple[str, str]]:
        frame = self.result.frame[self.result.frame["site"] != "z"]
        return list(dict.fromkeys(zip(frame["site"], frame["position"], strict=True)))

    @property
    def x(self) -> Axis:
        names = tuple(f"{SITE_LABELS[site]} {position}" for site, position in self._places)
        return Axis("site and position", tuple(range(len(names))), names)

    @property
    def y(self) -> Axis:
        return Axis("layer", _ascending(self._cells["layer"]))

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        return (
            _queries(self.result.details, "prompt"),
            Choice.of("control", "state", list(self._cells["control"].unique()), PARTNER_LABELS),
        )

    def slice(self, chosen: Mapping[str, str]) -> Slice:
        """The cells of one query, or the mean of all."""
        return _partner_slice(self._cells, "place", chosen)


@dataclass(frozen=True)
class PathGrid:
    """Senders × receivers of a path patching result, but for single heads."""

    result: Result

    @property
    def title(self) -> str:
        return title_of(self.result, "Path patching")

    @cached_property
    def _cells(self) -> pd.DataFrame:
        """What is shown; `layer` numbers the senders, and `place` the receivers."""
        frame = self.result.frame[self.result.frame["site"] != "z"]
        senders, receivers = (
            pd.MultiIndex.from_frame(frame[list(columns)]) for columns in (SENDER, RECEIVER)
        )
        return frame.assign(
            layer=self._senders.get_indexer(senders), place=self._receivers.get_indexer(receivers)
        )

    @cached_property
    def _senders(self) -> pd.MultiIndex:
        return ends_of(self.result.frame[self.result.frame["site"] != "z"], SENDER)

    @cached_property
    def _receivers(self) -> pd.MultiIndex:
        return ends_of(self.result.frame, RECEIVER)

    @property
    def x(self) -> Axis:
        return Axis("receiver", tuple(range(len(self._receivers))), _named(self._receivers))

    @property
    def y(self) -> Axis:
        return Axis("sender", tuple(range(len(self._senders))), _named(self._senders))

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        return (
            _queries(self.result.details, "prompt"),
            Choice.of("position", "position", list(self._cells["position"].unique()), {}),
            Choice.of("control", "state", list(self._cells["control"].unique()), PARTNER_LABELS),
        )

    def slice(self, chosen: Mapping[str, str]) -> Slice:
        """The paths at one position: of one query, or the mean of all."""
        cells = self._cells[self._cells["position"] == chosen["position"]]
        return _partner_slice(cells, "place", chosen)


@dataclass(frozen=True)
class PathHeadsGrid(HeadsGrid):
    """Layer × head of a path patching result: what each head tells one receiver."""

    @property
    def title(self) -> str:
        return title_of(self.result, "Path patching of heads")

    @cached_property
    def _heads(self) -> pd.DataFrame:
        frame = self.result.frame[self.result.frame["site"] == "z"]
        ends = zip(frame["receiver"], frame["receiver_layer"], strict=True)
        return frame.assign(to=[end_name(*end) for end in ends])

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        receivers = _named(ends_of(self._heads, RECEIVER))
        return (*super().choices, Choice.of("receiver", "receiver", receivers, {}))

    def slice(self, chosen: Mapping[str, str]) -> Slice:
        """The heads' paths to one receiver at one position: of one query, or the mean of all."""
        heads = self._heads[self._heads["to"] == chosen["receiver"]]
        heads = heads[heads["position"] == chosen["position"]]
        return _partner_slice(heads, "head", chosen)


def _named(ends: pd.MultiIndex) -> tuple[str, ...]:
    return tuple(end_name(*end) for end in ends)


def _partner_slice(cells: pd.DataFrame, x: str, chosen: Mapping[str, str]) -> Slice:
    """What a partner's states do, or a control's: in one query, or the mean of all."""
    cells = cells[cells["control"] == chosen["control"]]
    everything = chosen["query"] == EVERYTHING
    if not everything:
        cells = cells[cells["query"] == chosen["query"]]
    measures = ESTIMATED if "attribution" in cells else _patched(everything)
    means = cells.groupby(["layer", x])[[each.name for each in measures]].mean()
    return Slice(means, measures, facts=(("queries", str(cells["query"].nunique())),))


def _ascending(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({int(each) for each in numbers}))


def _queries(details: pd.DataFrame, text: str) -> Choice:
    """All queries if there are several, then each by itself, called by its question."""
    known = details.drop_duplicates("query")
    named = zip(known["query"], known[text], strict=True)
    each = [Option(str(query), str(shown)) for query, shown in named]
    together = [Option(EVERYTHING, f"all {len(known)}")] if len(known) > 1 else []
    return Choice("query", "query", (*together, *each))
