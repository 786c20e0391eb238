"""Layer order: does a chain's next entity become decodable later than the one before it?

Layer-Order Inversion (Liu et al. 2026, arXiv 2601.03542): by the hop-aligned picture e2 can be
decoded in an earlier layer than e3, and e3 than e4; the paper finds the opposite, the oftener the
more hops there are. Beside the query's own entities stand those of another query, whose order says
what the frequency of names alone makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

import pandas as pd

from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis
from hopscope.experiments.arguments import AtLeast, ListOf, OneOf, Queries
from hopscope.experiments.two_hop.chains import ENDS
from hopscope.experiments.two_hop.projection import SITES, Projection, project
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query import ENTITIES
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.wording import (
    entity_name,
    layer_in_words,
    points,
    row_where,
    rows_where,
    verdict,
    with_interval,
)
from hopscope.statistics import first_layer_shares, paired, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Site = Literal["resid_post", "mlp_out", "attn_out"]
CONTROLS = ("none", "other")
OWN_HOP = "own hop"
"""Stands for the position at which an entity is due: e2 at t1, e3 at t2, …"""


@dataclass(frozen=True, repr=False)
class LayerOrder(Result):
    """From which layer on each entity of a chain can be decoded.

    `frame` has one row a query, position, entity and control: `first_layer` (0-based) is the first
    one after which the entity's first token is among the likeliest of the logit lens; NaN if it
    never is. Of the control `other` the entity is another query's.
    """

    kind = "layer_order"
    columns: ClassVar = {
        "query": "str",
        "position": "str",
        "entity": "str",
        "control": "str",
        "first_layer": "float64",
    }

    @property
    def n_hops(self) -> int:
        """How many hops the queries have."""
        return int(self.frame["entity"].max()[1:]) - 1

    def at(self, position: str | None = None) -> pd.DataFrame:
        """The rows of a position; of `OWN_HOP` each entity's own one; the end if None.

        Raises:
            UsageError: for a position that was not read.
        """
        if position != OWN_HOP:
            where = self.in_run("position", position or self.end)
            return self.rows_with(self.frame, position=where)
        hop = "t" + (self.frame["entity"].str[1:].astype(int) - 1).astype(str)
        return self.frame[self.frame["position"] == hop].assign(position=OWN_HOP)

    @property
    def places(self) -> pd.DataFrame:
        """`frame`, and behind it the rows of `OWN_HOP` where there are those of several hops."""
        own = self.at(OWN_HOP)
        if own["entity"].nunique() < 2:
            return self.frame
        return pd.concat([self.frame, own], ignore_index=True)

    @property
    def end(self) -> str:
        """The end of the prompt, or else the last position that there is."""
        return str(self.frame["position"].iloc[-1])

    def decoded(self, seed: int = 0) -> pd.DataFrame:
        """Share of queries in which each entity is decoded in some layer, and the first one.

        Returns:
            Columns `position, entity, control, n, share, low, high, mean_first_layer`.
        """
        return first_layer_shares(self.places, ["position", "entity", "control"], seed)

    def inversions(self) -> pd.DataFrame:
        """How often a later entity of the chain is decoded in an earlier layer.

        Only queries in which both entities are decoded count; in the same layer is no inversion.
        The row `any` counts the queries in which two entities or more are decoded and some pair of
        them is inverted.

        Returns:
            Columns `position, control, earlier, later, n, inverted, share, low, high`: Wilson 95 %
            intervals.
        """
        rows = []
        for (position, control), group in self.places.groupby(["position", "control"], sort=False):
            wide = _wide(group)
            for earlier, later in combinations(wide.columns, 2):
                both = wide[[earlier, later]].dropna()
                inverted = int((both[later] < both[earlier]).sum())
                rows.append((position, control, earlier, later, len(both), inverted))
            some = _some_inverted(wide).dropna()
            rows.append((position, control, "any", "any", len(some), int(some.sum())))
        columns = ["position", "control", "earlier", "later", "n", "inverted"]
        shares = [wilson(row[-1], row[-2]) for row in rows]
        return pd.DataFrame(rows, columns=columns).join(
            pd.DataFrame(shares, columns=["share", "low", "high"])
        )

    def above_chance(self, seed: int = 0) -> pd.DataFrame:
        """How much oftener the query's own entities are inverted than another one's.

        Only queries in which two entities or more of both are decoded count.

        Returns:
            Columns `position` and those of `hopscope.statistics.paired`: `n, difference, low, high,
            better, worse, p`.
        """
        rows = []
        for position, group in self.places.groupby("position", sort=False):
            some = {
                control: _some_inverted(_wide(group[group["control"] == control]))
                for control in CONTROLS
            }
            both = pd.DataFrame(some).dropna().astype(bool)
            gain = paired(both["other"].to_numpy(), both["none"].to_numpy(), seed)
            rows.append({"position": position, **gain})
        return pd.DataFrame(rows)

    def tables(self) -> dict[str, pd.DataFrame]:
        return dict(self.printed())

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {
            "inversions": self.inversions(),
            "above_chance": self.above_chance(seed),
            "decoded": self.decoded(seed),
        }

    def findings(self) -> list[str]:
        decoded, where = self.decoded(), {"position": self.end}
        firsts = [
            f"the {entity_name(row['entity'], self.n_hops)} "
            f"{with_interval(row['share'], row['low'], row['high'])}"
            + (f" from {layer_in_words(row['mean_first_layer'])}" if row["share"] else "")
            for row in rows_where(decoded, **where, control="none")
        ]
        sentences = [f"At {self.end} can be decoded in some layer: {', '.join(firsts)}."]
        inversions, gains = self.inversions(), self.above_chance()
        own = row_where(inversions, **where, control="none", earlier="any")
        if own is None or not own["n"]:
            return [*sentences, "In no query are two entities decoded, so that none is inverted."]
        share = with_interval(own["share"], own["low"], own["high"])
        sentence = (
            f"Of {own['n']} queries in which two entities or more are decoded at {self.end}, "
            f"{share} have a later one in an earlier layer"
        )
        other = row_where(inversions, **where, control="other", earlier="any")
        if other is not None and other["n"]:
            chance = with_interval(other["share"], other["low"], other["high"])
            sentence += f"; of {other['n']} with another query's entities {chance}"
        gain = row_where(gains, **where)
        if gain is not None and gain["n"]:
            difference = points(gain["difference"], gain["low"], gain["high"])
            sentence += f"; {difference} in the {gain['n']} that are in both: {verdict(gain)}"
        return [*sentences, f"{sentence}."]

    def plot(self, position: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the first layers of every entity at one position, beside those of another query.

        Args:
            position: one that was read, or `own hop`: each entity where it is due; the end if None.
            ax: where to draw.
        """
        from hopscope.experiments.two_hop import plots

        here = self.at(position)
        return plots.first_layer_strips(here, self.n_hops, ax, title=position or self.end)


