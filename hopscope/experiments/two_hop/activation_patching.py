"""Activation patching between questions: which states carry the source entity to the answer.

Interchange interventions between r2(r1(e1)) and r2(r1(e1′)) (Vig et al. 2020; Wang et al. 2022;
Zhang and Nanda 2023 for the metric): one state of the partner's run replaces the query's own,
beside a random vector of the same norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, Unpack, cast

import numpy as np
import pandas as pd
from torch import Tensor

from hopscope.display.progress import divided
from hopscope.engine.edits import Cell, Patch, PatchSite
from hopscope.engine.read_out import CellOutputs, ReadOut
from hopscope.errors import UsageError
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_in_parts
from hopscope.experiments.arguments import ListOf
from hopscope.experiments.randomness import random_like
from hopscope.experiments.two_hop.partners import Pair, fingerprint, pair_up, with_substitution
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import FIRST_TOKENS
from hopscope.prompting.capture import capture
from hopscope.prompting.query_prompts import QueryPrompts, question
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.query import Query
from hopscope.queries.query_set import QuerySet
from hopscope.results.headline import Headline, compared
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import (
    largest_row,
    points,
    row_where,
    value_with_interval,
    verdict,
    with_interval,
)
from hopscope.statistics import intervals, mean_interval, paired_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hopscope.display.grid import Grid

R = TypeVar("R", bound=Result)

SITES = ("resid_post", "attn_out", "mlp_out", "z")
CONTROLS = ("random",)
POSITIONS = ("t1", "t2", "e1")
PLACE = {
    "query": "str",
    "position": "str",
    "site": "str",
    "control": "str",
    "layer": "int64",
    "head": "int64",
}
"""Columns that say which state is patched in which query, and their types."""
KEYS = [name for name in PLACE if name != "query"]
LEAST_DIFFERENCE = 0.5
"""Nats by which a query must prefer its own answer more than its partner does."""
PER_PART = 4


@dataclass(frozen=True, repr=False)
class ActivationPatching(Result):
    """What one state of the partner's run does to the answer.

    `frame` has one row a query, position, site, control, layer and head (-1 but for `z`):
    `logit_diff`, the logit of the query's answer less that of the partner's (nats); `recovery`,
    how far that has gone from the query's own (0) to the partner's (1), NaN where the query does
    not prefer its own answer clearly more than its partner does; `flipped`, whether the partner's
    answer is now the likeliest next token. `details` has one row a query: both questions, answers
    and unpatched logit differences, and whether the partner's own question has its answer as the
    likeliest token (`partner_answers`).
    """

    kind = "patching"
    rules = FIRST_TOKENS
    columns: ClassVar = {
        **PLACE,
        "logit_diff": "float32",
        "recovery": "float64",
        "flipped": "bool",
    }

    def summary(self, seed: int = 0) -> pd.DataFrame:
        """Mean recovery and flip rate by position, site, control, layer and head.

        Returns:
            Columns `position, site, control, layer, head, n, recovery, low, high, n_flips,
            flip_rate, flip_low, flip_high`; `n` counts the queries with a recovery, whose interval
            is a bootstrap; the flip rate, a share with a Wilson interval, is of all.
        """
        return recoveries_and_flips(self.frame, KEYS, seed)

    def above_chance(self, seed: int = 0) -> pd.DataFrame:
        """How much oftener the partner's state flips the answer than a random vector, in pairs.

        Recovery does not tell them apart: whatever takes the own answer away recovers something.

        Returns:
            Columns `position, site, layer, head, n, difference, low, high`: exact paired intervals,
            see `hopscope.statistics.share_difference`.
        """
        return flips_above_chance(self.frame, KEYS, seed)

    def heads(self, position: str = "t2") -> pd.DataFrame:
        """Mean recovery of each head; rows layer, columns head."""
        return mean_of_heads(self.frame, position)

    def plot_heads(self, position: str = "t2", ax: Axes | None = None) -> Axes:
        """Draw the mean recovery of each head."""
        from hopscope.plots import heatmaps

        return heatmaps.head_heatmap(self.heads(position), ax, title=f"heads at {position}")

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary(), "above_chance": self.above_chance()}

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary(seed)}

    def findings(self) -> list[str]:
        summary, gains = self.summary(), self.above_chance()
        sentences = []
        for position in dict.fromkeys(summary["position"]):
            rows = summary[(summary["position"] == position) & (summary["site"] == "resid_post")]
            own = rows[rows["control"] == "none"]
            if len(own) and own["recovery"].notna().any():
                random = rows[rows["control"] == "random"]
                sentences.append(_found_at(position, own, random, gains))
        return [*sentences, flips_at_most(self.details)]

    def headline(self) -> Headline | None:
        """How much oftener the other question's state flips the answer than a random vector."""
        position, (base,) = self.in_run("position"), CONTROLS
        rows = self.frame[(self.frame["site"] == "resid_post")]
        gain = compared(rows[rows["position"] == position], "flipped", base)
        if gain is None:
            return None
        sentence = (
            f"layers at which the other question's residual stream at {position} flips the answer: "
            f"{points(gain['difference'], gain['low'], gain['high'])} against a random vector"
        )
        return Headline(f"{sentence}.", "a random vector", gain["n"], gain["p"])

    def grid(self) -> Grid | None:
        """What the interactive heatmap shows."""
        from hopscope.experiments.two_hop.grids import HeadsGrid

        has = (self.frame["site"] == "z").any()
        return HeadsGrid(self) if has else None

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the mean recovery by layer, a line for each position and site."""
        from hopscope.experiments.two_hop import plots

        table = self.summary()
        return plots.recovery_lines(table[table["site"] != "z"], ax)

    def plot_flips(self, ax: Axes | None = None) -> Axes:
        """Draw how often the answer is flipped by layer, a line for each position and site."""
        from hopscope.experiments.two_hop import plots

        table = self.summary()
        return plots.flip_lines(table[table["site"] != "z"], ax)


def recoveries_and_flips(frame: pd.DataFrame, keys: Sequence[str], seed: int) -> pd.DataFrame:
    """Mean recovery and flip rate of each place, with intervals; see `ActivationPatching.summary`.

    Args:
        frame: columns `keys`, `query`, `recovery` and `flipped`.
        keys: the columns that tell a place, and the control.
        seed: of the bootstrap.
    """
    recovery = intervals(frame, keys, "recovery", "recovery", seed)
    names = {"n": "n_flips", "low": "flip_low", "high": "flip_high"}
    flips = intervals(frame, keys, "flipped", "flip_rate", seed).rename(columns=names)
    table = flips.merge(recovery, on=list(keys), how="left")
    table["n"] = table["n"].fillna(0).astype(int)
    columns = ["n", "recovery", "low", "high", "n_flips", "flip_rate", "flip_low", "flip_high"]
    return table[[*keys, *columns]]


def flips_above_chance(frame: pd.DataFrame, keys: Sequence[str], seed: int) -> pd.DataFrame:
    """How much oftener own states flip than random ones; see `ActivationPatching.above_chance`.

    Args:
        frame: columns `keys`, `query` and `flipped`.
        keys: the columns that tell a place, and the control.
        seed: of the bootstrap.
    """
    places = [key for key in keys if key != "control"]
    wide = frame.pivot_table(
        index=[*places, "query"], columns="control", values="flipped", aggfunc="any", sort=False
    ).reindex(columns=["none", *CONTROLS])
    return paired_intervals(wide.reset_index(), places, CONTROLS[0], "none", seed)


def mean_of_heads(frame: pd.DataFrame, position: str) -> pd.DataFrame:
    """The mean recovery by each head's own output; rows layer, columns head.

    Args:
        frame: columns `PLACE` and `recovery`.
        position: where the heads are.

    Raises:
        UsageError: if no head was run there.
    """
    chosen = frame[(frame["site"] == "z") & (frame["position"] == position)]
    chosen = chosen[chosen["control"] == "none"]
    if chosen.empty:
        raise UsageError(f"the run has no heads at {position!r}: give sites=['z', ...]")
    table: pd.DataFrame = chosen.groupby(["layer", "head"])["recovery"].mean().unstack("head")
    return table


def _found_at(position: str, own: pd.DataFrame, random: pd.DataFrame, gains: pd.DataFrame) -> str:
    """What the residual stream at one position carries, in a sentence."""
    best = largest_row(own, "recovery")
    half = own.loc[own["recovery"] >= 0.5, "layer"]
    sentence = (
        f"the other question's residual stream at {position} brings its answer most at layer "
        f"{best['layer']}, the largest of {len(own)}: recovery "
        f"{value_with_interval(best['recovery'], best['low'], best['high'])}, answer flipped "
        f"in {with_interval(best['flip_rate'], best['flip_low'], best['flip_high'])}"
    )
    if len(half):
        sentence += (
            f"; it is at least one half in {len(half)} of {len(own)} layers, from "
            f"{half.min()} to {half.max()}"
        )
    where = {"position": position, "site": "resid_post", "layer": best["layer"]}
    control, gain = row_where(random, layer=best["layer"]), row_where(gains, **where)
    return f"{sentence}{beside_random(control, gain)}."


def beside_random(control: Mapping[str, Any] | None, gain: Mapping[str, Any] | None) -> str:
    """What a random vector does at a place, for the end of a sentence on the partner's state.

    Args:
        control: the row of `recoveries_and_flips` there; None if it was not run.
        gain: the row of `flips_above_chance` there; None if there is none.
    """
    told = ""
    if control is not None:
        told += (
            f"; a random vector there: recovery {control['recovery']:.2f}, flipped in "
            f"{with_interval(control['flip_rate'], control['flip_low'], control['flip_high'])}"
        )
    if gain is not None:
        difference = points(gain["difference"], gain["low"], gain["high"])
        told += f", {difference}: {verdict(gain)}"
    return told


def flips_at_most(details: pd.DataFrame) -> str:
    """How many flips can be expected, in a sentence; `details` are of `ActivationPatching`."""
    share = with_interval(*mean_interval(details["partner_answers"].to_numpy()))
    return (
        f"The other question by itself has its answer as the likeliest token in {share}: about so "
        "many flips can be expected at most."
    )


@analysis(
    "patch",
    title="Activation patching",
    question="Which states of the same question about another entity bring its answer along?",
    source="Vig et al. 2020; Zhang and Nanda 2023",
    control="a random vector of the same norm",
    subsets=("correct",),
    order=60,
    accepts={
        "positions": ListOf(POSITIONS),
        "sites": ListOf(SITES),
        "controls": ListOf(CONTROLS, empty=True),
    },
)
def activation_patch(
    model: LanguageModel,
    queries: QuerySet,
    positions: Sequence[str] = ("t1", "t2"),
    sites: Sequence[str] = ("resid_post", "attn_out", "mlp_out"),
    controls: Sequence[str] = CONTROLS,
    **run: Unpack[RunKeywords],
) -> ActivationPatching:
    """Patch one state of r2(r1(e1′)) into r2(r1(e1)) at the same named position, layer by layer.

    The partner has the same relations, another bridge and another answer.

    Args:
        model: the model.
        queries: usually `graded.correct()`; partners come from the set it was chosen from.
        positions: any of `t1`, `t2`, `e1` (the last token of the source entity).
        sites: any of `resid_post`, `attn_out`, `mlp_out`, and `z` for each head's output.
        controls: `random`: a Gaussian vector of the same norm; () for none.

    Raises:
        UsageError: for an empty set, an unknown position, site or control, or if no query has a
            partner.

    Example:
        >>> activation_patch(model, graded.correct()).plot()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    settings = {"positions": positions, "sites": sites, "controls": controls}
    patcher = Patcher.of(model, queries, settings, options)
    return patcher.run(ActivationPatching, patcher.tables, options)


