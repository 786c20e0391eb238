"""Sublayer projection: what attention, MLP and residual stream say at t1 and t2, layer by layer.

Hopping Too Late (Biran et al. 2024), section 5; the read-out is the logit lens (nostalgebraist
2020). Beside the query's own bridge and answer stand those of another query, as a chance level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import pandas as pd
import torch
from torch import Tensor

from hopscope.engine.finite import check_states
from hopscope.engine.logit_lens import logit_lens
from hopscope.experiments.analysis import (
    WITHOUT_MEMORY,
    RunKeywords,
    RunOptions,
    analysis,
    run_in_parts,
)
from hopscope.experiments.arguments import AtLeast, Flag, ListOf, Queries
from hopscope.experiments.two_hop.chains import ENDS, bridges_of, positions_of
from hopscope.experiments.two_hop.controls import choose_others, fingerprint
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import FIRST_TOKENS
from hopscope.probes import LogitLens
from hopscope.probes.logit_lens import rank_among
from hopscope.prompting.capture import Activations, capture
from hopscope.prompting.query_prompts import QueryPrompts, question
from hopscope.queries.query import POSITIONS, Query
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import SITE_LABELS, entity_name, row_where, with_interval
from hopscope.statistics import first_layer_shares, intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGETS = ("e2", "e3", "prediction", "e2_other", "e3_other")
"""What is looked for in queries of two hops."""
SITES = ("attn_out", "mlp_out", "resid_post")
PER_PART = 16


@dataclass(frozen=True, repr=False)
class Projection(Result):
    """What each sublayer's output says through the logit lens.

    `frame` has one row a query, position, site, target and layer: `rank` (0-based) and `logprob`
    (nats) of the best first token of the target. Targets: `e2` (the bridge), `e3` (the answer; of
    three hops the second bridge), …, `prediction` (what the model says next), and as chance levels
    `e2_other`, `e3_other`, …, those of another query. `details` has one row a query.
    """

    kind = "projection"
    rules = FIRST_TOKENS
    added_settings: ClassVar = {"articles": False}
    columns: ClassVar = {
        "query": "str",
        "position": "str",
        "site": "str",
        "target": "str",
        "layer": "int64",
        "rank": "int64",
        "logprob": "float32",
    }

    @property
    def n_hops(self) -> int:
        """How many hops the queries have."""
        there = (int(name[1:]) for name in POSITIONS if name in self.details)
        return max(there, default=2)

    def resolved(self, rank: int = 0) -> pd.DataFrame:
        """For each query, position, site and target the first layer where it is resolved.

        Args:
            rank: a target is resolved where its rank is at most this (Hopping Too Late: 0).

        Returns:
            Columns `query, position, site, target, first_layer` (NaN if never).
        """
        keys = ["query", "position", "site", "target"]
        there = self.frame["layer"].where(self.frame["rank"] <= rank)
        return (
            self.frame[keys]
            .assign(first_layer=there)
            .groupby(keys, sort=False)
            .min(numeric_only=True)
            .reset_index()
        )

    def summary(self, rank: int = 0, seed: int = 0) -> pd.DataFrame:
        """How many queries resolve each target, and how early.

        Returns:
            Columns `position, site, target, n, share, low, high, mean_first_layer, mean_layer`;
            the last is the mean over all layers of all queries in which the target is resolved,
            as the code of Hopping Too Late has it.
        """
        keys = ["position", "site", "target"]
        shares = first_layer_shares(self.resolved(rank), keys, seed)
        there = self.frame[self.frame["rank"] <= rank].groupby(keys, sort=False)["layer"].mean()
        return shares.merge(there.rename("mean_layer").reset_index(), on=keys, how="left")

    def by_layer(self, rank: int = 0, seed: int = 0) -> pd.DataFrame:
        """Share of queries in which a target is resolved, and its mean log-probability, by layer.

        Returns:
            Columns `position, site, target, layer, n, share, low, high, logprob`.
        """
        keys = ["position", "site", "target", "layer"]
        table = self.frame.assign(found=self.frame["rank"] <= rank)
        shares = intervals(table, keys, "found", "share", seed)
        means = self.frame.groupby(keys, sort=False)["logprob"].mean().reset_index()
        return shares.merge(means, on=keys)

    def first_layers(
        self, target: str, position: str = "t2", site: str = "mlp_out", rank: int = 0
    ) -> pd.Series[float]:
        """For each query the first layer where a target is resolved; NaN if never."""
        chosen = {"target": target, "position": position, "site": site}
        table = self.rows_with(self.resolved(rank), **chosen)
        return table.set_index("query")["first_layer"]

    def tables(self) -> dict[str, pd.DataFrame]:
        ranks = {"rank_0": self.summary(0), "rank_9": self.summary(9)}
        return {**ranks, "by_layer": self.by_layer()}

    def printed(self, seed: int = 0, rank: int = 0) -> dict[str, pd.DataFrame]:
        """The summary.

        Args:
            seed: of the bootstrap.
            rank: a target is resolved where its rank is at most this.
        """
        return {"summary": self.summary(rank, seed)}

    def findings(self) -> list[str]:
        exact, near = self.summary(0), self.summary(9)
        sentences = []
        n_hops = self.n_hops
        for target, site, position in (
            *((f"e{k + 1}", "mlp_out", f"t{k}") for k in range(1, n_hops)),
            *((f"e{k}", "attn_out", f"t{n_hops}") for k in range(2, n_hops + 1)),
            ("prediction", "mlp_out", f"t{n_hops}"),
        ):
            where = {"target": target, "site": site, "position": position}
            first, ten = row_where(exact, **where), row_where(near, **where)
            if first is None or ten is None:
                continue
            name = f"the {entity_name(target, n_hops)}"
            sentence = (
                f"the output of {SITE_LABELS[site]} at {position} has {name} as its likeliest "
                f"token in some layer for "
                f"{with_interval(first['share'], first['low'], first['high'])} of the queries, "
                f"among the ten likeliest for "
                f"{with_interval(ten['share'], ten['low'], ten['high'])}"
            )
            other = row_where(near, **{**where, "target": f"{target}_other"})
            if other is not None:
                chance = with_interval(other["share"], other["low"], other["high"])
                sentence += f"; another query's for {chance}"
            sentences.append(f"{sentence}.")
        return sentences

    def plot(self, position: str | None = None, rank: int = 0, ax: Axes | None = None) -> Axes:
        """Draw the share of queries that resolve each target, by layer.

        Args:
            position: one that was read; the last one if None.
            rank: a target is resolved where its rank is at most this.
            ax: where to draw.
        """
        from hopscope.experiments.two_hop import plots

        where = self.in_run("position", position or self.frame["position"].iloc[-1])
        table = self.rows_with(self.by_layer(rank), position=where)
        return plots.projection_lines(table, ax, title=where, n_hops=self.n_hops)


@analysis(
    "project",
    title="Sublayer projection",
    question="Where do attention, MLP and residual stream promote the bridge and the answer?",
    source="Hopping Too Late, section 5",
    control="another query's bridge and answer",
    subsets=("incorrect", "correct"),
    order=30,
    keywords=WITHOUT_MEMORY,
    parity={"articles": True},
    accepts={
        "queries": Queries(),
        "positions": ListOf(ENDS, optional=True),
        "sites": ListOf(SITES),
        "rank": AtLeast(0),
        "articles": Flag(),
    },
)
def project(
    model: LanguageModel,
    queries: QuerySet,
    positions: Sequence[str] | None = None,
    sites: Sequence[str] = SITES,
    *,
    articles: bool = False,
    **run: Unpack[RunKeywords],
) -> Projection:
    """Project attention, MLP and residual stream onto the vocabulary: ranks of bridge and answer.

    The output of a sublayer goes through the final norm, once, and the unembedding. A target's
    tokens are the first ones of its label and aliases, with and without a space before, also in
    lower case; an article before a name is left out if it is not asked for.

    Args:
        model: the model.
        queries: any; usually `graded.correct()` or `graded.incorrect()`.
        positions: any of `t1`, `t2`, …, the ends of the hops' phrases, and `e1`; the end of each
            hop if None.
        sites: any of `attn_out`, `mlp_out`, `resid_post`.
        articles: keep articles before names, as the paper's code does: "The" then stands for "The
            Beatles".

    Raises:
        UsageError: for an empty set, or an unknown position or site.

    Example:
        >>> project(model, graded.correct()).summary()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    others = choose_others(queries, options.seed)
    settings = {
        "positions": positions_of(queries, positions),
        "sites": sites,
        "articles": articles,
        "seed": options.seed,
        "others": fingerprint(others),
    }
    projector = _Projector(QueryPrompts.of(model, queries), logit_lens(model), others, settings)
    return run_in_parts(
        Projection, model, queries, settings, projector.tables, options, per_part=PER_PART
    )


