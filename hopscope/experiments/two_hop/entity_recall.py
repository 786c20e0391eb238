"""Entity recall: does t1 recall the bridge, and does the model use it as its own answer would.

EntRec and CnstScore of Yang et al. 2024, "Do Large Language Models Latently Perform Multi-Hop
Reasoning?", sections 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Unpack

import numpy as np
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
from hopscope.experiments.randomness import generator_for
from hopscope.experiments.two_hop.controls import all_candidates
from hopscope.experiments.two_hop.partners import Pair, fingerprint, pair_up, with_substitution
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import FIRST_TOKENS
from hopscope.probes import LogitLens
from hopscope.prompting.capture import capture
from hopscope.prompting.query_prompts import QueryPrompts, question, with_first_tokens
from hopscope.queries.prompts import Prompt
from hopscope.queries.query import Query, relation_only
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import (
    SUBSTITUTES,
    largest_row,
    row_where,
    value_with_interval,
    verdict,
    with_interval,
)
from hopscope.statistics import intervals, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PER_PART = 16


@dataclass(frozen=True, repr=False)
class Recall(Result):
    """How well t1 recalls the bridge, beside questions whose bridge is another one.

    `frame` has one row a query, substitute and layer: `entrec`, the log-probability of the
    bridge's first token read off `resid_post` at t1 by the logit lens; `entrec_substituted`, the
    same in the question with another source entity (`e1`) or another first relation (`r1`);
    `beats`, whether the first is higher. `details` has one row a query: CnstScore of the two-hop
    question with the second hop's own (`consistency`) and with that of the partner
    (`consistency_other`).
    """

    kind = "recall"
    rules = FIRST_TOKENS
    columns: ClassVar = {
        "query": "str",
        "substitute": "str",
        "layer": "int64",
        "entrec": "float32",
        "entrec_substituted": "float32",
        "beats": "bool",
    }

    def summary(self, seed: int = 0) -> pd.DataFrame:
        """How often the bridge is recalled better than in the substituted question, by layer.

        Returns:
            Columns `substitute, layer, n, share, low, high, entrec`; chance is one half.
        """
        keys = ["substitute", "layer"]
        shares = intervals(self.frame, keys, "beats", "share", seed)
        means = self.frame.groupby(keys, sort=False)["entrec"].mean().reset_index()
        return shares.merge(means, on=keys)

    def consistency(self, seed: int = 0) -> pd.DataFrame:
        """Mean CnstScore with the second hop of the own bridge, of another one, and the gain.

        Returns:
            Rows `own`, `other`, `gain`; columns `what, n, mean, low, high` (nats).
        """
        own, other = self.details["consistency"], self.details["consistency_other"]
        table = pd.DataFrame({"own": own, "other": other, "gain": own - other})
        long = table.melt(var_name="what")
        return intervals(long, ["what"], "value", "mean", seed)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary(), "consistency": self.consistency()}

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary(seed), "consistency": self.consistency(seed)}

    def findings(self) -> list[str]:
        summary = self.summary()
        sentences = []
        for substitute, name in SUBSTITUTES.items():
            rows = summary[summary["substitute"] == substitute]
            if rows.empty:
                continue
            best = largest_row(rows, "share")
            share = with_interval(best["share"], best["low"], best["high"])
            own = self.frame[self.frame["substitute"] == substitute]
            of_queries = own.groupby("query", sort=False)["beats"].mean()
            mean = with_interval(*mean_interval(of_queries.to_numpy()))
            sentences.append(
                f"the bridge is recalled at t1 better than with {name} most often at layer "
                f"{best['layer']}: {share} of the queries (chance 50 %; the best of {len(rows)} "
                f"layers); the mean over layers is {mean}."
            )
        gain = row_where(self.consistency(), what="gain")
        if gain is not None:
            value = value_with_interval(gain["mean"], gain["low"], gain["high"], "+")
            sentences.append(
                f"CnstScore with the bridge's own second hop is, in nats, {value} over another "
                f"bridge's: {verdict(gain | {'difference': gain['mean']})}."
            )
        return sentences

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw by layer how often the bridge is recalled better than after a substitution."""
        from hopscope.experiments.two_hop import plots

        return plots.recall_lines(self.summary(), ax)


