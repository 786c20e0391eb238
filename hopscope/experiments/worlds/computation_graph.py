"""Which attention operations a search through a graph is made of, and whether they explain it.

Transformers Struggle to Learn to Search (Saparov et al. 2024), section 4. Each token is thought of
as holding a set of vertices, at first its own. An operation, attention of a head from one token to
an earlier one, merges their sets. It is explained if it depends on the word of a vertex that both
sets have, or on the places of both tokens; and an example is, if edges whose two vertices the last
token holds in the end lead from start to goal. An operation may also be negative: one that must not
be as strong as its key can be, which the paper's code looks for, too. As a control it is checked
whether they lead to another vertex that is as far away as the goal; where there is none, whether
they lead as far between vertices that the start does not lead to.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack

import pandas as pd
import torch

from hopscope.engine.support import shares_prefixes
from hopscope.errors import ModelError, QueryError, UsageError
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_numbered
from hopscope.experiments.arguments import InstanceOf, Loaded, OneOf
from hopscope.experiments.worlds.graph_operations import (
    PER_PART,
    SIGNS,
    TYPES,
    OperationSearch,
    Signs,
    Thresholds,
)
from hopscope.models.language_model import LanguageModel
from hopscope.queries.graph_paths import PathSet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.run_record import provenance
from hopscope.statistics import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class ComputationGraph(Result):
    """The important attention operations of each prompt.

    `frame` has one row an operation: `query`, `layer`, `head`, `to_token`, `from_token` (places
    in the prompt), `sign` (1; -1 of a negative one), `logit_drop` and `score_drop` (of the answer,
    and the largest one among the important operations of later blocks, when the operation alone is
    knocked out, or, if it is negative, made strong; the score of a negative one drops as it rises),
    `words` and `places` (the tokens on whose word or place its score depends, as text),
    `explained`. `details` has one row a prompt: `group`, `prompt`, `tokens`, `answer`, `said`,
    `correct`, `n_operations`, `n_explained`, `joined`: whether what was merged at the last token
    joins start and goal, and `joined_other`, whether it joins the start and any other vertex as far
    away; if there is none, any two vertices as far apart that the start does not lead to. Where
    there are none of these either, it is False.
    """

    kind: ClassVar[str] = "computation_graph"
    columns: ClassVar = TYPES
    added_settings: ClassVar = {"signs": "positive"}

    @classmethod
    def of(cls, tables: Tables, run: Mapping[str, Any]) -> Self:
        """The result in these tables; what earlier versions found are positive operations."""
        frame = tables["frame"]
        signs = frame["sign"].fillna(1) if "sign" in frame else 1
        frame = frame.assign(sign=signs).astype({"sign": TYPES["sign"]})[list(TYPES)]
        return super().of({**tables, "frame": frame}, run)

    def explained(self, seed: int = 0) -> pd.DataFrame:
        """The share of prompts whose merged set joins start and goal, by group.

        Returns:
            Columns group, n, operations (mean number of important ones), and three shares:
            explained, low, high; correct, correct_low, correct_high; other (in which another vertex
            is joined, see `joined_other`), other_low, other_high: Wilson 95 % intervals over
            prompts.
        """
        table = self.details.sort_values("group", kind="stable")
        table = table.astype({"correct": "boolean", "joined_other": "boolean"})
        found = intervals(table, ["group"], "joined", "explained", seed)
        operations = table.groupby("group")["n_operations"].mean().rename("operations")
        found = found.merge(operations.reset_index(), on="group")
        for column, name in (("correct", "correct"), ("joined_other", "other")):
            ends = {"low": f"{name}_low", "high": f"{name}_high"}
            share = intervals(table, ["group"], column, name, seed).rename(columns=ends)
            found = found.merge(share.drop(columns="n"), on="group", how="left")
        return found

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"explained": self.explained()}

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {"explained": self.explained(seed)}

    def plot(self, query: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the operations of one prompt, by default the first, over layers and tokens."""
        from hopscope.experiments.worlds import graph_plots

        ids = self.details["query"].tolist()
        query = ids[0] if query is None else query
        if query not in ids:
            raise UsageError(f"no query {query!r}: there is {', '.join(ids[:5])} ...")
        operations = self.frame[self.frame["query"] == query]
        details = self.details.iloc[ids.index(query)]
        n_layers = int(self.run["model"]["n_layers"])
        return graph_plots.operations(operations, details, n_layers, ax)


@analysis(
    None,
    name="search_graph",
    title="Computation graph of a search",
    question="Which attention operations is a search in a graph made of?",
    source="Saparov et al. 2024, section 4",
    control="an untrained model; whether other vertices as far away are joined",
    asks="models",
    order=300,
    keywords=("progress", "out"),
    accepts={
        "model": Loaded(),
        "prompts": InstanceOf(PathSet),
        "signs": OneOf(SIGNS),
        "thresholds": InstanceOf(Thresholds, optional=True),
    },
)
def computation_graph(
    model: LanguageModel,
    prompts: PathSet,
    thresholds: Thresholds | None = None,
    signs: Signs = "positive",
    **run: Unpack[RunKeywords],
) -> ComputationGraph:
    """Extract the attention operations that a search through a graph is made of.

    Operations are looked for from the last block back to the first, at tokens that later ones
    read: one that the answer does not rest on by way of others is no part of the graph.

    Args:
        model: the model. Where it adds embeddings of places, a token without its place has the
            mean of the others. Where it does not, as with rotary ones, the token is moved to at
            most 12 others by its position id, with what it sees left as it was, and the fall is
            the mean; on a place that position ids do not tell nothing depends.
        prompts: with a graph in each; `world.paths()` of a world that searches.
        thresholds: of what counts.
        signs: which operations are looked for: `positive`, those without which the answer's logit
            or a later score falls; `both`, also those with which it falls if their weight is as
            large as the largest that any token gives their key; `fewer`, as in the paper's code: of
            each block, by each measure, those of which there are fewer, if there are any.

    Raises:
        QueryError: for an empty set, or places that a prompt does not have.
        ModelError: if the model's attention cannot be run by hopscope, or not in prompts as long
            as the longest, since positions change from some length on.

    Example:
        >>> world = load_world("graph-search")                           # doctest: +SKIP
        >>> computation_graph(world.model, world.paths(100)).explained() # doctest: +SKIP
    """
    if not len(prompts):
        raise QueryError(f"{prompts.name} is an empty set: nothing to look through")
    longest = max(len(model.encode(each.text).ids) for each in prompts)
    if not shares_prefixes(model, longest):
        raise ModelError(
            f"hopscope cannot run the attention of {model.name} itself, as it must to read scores, "
            f"in prompts of up to {longest} tokens; take a model for which "
            f"`hopscope.engine.support.shares_prefixes(model, {longest})` is true"
        )
    if model.dtype != torch.float32:
        logger.warning(
            "%s is in %s, whose rounding is near the thresholds: load it with dtype='float32'",
            model.name,
            model.dtype,
        )
    options, thresholds = RunOptions(**run), thresholds or Thresholds()
    settings = {**asdict(thresholds), "signs": signs}
    record = provenance(model, prompts, ComputationGraph.kind, settings)

    def compute(part: int) -> Tables:
        chosen = prompts[part * PER_PART : (part + 1) * PER_PART]
        found = (OperationSearch(model, each, thresholds, signs).tables() for each in chosen)
        return ComputationGraph.gathered((frame, [row]) for frame, row in found)

    n_parts = -(-len(prompts) // PER_PART)
    return run_numbered(ComputationGraph, n_parts, compute, record, options, unit="part")
