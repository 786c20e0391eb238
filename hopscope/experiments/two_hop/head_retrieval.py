"""Which heads average over everything, and which retrieve single tokens.

Hopfield Networks is All You Need (Ramsauer et al. 2020), section 3, for causal models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Unpack

import pandas as pd
import torch

from hopscope.experiments.analysis import (
    WITHOUT_MEMORY,
    RunKeywords,
    RunOptions,
    analysis,
    run_in_parts,
)
from hopscope.experiments.arguments import Above
from hopscope.models.language_model import LanguageModel
from hopscope.probes import class_of_share, keys_held
from hopscope.prompting.capture import capture
from hopscope.prompting.query_prompts import QueryPrompts, question
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PER_PART = 16
CLASSES = ("I", "II", "III", "IV")
"""More than half of the keys; more than 1/8; more than 1/32; at most 1/32."""


@dataclass(frozen=True, repr=False)
class HeadRetrieval(Result):
    """How many keys hold most of each head's attention at the end of each prompt.

    `frame` has one row a query, layer and head: `k`, the least number of keys that hold the
    share `mass` of the settings, and `n_keys`, how many there are. `details` has one row a query.
    """

    kind = "head_retrieval"
    columns: ClassVar = {
        "query": "str",
        "layer": "int64",
        "head": "int64",
        "k": "int64",
        "n_keys": "int64",
    }

    def classes(self) -> pd.DataFrame:
        """The class of each head, by the median share k / n_keys over queries.

        Returns:
            Columns layer, head, share, head_class (I to IV).
        """
        shares = self.frame.assign(share=self.frame["k"] / self.frame["n_keys"])
        medians = shares.groupby(["layer", "head"])["share"].median().reset_index()
        kinds = class_of_share(torch.tensor(medians["share"].to_numpy()))
        return medians.assign(head_class=[CLASSES[kind - 1] for kind in kinds.tolist()])

    def by_layer(self) -> pd.DataFrame:
        """The share of a layer's heads in each class; rows layers, columns classes I to IV."""
        table = self.classes()
        counts: pd.DataFrame = pd.crosstab(table["layer"], table["head_class"], normalize="index")
        return counts.reindex(columns=list(CLASSES), fill_value=0.0)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"by_layer": self.by_layer().reset_index(), "classes": self.classes()}

    def findings(self) -> list[str]:
        counts = self.classes()["head_class"].value_counts().reindex(list(CLASSES), fill_value=0)
        n_heads = counts.sum()
        shares = ", ".join(f"{percent(n / n_heads)} class {name}" for name, n in counts.items())
        return [f"of {n_heads} heads: {shares}."]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the share of each class by layer."""
        from hopscope.experiments.two_hop import head_plots

        return head_plots.class_bars(self.by_layer(), ax)


@analysis(
    "classify-heads",
    title="Heads by how many keys they retrieve",
    question="Which heads average over the prompt, and which retrieve single tokens?",
    source="Ramsauer et al. 2020, section 3",
    asks="queries",
    order=200,
    keywords=WITHOUT_MEMORY,
    accepts={"mass": Above(0, 1)},
)
def classify_heads(
    model: LanguageModel,
    queries: QuerySet,
    mass: float = 0.9,
    **run: Unpack[RunKeywords],
) -> HeadRetrieval:
    """Count the keys that each head retrieves at the last token of two-hop prompts.

    Args:
        model: the model.
        queries: with demonstrations; a prompt of fewer than 32 tokens cannot show class IV.
        mass: the share of the attention that the counted keys hold.

    Raises:
        UsageError: for a mass that is no share.
        QueryError: for an empty set.

    Example:
        >>> classify_heads(model, load_queries("world").sample(50)).by_layer()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    prompts = QueryPrompts.of(model, queries)
    settings = {"mass": mass, "seed": options.seed}

    def compute(part: QuerySet) -> Tables:
        captured = capture(model, part.prompts(), ("attn_pattern",), ("t2",), store=prompts.store)
        patterns = captured["attn_pattern"][:, 0].cpu()
        seen = _keys_seen(model, captured.tokens[:, 0])
        k = keys_held(patterns, mass)
        index = pd.MultiIndex.from_product(
            [[each.id for each in part], range(model.n_layers), range(model.n_heads)],
            names=["query", "layer", "head"],
        )
        n_keys = seen[..., None].expand_as(k)
        frame = pd.DataFrame({"k": k.flatten(), "n_keys": n_keys.flatten()}, index=index)
        details = [
            {
                "query": query.id,
                "prompt": question(prompts.prompt(query)),
                "n_tokens": len(prompts.prompt(query).ids),
            }
            for query in part
        ]
        return {"frame": frame.reset_index(), "details": pd.DataFrame(details)}

    return run_in_parts(
        HeadRetrieval, model, queries, settings, compute, options, per_part=PER_PART
    )


def _keys_seen(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """How many keys a token sees in each layer, shape (query, layer)."""
    windows = [model.window(layer) for layer in range(model.n_layers)]
    most = torch.tensor([window or int(tokens.max()) + 1 for window in windows])
    return torch.minimum(tokens[:, None].cpu() + 1, most)