@analysis(
    "recall",
    title="Entity recall",
    question="Does t1 recall the bridge, and does the model use it?",
    source="EntRec and CnstScore, Yang et al. 2024",
    control="another source entity or first relation; another bridge's second hop",
    subsets=("incorrect", "correct"),
    order=80,
    keywords=WITHOUT_MEMORY,
)
def recall(
    model: LanguageModel,
    queries: QuerySet,
    **run: Unpack[RunKeywords],
) -> Recall:
    """Measure EntRec at t1 by layer, and CnstScore of the two-hop and second-hop questions.

    EntRec(ℓ) = log softmax(W_U · norm(resid_post[ℓ] at t1))[first token of e2], an article left
    out. It is compared with the question about e1′ (same relations, another bridge) and about r1′
    (another first relation). CnstScore = −½ [H(p₂ₕ, p₁ₕ) + H(p₁ₕ, p₂ₕ)] of the next-token
    distributions.

    Args:
        model: the model.
        queries: any; partners come from the set they were chosen from.

    Raises:
        UsageError: for an empty set, or if no query has a partner.

    Example:
        >>> recall(model, graded.correct()).summary()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    queries = with_first_tokens(model, queries, lambda query: bridge_token(model, query))
    pairs = pair_up(model, queries, options.seed)
    kept = queries.filter(lambda query: query.id in pairs)
    relations = _other_relations(queries, options.seed)
    settings = {"seed": options.seed, "partners": fingerprint(pairs), "relations": relations}
    measurer = _Measurer(
        QueryPrompts.of(model, kept),
        QueryPrompts.of(model, kept, form="second_hop"),
        logit_lens(model),
        pairs,
        relations,
    )
    return run_in_parts(Recall, model, kept, settings, measurer.tables, options, per_part=PER_PART)


def _other_relations(queries: QuerySet, seed: int) -> dict[str, str]:
    """For each query id the template of another first relation, if possible of the same type."""
    known: dict[str, str] = {}
    for query in all_candidates(queries):
        known.setdefault(query.template("r1"), query.entity_types[0])
    chosen: dict[str, str] = {}
    for query in queries:
        own = relation_only(query.template("r1"))
        others = [template for template in known if relation_only(template) != own]
        same = [template for template in others if known[template] == query.entity_types[0]]
        pool = same or others
        if pool:
            draw = torch.randint(len(pool), (), generator=generator_for(seed, query.id, "r1"))
            chosen[query.id] = pool[int(draw)]
    return chosen


@dataclass(frozen=True)
class _Measurer:
    """Measures some queries at once."""

    prompts: QueryPrompts
    second: QueryPrompts
    lens: LogitLens
    pairs: Mapping[str, Pair]
    relations: Mapping[str, str]

    @torch.no_grad()
    def tables(self, queries: QuerySet) -> Tables:
        """Frame and details of some queries."""
        own = [self.prompts.by_query[query.id] for query in queries]
        entrec = self._entrec(own, queries)
        frames = []
        for substitute in SUBSTITUTES:
            changed = [self._substituted(query, substitute) for query in queries]
            there = [index for index, prompt in enumerate(changed) if prompt is not None]
            prompts = [prompt for prompt in changed if prompt is not None]
            others = self._entrec(prompts, [queries[index] for index in there]) if there else ()
            for index, other in zip(there, others, strict=True):
                frames.append(
                    pd.DataFrame(
                        {
                            "query": queries[index].id,
                            "substitute": substitute,
                            "layer": range(len(other)),
                            "entrec": entrec[index].numpy(),
                            "entrec_substituted": other.numpy(),
                            "beats": (entrec[index] > other).numpy(),
                        }
                    )
                )
        return {"frame": Recall.joined(frames), "details": self._details(queries)}

    def _substituted(self, query: Query, substitute: str) -> Prompt | None:
        prompt = self.prompts.by_query[query.id]
        if substitute == "e1":
            partner = self.pairs[query.id].partner
            if self._token(partner) == self._token(query):
                return None  # the bridges cannot be told apart by their first tokens
            return with_substitution(prompt, query, e1_label=partner.label("e1"))
        template = self.relations.get(query.id)
        return None if template is None else with_substitution(prompt, query, r1_template=template)

    def _entrec(self, prompts: Sequence[Prompt], queries: Sequence[Query]) -> list[Tensor]:
        """For each query the log-probability of its bridge's first token at t1, by layer."""
        model = self.prompts.model
        acts = capture(model, prompts, ["resid_post"], ["t1"])["resid_post"][:, 0]
        tokens = [self._token(query) for query in queries]
        return [
            self.lens.logprob(states, torch.tensor(token, device=states.device)).cpu()
            for states, token in zip(acts, tokens, strict=True)
        ]

    def _token(self, query: Query) -> int:
        """The first token of a query's bridge, an article left out."""
        return next(iter(bridge_token(self.prompts.model, query)), -1)

    def _details(self, queries: QuerySet) -> pd.DataFrame:
        two_hop = self._next_token([self.prompts.by_query[query.id] for query in queries])
        own = [self.second.by_query[query.id] for query in queries]
        partners = [
            with_substitution(prompt, query, e2_label=self.pairs[query.id].partner.label("e2"))
            for prompt, query in zip(own, queries, strict=True)
        ]
        scores = [consistency(two_hop, self._next_token(prompts)) for prompts in (own, partners)]
        rows = [
            {
                "query": query.id,
                "prompt": question(self.prompts.prompt(query)),
                "bridge": query.label("e2"),
                "bridge_token": self.prompts.model.texts_of(
                    bridge_token(self.prompts.model, query)
                ),
                "partner": self.pairs[query.id].partner.id,
                "partner_bridge": self.pairs[query.id].partner.label("e2"),
                "other_relation": self.relations.get(query.id),
                "consistency": float(scores[0][index]),
                "consistency_other": float(scores[1][index]),
            }
            for index, query in enumerate(queries)
        ]
        return pd.DataFrame(rows)

    def _next_token(self, prompts: Sequence[Prompt]) -> Tensor:
        """Log-probabilities of the next token, shape (prompt, vocabulary)."""
        model = self.prompts.model
        last = capture(model, prompts, ["resid_post"], ["t2"])["resid_post"][:, 0, -1]
        logprobs = torch.log_softmax(self.lens(last).float(), dim=-1)
        check_states(model, logprobs.amax(dim=-1), [each.text for each in prompts], "logits")
        return logprobs


def bridge_token(model: LanguageModel, query: Query) -> tuple[int, ...]:
    """The first token of a query's bridge, an article left out; none if it does not tell."""
    return model.first_tokens([query.label("e2")], variants=True, required=False)[:1]


def consistency(a: Tensor, b: Tensor) -> np.ndarray:
    """CnstScore: −½ [H(a, b) + H(b, a)], nats, of two next-token distributions each.

    Args:
        a, b: log-probabilities, shape (prompt, vocabulary).
    """
    cross = (a.exp() * b).sum(dim=-1) + (b.exp() * a).sum(dim=-1)
    score: np.ndarray = (cross / 2).cpu().numpy()
    return score
