"""Whether the middle of a ranking is drawn to the neighbours of its top.

After Peng et al. 2024: the rows of the unembedding are keys; a token that the model ranks in the
middle is often there because its key is near that of a top token. Whether it is right as often as
others can be told best of list questions, which have several right answers: queries of one prompt
are one question, of which all their answers are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Unpack

import numpy as np
import pandas as pd
import torch
from scipy.cluster.vq import kmeans2

from hopscope.display.progress import divided
from hopscope.engine.read_out import ReadOut
from hopscope.engine.sweep import generate
from hopscope.errors import ModelError, UsageError
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_in_parts
from hopscope.experiments.arguments import AtLeast, ListOf
from hopscope.models.language_model import LanguageModel
from hopscope.models.linear import unembedding_rows
from hopscope.models.token_model import FIRST_TOKENS
from hopscope.probes import key_clusters
from hopscope.prompting.query_prompts import QueryPrompts, question, with_first_tokens
from hopscope.queries.list_questions import one_of_each_prompt
from hopscope.queries.query import Query
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import row_where, with_interval
from hopscope.statistics import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PER_PART = 16
CONTROLS = ("shuffled",)


@dataclass(frozen=True, repr=False)
class RankNeighbours(Result):
    """Which tokens of the middle ranks are neighbours of top ones, and which are right.

    `frame` has one row a query, control and rank (0-based): `inside` (whether the token shares a
    cluster of the unembedding's rows with one of the top tokens) and `right` (whether it begins
    a name of a right answer that is not among the top). With the control `shuffled` the clusters
    have the same sizes, but tokens at random. `details` has one row a query: its prompt, answer,
    the rank of its best right answer, how many right answers it has (`n_answers`) and how many of
    them are among the top (`n_in_top`).
    """

    kind = "rank_neighbours"
    rules: ClassVar = {**FIRST_TOKENS, "right_answers": 1}
    columns: ClassVar = {
        "query": "str",
        "control": "str",
        "rank": "int64",
        "inside": "bool",
        "right": "bool",
    }

    def drawn(self, seed: int = 0) -> pd.DataFrame:
        """The share of middle ranks that are neighbours of a top token, query by query.

        Returns:
            Columns control, n (queries), share, low, high: 95 % bootstrap intervals.
        """
        shares = self.frame.groupby(["query", "control"], sort=False)["inside"].mean()
        return intervals(shares.reset_index(), ["control"], "inside", "share", seed)

    def accuracy(self, seed: int = 0) -> pd.DataFrame:
        """The share of right tokens among middle ranks inside and outside the clusters.

        Only queries with a right answer that is not among the top count: of those that are, a token
        in the middle is another spelling of what stands near it anyway.

        Returns:
            Columns control, inside, n (queries with such ranks), accuracy, low, high: means over
            queries, 95 % bootstrap intervals.
        """
        keys = ["query", "control", "inside"]
        details = self.details
        if "n_in_top" in details:
            missed = details[details["n_in_top"] < details["n_answers"]]["query"]
        else:  # results of earlier versions, with one answer each
            missed = details[details["answer_rank"] >= self.run["settings"]["top"]]["query"]
        frame = self.frame[self.frame["query"].isin(missed)]
        shares = frame.groupby(keys, sort=False)["right"].mean().reset_index()
        return intervals(shares, ["control", "inside"], "right", "accuracy", seed)

    def tables(self) -> dict[str, pd.DataFrame]:
        return dict(self.printed())

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {"drawn": self.drawn(seed), "accuracy": self.accuracy(seed)}

    def findings(self) -> list[str]:
        settings, drawn = self.run["settings"], self.drawn()
        own, other = (row_where(drawn, control=each) for each in ("none", "shuffled"))
        if own is None:
            return []
        share = with_interval(own["share"], own["low"], own["high"])
        control = ""
        if other is not None:
            chance = with_interval(other["share"], other["low"], other["high"])
            control = f", {chance} with shuffled clusters"
        return [
            f"{share} of ranks {settings['top'] + 1} to {settings['ranks']} share a cluster of the "
            f"unembedding with a top-{settings['top']} token{control}."
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the accuracy inside and outside the clusters, beside shuffled ones."""
        from hopscope.experiments.two_hop import head_plots

        return head_plots.neighbour_points(self.accuracy(), ax)


