"""Attribution patching: what activation patching would find, estimated by one gradient.

Attribution patching (Nanda 2023; Kramár et al. 2024, AtP): the effect of putting a state of the
partner's run in place of the query's own is, to first order, the difference of the two states times
the gradient of the logit difference. One forward and one backward pass estimate all cells. How far
the estimates are off is told by sweeping all cells of some queries exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np
import pandas as pd
from einops import rearrange
from scipy import stats
from torch import Tensor

from hopscope.display.progress import divided
from hopscope.engine.gradients import check_gradients, differentiate
from hopscope.errors import UsageError
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, limited
from hopscope.experiments.arguments import AtLeast, ListOf
from hopscope.experiments.two_hop.activation_patching import (
    CONTROLS,
    KEYS,
    PLACE,
    POSITIONS,
    SITES,
    Patcher,
    Where,
    mean_of_heads,
    recovery,
)
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import FIRST_TOKENS
from hopscope.queries.query import Query
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import (
    SITE_LABELS,
    largest_row,
    percent,
    row_where,
    rows_where,
    value_with_interval,
    with_interval,
)
from hopscope.statistics import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hopscope.display.grid import Grid

MATTERS = 0.1
"""Nats that a patch must change for the sign of its estimate to count."""
STRONGEST = 10
"""One in so many cells is among the strongest."""
MEASURES = {
    "spearman": "rank correlation",
    "sign": "same sign",
    "strongest": "strongest tenth found",
    "chance": "strongest tenth found by chance",
    "error": "mean absolute error (nats)",
    "effect": "mean absolute effect (nats)",
}
"""What `Attribution.error` tells, and what it is called."""


@dataclass(frozen=True, repr=False)
class Attribution(Result):
    """What one state of the partner's run would do to the answer, by a gradient.

    `frame` has one row a query, position, site, control, layer and head (-1 but for `z`):
    `attribution`, by how much the logit of the query's answer less that of the partner's is
    estimated to change (nats); `recovery`, how far that goes from the query's own difference (0) to
    the partner's (1), NaN where the query does not prefer its own answer clearly more than its
    partner does; `exact` and `exact_recovery`, the same as the patch really has it, NaN for the
    queries that were not swept. `details` has one row a query, as that of `ActivationPatching`.
    """

    kind = "attribution"
    rules = FIRST_TOKENS
    columns: ClassVar = {
        **PLACE,
        "attribution": "float32",
        "recovery": "float64",
        "exact": "float32",
        "exact_recovery": "float64",
    }

    def summary(self, seed: int = 0) -> pd.DataFrame:
        """Mean estimated recovery by position, site, control, layer and head.

        Returns:
            Columns `position, site, control, layer, head, n, recovery, low, high`; `n` counts the
            queries with a recovery.
        """
        return intervals(self.frame, KEYS, "recovery", "recovery", seed)

    def error(self, seed: int = 0) -> pd.DataFrame:
        """How far the estimates are from the exact patches, query by query.

        Returns:
            Columns `site, control, measure, n, value, low, high`: means over the `n` queries that
            were swept. The measures are `spearman`, the rank correlation over the query's cells;
            `sign`, the share of cells whose estimate has the sign of the effect, of those that
            change the logit difference by 0.1 nats or more; `strongest`, the share of the tenth of
            the cells with the largest effects that is among the tenth with the largest estimates,
            and `chance`, the share that would be; `error` and `effect`, the mean absolute error and
            the mean absolute effect, in nats.
        """
        swept = self.frame.dropna(subset=["exact"])
        groups = swept.groupby(["query", "site", "control"], sort=False)
        rows = [
            (site, control, measure, value)
            for (_, site, control), cells in groups
            for measure, value in _agreement(cells).items()
        ]
        keys = ["site", "control", "measure"]
        table = pd.DataFrame(rows, columns=[*keys, "value"])
        return intervals(table, keys, "value", "value", seed)

    def by_place(self, control: str = "none") -> pd.DataFrame:
        """Mean estimated recovery without heads; rows layer, columns site and position."""
        here = self.frame[(self.frame["site"] != "z") & (self.frame["control"] == control)]
        if here.empty:
            raise UsageError(f"the run has nothing but heads, or no control {control!r}")
        places = here[["site", "position"]].drop_duplicates()
        means = here.groupby(["layer", "site", "position"])["recovery"].mean()
        table: pd.DataFrame = means.unstack(["site", "position"])
        return table[pd.MultiIndex.from_frame(places)]

    def heads(self, position: str = "t2") -> pd.DataFrame:
        """Mean estimated recovery of each head; rows layer, columns head."""
        return mean_of_heads(self.frame, position)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary(), "error": self.error()}

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {"error": self.error(seed), "summary": self.summary(seed)}

    def findings(self) -> list[str]:
        summary = self.summary()
        groups = summary.groupby(["site", "position"], sort=False)
        return [
            *(_found_at(str(site), str(position), rows) for (site, position), rows in groups),
            *_errors(self.error()),
        ]

    def grid(self) -> Grid | None:
        """What the interactive heatmap shows."""
        from hopscope.experiments.two_hop.grids import AttributionGrid, HeadsGrid

        if (self.frame["site"] != "z").any():
            return AttributionGrid(self)
        return HeadsGrid(self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the mean estimated recovery, by layer, site and position; or of the heads."""
        from hopscope.experiments.two_hop import plots

        if (self.frame["site"] != "z").any():
            return plots.place_heatmap(self.by_place(), ax, label="estimated recovery")
        position = str(self.frame["position"].iloc[0])
        return self.plot_heads(position, ax)

    def plot_heads(self, position: str = "t2", ax: Axes | None = None) -> Axes:
        """Draw the mean estimated recovery of each head."""
        from hopscope.plots import heatmaps

        return heatmaps.head_heatmap(self.heads(position), ax, title=f"heads at {position}")

    def plot_error(self, ax: Axes | None = None) -> Axes:
        """Draw each estimate over the effect that the patch really has."""
        from hopscope.experiments.two_hop import plots

        swept = self.frame[self.frame["control"] == "none"].dropna(subset=["exact"])
        if swept.empty:
            raise UsageError("no query was swept: give exact=8, or another number above 0")
        return plots.estimate_points(swept, ax)