@dataclass(frozen=True)
class Where:
    """Where a vector goes, as the frame's columns have it."""

    position: str
    site: str
    control: str
    layer: int
    head: int


@dataclass(frozen=True)
class Patcher:
    """Patches one query after the other.

    Attributes:
        prompts: of the queries.
        queries: those that have a partner.
        pairs: their partners, by id.
        settings: what is patched, for the run's record, too.
    """

    prompts: QueryPrompts
    queries: QuerySet
    pairs: Mapping[str, Pair]
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        queries: QuerySet,
        settings: Mapping[str, Any],
        options: RunOptions,
    ) -> Self:
        """What patches those of some queries that have a partner.

        Args:
            model: the model.
            queries: the queries.
            settings: `positions`, `sites` and `controls`, and what else is recorded.
            options: of the run.

        Raises:
            UsageError: if no query has a partner.
        """
        pairs = pair_up(model, queries, options.seed)
        kept = queries.filter(lambda query: query.id in pairs)
        prompts = QueryPrompts.of(model, kept, max_memory=options.max_memory)
        drawn = {"seed": options.seed, "partners": fingerprint(pairs)}
        return cls(prompts, kept, pairs, {**settings, **drawn})

    def run(self, kind: type[R], tables: Callable[[QuerySet], Tables], options: RunOptions) -> R:
        """A result made of the tables of all queries, part by part."""
        model = self.prompts.model
        return run_in_parts(
            kind, model, self.queries, self.settings, tables, options, per_part=PER_PART
        )

    def tables(self, queries: QuerySet) -> Tables:
        """Frame and details of some queries."""
        return ActivationPatching.gathered(self.query(query) for query in divided(queries))

    def query(self, query: Query) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        """The frame of one query, and its row of details."""
        where, cells = self.cells(query)
        outputs, details = self.read(query, cells)
        difference = _difference(outputs)[1:]
        frame = pd.DataFrame([vars(each) for each in where]).assign(
            query=query.id,
            logit_diff=difference,
            recovery=recovery(details["logit_diff"] - difference, details),
            flipped=(outputs.top_tokens[1:, 0] == self.pairs[query.id].tokens[1]).numpy(),
        )
        return frame, [details]

    def read(self, query: Query, cells: Sequence[Cell]) -> tuple[CellOutputs, dict[str, Any]]:
        """What is read of a query's prompt, first as it is, then with each cell; its details."""
        model, pair = self.prompts.model, self.pairs[query.id]
        prompt, partner = self.prompts.prompt(query), self.partner(query)
        read_out = ReadOut(track=pair.tokens, top_k=1)
        theirs = self.prompts.sweep(partner.ids, [[]], read_out, self.prompts.clean(partner))
        clean = self.prompts.clean(prompt)
        outputs = self.prompts.sweep(prompt.ids, [[], *cells], read_out, clean)
        details = {
            "query": query.id,
            "prompt": question(prompt),
            "answer": query.label("e3"),
            "answer_token": model.texts_of(pair.tokens[:1]),
            "partner": pair.partner.id,
            "partner_prompt": question(partner),
            "partner_answer": pair.partner.label("e3"),
            "partner_answer_token": model.texts_of(pair.tokens[1:]),
            "logit_diff": float(_difference(outputs)[0]),
            "partner_logit_diff": float(_difference(theirs)[0]),
            "partner_answers": bool(theirs.top_tokens[0, 0] == pair.tokens[1]),
        }
        return outputs, details

    def partner(self, query: Query) -> TokenizedPrompt:
        """The prompt of a query's partner, after the same demonstrations."""
        label = self.pairs[query.id].partner.label("e1")
        changed = with_substitution(self.prompts.by_query[query.id], query, e1_label=label)
        return TokenizedPrompt.of(self.prompts.model, changed)

    def states(self, prompt: TokenizedPrompt) -> Mapping[str, Tensor]:
        """A prompt's states at each site: (position, layer, width), or (..., head, width)."""
        sites, positions = self.settings["sites"], self.settings["positions"]
        model, store = self.prompts.model, self.prompts.store
        acts = capture(model, [prompt.prompt], sites, positions, store=store)
        return {site: acts[site][0] for site in sites}

    def donors(self, query: Query) -> Iterator[tuple[str, str, str, Tensor]]:
        """What is patched into a query: site, position, control, and a state for each layer.

        The states have the shape (layer, width); those of `z` (layer, head, width).
        """
        for site, there in self.states(self.partner(query)).items():
            for states, position in zip(there, self.settings["positions"], strict=True):
                yield site, position, "none", states
                if "random" in self.settings["controls"]:
                    drawn = random_like(states, self.settings["seed"], query.id, site, position)
                    yield site, position, "random", drawn

    def cells(self, query: Query) -> tuple[Sequence[Where], list[Cell]]:
        """Where something is patched into a query, and the cell of each of these places."""
        prompt = self.prompts.prompt(query)
        where: list[Where] = []
        cells: list[Cell] = []
        for site, position, control, states in self.donors(query):
            at = prompt.position(position)
            for layer, state in enumerate(states):
                for head, vector in enumerate(state) if site == "z" else [(-1, state)]:
                    of_head = head if site == "z" else None
                    patch = Patch(layer, at, vector, cast(PatchSite, site), of_head)
                    where.append(Where(position, site, control, layer, head))
                    cells.append([patch])
        return where, cells


def recovery(change: np.ndarray, details: Mapping[str, Any]) -> np.ndarray | float:
    """How far a fall of the logit difference goes from a query's own to that of its partner.

    Args:
        change: by how much it falls, in nats.
        details: of the query.

    Returns:
        Shares; NaN if the query does not prefer its own answer clearly more than its partner does.
    """
    span = details["logit_diff"] - details["partner_logit_diff"]
    return np.asarray(change, float) / span if span >= LEAST_DIFFERENCE else float("nan")


def _difference(outputs: CellOutputs) -> np.ndarray:
    """The logit of the query's answer less that of its partner's."""
    difference: np.ndarray = (outputs.tracked[:, 0] - outputs.tracked[:, 1]).numpy()
    return difference