@dataclass(frozen=True)
class _Projector:
    """Projects the states of some queries at once."""

    prompts: QueryPrompts
    lens: LogitLens
    others: Mapping[str, Query]
    settings: Mapping[str, Any]

    def tables(self, queries: QuerySet) -> Tables:
        """Frame and details of some queries."""
        prompts = [self.prompts.by_query[query.id] for query in queries]
        positions = list(dict.fromkeys([*self.settings["positions"], queries.positions[-1]]))
        sites = list(dict.fromkeys([*self.settings["sites"], "resid_post"]))
        acts = capture(self.prompts.model, prompts, sites, positions, store=self.prompts.store)
        return Projection.gathered(
            self._query(query, acts, index) for index, query in enumerate(queries)
        )

    @torch.no_grad()
    def _query(
        self, query: Query, acts: Activations, index: int
    ) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        model = self.prompts.model
        last = acts["resid_post"][index, acts.positions.index(query.positions[-1]), -1]
        highest = self.lens(last).max(dim=-1)
        check_states(model, highest.values[None], [self.prompts.prompt(query).ids], "logits")
        predicted = int(highest.indices)
        targets = self._targets(query, predicted)
        frames = []
        for site in self.settings["sites"]:
            for place, position in enumerate(self.settings["positions"]):
                logits = self.lens(acts[site][index, place]).float()
                ranks, logprobs = read_targets(logits, list(targets.values()))
                frames.append(
                    pd.DataFrame(
                        {
                            "query": query.id,
                            "position": position,
                            "site": site,
                            "target": [name for name in targets for _ in range(len(logits))],
                            "layer": [*range(len(logits))] * len(targets),
                            "rank": ranks.flatten().numpy(),
                            "logprob": logprobs.flatten().numpy(),
                        }
                    )
                )
        prompt = self.prompts.prompt(query)
        other = self.others.get(query.id)
        details = {
            "query": query.id,
            "prompt": question(prompt),
            "bridge": bridges_of(query),
            "answer": query.labels[-1],
            "bridge_tokens": " → ".join(model.texts_of(targets.get(e, ())) for e in query.bridges),
            "answer_tokens": model.texts_of(targets.get(query.answer, ())),
            "prediction": model.decode([predicted]),
            "other": None if other is None else other.id,
            **{position: prompt.position(position) for position in query.positions},
        }
        return pd.concat(frames, ignore_index=True), [details]

    def _targets(self, query: Query, predicted: int) -> dict[str, tuple[int, ...]]:
        """The tokens that stand for each target; without what the query's own names share.

        A target that no first token identifies is left out.
        """
        other = self.others.get(query.id)
        entities = query.entities[1:]
        targets = {entity: self._first_tokens(query.names(entity)) for entity in entities}
        targets["prediction"] = (predicted,)
        if other is not None:
            for entity in entities:
                tokens = self._first_tokens(other.names(entity))
                others = tuple(token for token in tokens if token not in targets[entity])
                if others and targets[entity]:
                    targets[f"{entity}_other"] = others
        return {name: tokens for name, tokens in targets.items() if tokens}

    def _first_tokens(self, names: Sequence[str]) -> tuple[int, ...]:
        return self.prompts.model.first_tokens(
            names, variants=True, required=False, articles=self.settings["articles"]
        )


def read_targets(logits: Tensor, targets: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rank and log-probability of the best token of each target.

    Args:
        logits: shape (layer, vocabulary).
        targets: tokens that stand for each target.

    Returns:
        0-based ranks and natural log-probabilities, both of shape (target, layer), on the CPU.
    """
    total = torch.logsumexp(logits, dim=-1)
    best = torch.stack([logits[:, list(tokens)].amax(dim=-1) for tokens in targets])
    ranks = rank_among(logits, best)
    return ranks.cpu(), (best - total).cpu()