def _agreement(cells: pd.DataFrame) -> dict[str, float]:
    """How the estimates of one query's cells agree with their effects."""
    estimate, exact = (cells[name].to_numpy(float) for name in ("attribution", "exact"))
    ranks = [stats.rankdata(each) for each in (estimate, exact)]
    varied = all(len(set(each)) > 1 for each in ranks)
    clear = np.abs(exact) >= MATTERS
    n_strongest = -(-len(cells) // STRONGEST)
    found = [
        set(np.argsort(-np.abs(each), kind="stable")[:n_strongest]) for each in (estimate, exact)
    ]
    return {
        "spearman": float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if varied else np.nan,
        "sign": float((np.sign(estimate) == np.sign(exact))[clear].mean())
        if clear.any()
        else np.nan,
        "strongest": len(found[0] & found[1]) / n_strongest,
        "chance": n_strongest / len(cells),
        "error": float(np.abs(estimate - exact).mean()),
        "effect": float(np.abs(exact).mean()),
    }


def _found_at(site: str, position: str, rows: pd.DataFrame) -> str:
    """Where one site is estimated to bring the partner's answer, in a sentence."""
    own = rows[rows["control"] == "none"]
    best = largest_row(own, "recovery")
    head = f", head {best['head']}" if best["head"] >= 0 else ""
    sentence = (
        f"by its gradient the {SITE_LABELS[site]} at {position} brings the other question's answer "
        f"most in layer {best['layer']}{head}, the largest of {len(own)}: estimated recovery "
        f"{value_with_interval(best['recovery'], best['low'], best['high'])}"
    )
    place = {"control": "random", "layer": best["layer"], "head": best["head"]}
    control = row_where(rows, **place)
    if control is not None:
        sentence += f"; a random vector there: {control['recovery']:.2f}"
    return f"{sentence}."


def _errors(error: pd.DataFrame) -> Iterator[str]:
    """How far the estimates of each site are off, in a sentence each."""
    if error.empty:
        yield "No query was swept exactly: how far the estimates are off is not known."
    for site in dict.fromkeys(error["site"]):
        told = {row["measure"]: row for row in rows_where(error, site=site, control="none")}
        said = {name: (row["value"], row["low"], row["high"]) for name, row in told.items()}
        parts = [
            f"rank correlation {value_with_interval(*said['spearman'])}"
            if "spearman" in said
            else "",
            f"the same sign in {with_interval(*said['sign'])}" if "sign" in said else "",
            f"of the strongest tenth {with_interval(*said['strongest'])} found, by chance "
            f"{percent(told['chance']['value'])}",
            f"mean absolute error {value_with_interval(*said['error'])} nats, where the patches "
            f"change {told['effect']['value']:.2f} nats on average",
        ]
        yield (
            f"against the exact patches of {told['error']['n']} queries, the estimates of the "
            f"{SITE_LABELS[site]}: {'; '.join(filter(None, parts))}."
        )


@analysis(
    "attribution-patch",
    title="Attribution patching",
    question="Which states would bring another entity's answer along, by a gradient alone?",
    source="Nanda 2023; Kramár et al. 2024",
    control="a random vector of the same norm; exact patches of some queries",
    order=65,
    accepts={
        "positions": ListOf(POSITIONS),
        "sites": ListOf(SITES),
        "controls": ListOf(CONTROLS, empty=True),
        "exact": AtLeast(0),
    },
)
def attribution_patch(
    model: LanguageModel,
    queries: QuerySet,
    positions: Sequence[str] = ("t1", "t2"),
    sites: Sequence[str] = ("resid_post", "attn_out", "mlp_out"),
    controls: Sequence[str] = CONTROLS,
    exact: int = 8,
    **run: Unpack[RunKeywords],
) -> Attribution:
    """Estimate what each state of r2(r1(e1′)) would do in r2(r1(e1)), by one gradient a query.

    A quick first pass beside `activation_patch`, whose cells and partners it has: the difference of
    the two states times the gradient of the logit difference at the query's own run. It is exact
    for small differences alone; saturated attention and effects that cancel mislead it, so all
    cells of some queries are swept, too, and `error()` tells how far the estimates are off.

    Args:
        model: the model.
        queries: usually `graded.correct()`; partners come from the set it was chosen from.
        positions: any of `t1`, `t2`, `e1` (the last token of the source entity).
        sites: any of `resid_post`, `attn_out`, `mlp_out`, and `z` for each head's output.
        controls: `random`: a Gaussian vector of the same norm; () for none.
        exact: how many queries, drawn by seed, are swept exactly, too; 0 for none.

    Raises:
        UsageError: for an empty set, an unknown position, site or control, or if no query has a
            partner.
        ModelError: if the model has no gradients, such as one whose quantised weights cannot be
            differentiated.

    Example:
        >>> attribution_patch(model, graded.correct()).error()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    check_gradients(model)
    settings = {"positions": positions, "sites": sites, "controls": controls, "exact": exact}
    patcher = Patcher.of(model, queries, settings, options)
    swept = limited(patcher.queries, exact, options.seed) if exact else ()
    attributor = _Attributor(patcher, frozenset(query.id for query in swept))
    return patcher.run(Attribution, attributor.tables, options)


@dataclass(frozen=True)
class _Attributor:
    """Estimates the patches of one query after the other.

    Attributes:
        patcher: what it estimates.
        swept: ids of the queries of which it is swept, too.
    """

    patcher: Patcher
    swept: frozenset[str]

    def tables(self, queries: QuerySet) -> Tables:
        """Frame and details of some queries."""
        return Attribution.gathered(self._query(query) for query in divided(queries))

    def _query(self, query: Query) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        estimated = self._estimated(query)
        if query.id in self.swept:
            patched, (details,) = self.patcher.query(query)
            patched["exact"] = patched["logit_diff"] - details["logit_diff"]
            patched = patched.rename(columns={"recovery": "exact_recovery"})
            exact = patched[[*PLACE, "exact", "exact_recovery"]]
            frame = estimated.merge(exact, on=list(PLACE), validate="one_to_one")
        else:
            _, details = self.patcher.read(query, [])
            frame = estimated.assign(exact=np.float32(np.nan), exact_recovery=np.nan)
        return frame.assign(recovery=recovery(-frame["attribution"].to_numpy(), details)), [details]

    def _estimated(self, query: Query) -> pd.DataFrame:
        """The attributions of one query."""
        prompts, pair = self.patcher.prompts, self.patcher.pairs[query.id]
        prompt, (own, other) = prompts.prompt(query), pair.tokens
        sites, positions = (self.patcher.settings[name] for name in ("sites", "positions"))
        found = differentiate(
            prompts.model,
            prompt.ids,
            lambda logits: logits[own].float() - logits[other].float(),
            sites,
            [prompt.position(position) for position in positions],
            prefix=prompts.clean(prompt).prefix,
        )
        rows: list[dict[str, Any]] = []
        for site, position, control, states in self.patcher.donors(query):
            at = positions.index(position)
            own_states, gradient = found.states[site][at], found.gradients[site][at]
            estimates = _first_order(states, own_states, gradient).cpu().numpy()
            for (layer, head), estimate in np.ndenumerate(estimates):
                where = Where(position, site, control, layer, head if site == "z" else -1)
                rows.append({**vars(where), "attribution": estimate})
        return pd.DataFrame(rows).assign(query=query.id)


def _first_order(states: Tensor, own: Tensor, gradient: Tensor) -> Tensor:
    """Estimates (layer, head), of one head for whole states.

    Args:
        states: what is put in, shape (layer, width) or (layer, head, head_dim).
        own: what is there, shape (layer, width); heads lie side by side.
        gradient: of what is read, of the shape of `own`.
    """
    by_head = "layer (head d) -> layer head d"
    n_heads = states.shape[1] if states.ndim == 3 else 1
    own, gradient = (rearrange(each.float(), by_head, head=n_heads) for each in (own, gradient))
    return ((states.float().reshape(own.shape) - own) * gradient).sum(dim=-1)