def _wide(group: pd.DataFrame) -> pd.DataFrame:
    """First layers with a row a query and a column an entity, in the order of the chain."""
    return group.pivot(index="query", columns="entity", values="first_layer").sort_index(axis=1)


def _some_inverted(wide: pd.DataFrame) -> pd.Series[Any]:
    """Whether some pair of a query's entities is inverted; missing with fewer than two of them."""
    found = pd.Series(False, index=wide.index)
    for earlier, later in combinations(wide.columns, 2):
        found |= wide[later] < wide[earlier]
    return found.astype("boolean").where(wide.notna().sum(axis=1) >= 2)


def combine(projected: Projection, *, site: Site = "resid_post", rank: int = 9) -> LayerOrder:
    """The order that a projection of the same queries shows.

    Args:
        projected: the projection.
        site: where the entities are read.
        rank: an entity is decoded where its rank is at most this.

    Raises:
        UsageError: if the projection does not have the site.
    """
    projected.in_run("site", site)
    first = projected.resolved(rank)
    named = first["target"].str.extract(r"^(?P<entity>e\d)(?P<other>_other)?$")
    kept = (first["site"] == site) & named["entity"].isin(ENTITIES)
    control = named["other"].notna().map({True: "other", False: "none"})
    frame = first.assign(entity=named["entity"], control=control)[kept]
    run = {
        **projected.run,
        "kind": LayerOrder.kind,
        "settings": {
            "projection": projected.run.get("settings", {}),
            "site": site,
            "rank": rank,
        },
    }
    details = projected.details[["query", "prompt", "bridge", "answer"]]
    return LayerOrder(frame[list(LayerOrder.columns)].reset_index(drop=True), details, run)


@analysis(
    "layer-order",
    title="Layer order",
    question="Is a later entity of the chain decoded in an earlier layer?",
    source="Layer-Order Inversion, 2026",
    control="another query's entities",
    subsets=("incorrect", "correct"),
    order=35,
    keywords=("seed", "progress", "out", "on"),
    accepts={
        "queries": Queries(),
        "positions": ListOf(ENDS, optional=True),
        "site": OneOf(SITES),
        "rank": AtLeast(0),
    },
    parts=("projection",),
    combine=combine,
)
def layer_order(
    model: LanguageModel,
    queries: QuerySet,
    positions: Sequence[str] | None = None,
    site: Site = "resid_post",
    rank: int = 9,
    **run: Unpack[RunKeywords],
) -> LayerOrder:
    """Find the first layer at which each entity of a chain can be decoded, and count inversions.

    The output of each block (or of its attention or MLP) goes through the final norm and the
    unembedding, as in `project`.

    Args:
        model: the model.
        queries: of any number of hops; usually `graded.correct()` or `graded.incorrect()`.
        positions: any of `t1`, `t2`, …, the ends of the hops' phrases, and `e1`; the end of each
            hop if None. Where the templates end in their argument ("the spouse of {}") all phrases
            end at one token, so that t1, t2, … but the last are one place.
        site: where entities are read: `resid_post`, `mlp_out` or `attn_out`.
        rank: an entity is decoded where the rank of its first token is at most this, from 0.

    Raises:
        UsageError: for an empty set, or an unknown position or site.

    Example:
        >>> chains = load_queries("world-three-hops").sample(200)   # doctest: +SKIP
        >>> layer_order(model, chains).inversions()                 # doctest: +SKIP
    """
    options = RunOptions(**run)
    folder = None if options.out is None else Path(options.out)
    out = None if folder is None else folder / "projection"
    common: RunKeywords = {"seed": options.seed, "progress": options.progress, "out": out}
    common["on"] = options.on
    projected = project(model, queries, positions, (site,), **common)
    result = combine(projected, site=site, rank=rank)
    if folder is not None:
        result.save(folder / "layer_order")
    return result