@analysis(
    "rank-neighbours",
    title="Neighbours of the top tokens",
    question="Are middle ranks drawn to the neighbours of the top tokens?",
    source="Peng et al. 2024",
    control="shuffled clusters",
    asks="queries",
    order=210,
    accepts={
        "n_clusters": AtLeast(1),
        "top": AtLeast(1),
        "ranks": AtLeast(1),
        "controls": ListOf(CONTROLS, empty=True),
    },
)
def rank_neighbours(
    model: LanguageModel,
    queries: QuerySet,
    n_clusters: int = 256,
    top: int = 10,
    ranks: int = 100,
    controls: Sequence[str] = CONTROLS,
    **run: Unpack[RunKeywords],
) -> RankNeighbours:
    """Cluster the rows of the unembedding, and find the clusters of the middle-ranked next tokens.

    Args:
        model: the model.
        queries: usually graded ones, right or wrong; or list questions, a query for each right
            answer, such as `load_queries("world-lists")`.
        n_clusters: number of clusters of k-means over the rows, each scaled to length 1.
        top: ranks that are the top; those after them, up to `ranks`, are the middle.
        ranks: how many ranks are looked at.
        controls: `shuffled`, or () for none.

    Raises:
        UsageError: for numbers that leave no middle, or more clusters than tokens.
        QueryError: for an empty set.

    Example:
        >>> rank_neighbours(model, graded.incorrect()).accuracy()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    if not 0 < top < ranks <= model.vocab_size or not 1 < n_clusters <= model.vocab_size:
        raise UsageError(
            f"top {top}, ranks {ranks} and {n_clusters} clusters do not fit: 0 < top < ranks, and "
            f"the vocabulary has {model.vocab_size} tokens"
        )
    settings = {
        "n_clusters": n_clusters,
        "top": top,
        "ranks": ranks,
        "seed": options.seed,
        "controls": controls,
    }
    queries = one_of_each_prompt(queries)
    prompts = QueryPrompts.of(model, queries)
    queries = with_first_tokens(model, queries, lambda query: sum(prompts.each_answer(query), ()))
    clusters = {"none": unembedding_clusters(model, n_clusters, options.seed)}
    if "shuffled" in controls:
        generator = torch.Generator().manual_seed(options.seed)
        order = torch.randperm(len(clusters["none"]), generator=generator)
        clusters["shuffled"] = clusters["none"][order]
    ranker = _Ranker(prompts, clusters, top, ranks, options.max_memory)
    return run_in_parts(
        RankNeighbours, model, queries, settings, ranker.tables, options, per_part=PER_PART
    )


@dataclass(frozen=True)
class _Ranker:
    """Looks up the ranked next tokens of some queries in the clusters."""

    prompts: QueryPrompts
    clusters: Mapping[str, torch.Tensor]
    top: int
    ranks: int
    max_memory: int | None

    def tables(self, queries: QuerySet) -> Tables:
        """Frame and details of some queries."""
        return RankNeighbours.gathered(self._of_query(query) for query in divided(queries))

    def _of_query(self, query: Query) -> tuple[pd.DataFrame, list[dict[str, object]]]:
        model, prompt = self.prompts.model, self.prompts.prompt(query)
        shared = self.prompts.store.get(prompt.shared)
        each_answer = [tokens for tokens in self.prompts.each_answer(query) if tokens]
        answers = tuple(dict.fromkeys(sum(each_answer, ())))
        read_out = ReadOut(answer_tokens=answers, top_k=self.ranks)
        found = generate(model, [prompt.ids], read_out, shared=shared, max_memory=self.max_memory)
        ranked = found.top_tokens[:1]
        top = set(ranked[0, : self.top].tolist())
        missed = [tokens for tokens in each_answer if top.isdisjoint(tokens)]
        right = torch.isin(ranked, torch.tensor(sum(missed, ()), dtype=ranked.dtype))
        middle = range(self.top, self.ranks)
        tables = []
        for control, labels in self.clusters.items():
            split = key_clusters(ranked, labels, right, self.top)
            columns = {"rank": middle, "inside": split.inside[0], "right": split.right[0]}
            tables.append(pd.DataFrame(columns).assign(query=query.id, control=control))
        details = {
            "query": query.id,
            "prompt": question(prompt),
            "answer": query.label("e3"),
            "answer_tokens": model.texts_of(answers),
            "answer_rank": int(found.rank[0]),
            "n_answers": len(each_answer),
            "n_in_top": len(each_answer) - len(missed),
        }
        return pd.concat(tables), [details]


def unembedding_clusters(model: LanguageModel, n_clusters: int, seed: int = 0) -> torch.Tensor:
    """The cluster of each token by k-means over the unembedding's rows, shape (vocab,).

    Rows are scaled to length 1, so that clusters are of directions.

    Raises:
        ModelError: if the unembedding holds NaN or infinity.
    """
    rows = unembedding_rows(model)
    if not bool(rows.isfinite().all()):
        raise ModelError(f"the unembedding of {model.name} is not finite: check its weights")
    rows = torch.nn.functional.normalize(rows, dim=-1)
    rng = np.random.default_rng(seed)
    starts = rows[torch.as_tensor(rng.choice(len(rows), n_clusters, replace=False))]
    labels = kmeans2(rows.numpy(), starts.numpy(), iter=10, minit="matrix", missing="warn")[1]
    return torch.as_tensor(labels).long()
