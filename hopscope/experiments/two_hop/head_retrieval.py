"""Which heads average over everything, and which retrieve single tokens.

Hopfield Networks is All You Need (Ramsauer et al. 2020), section 3, for causal models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from hopscope.errors import UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.probes import class_of_share, keys_held
from hopscope.prompting.capture import capture
from hopscope.prompting.query_prompts import Asker, question
from hopscope.queries.query_set import QuerySet
from hopscope.results.provenance import provenance
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.runs import run_over

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

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the share of each class by layer."""
        from hopscope.experiments.two_hop import head_plots

        return head_plots.class_bars(self.by_layer(), ax)


def classify_heads(
    model: LanguageModel,
    queries: QuerySet,
    mass: float = 0.9,
    seed: int = 0,
    progress: bool = True,
    *,
    out: str | Path | None = None,
    shard: tuple[int, int] | None = None,
) -> HeadRetrieval:
    """Count the keys that each head retrieves at the last token of two-hop prompts.

    Args:
        model: the model.
        queries: with demonstrations; a prompt of fewer than 32 tokens cannot show class IV.
        mass: the share of the attention that the counted keys hold.
        seed: as every experiment takes one; nothing is drawn here.
        progress: show a progress bar.
        out: run folder; a run that was stopped goes on.
        shard: (i, n): only every n-th part of the queries.

    Raises:
        UsageError: for a mass that is no share.
        QueryError: for an empty set.

    Example:
        >>> classify_heads(model, load_queries("world").sample(50)).by_layer()  # doctest: +SKIP
    """
    if not 0 < mass <= 1:
        raise UsageError(f"mass is a share of the attention, more than 0, not {mass}")
    asker = Asker.of(model, queries)
    run = provenance(model, queries, HeadRetrieval.kind, {"mass": mass, "seed": seed})

    def compute(part: QuerySet) -> Tables:
        prompts = part.prompts()
        captured = capture(model, prompts, ("attn_pattern",), ("t2",), store=asker.store)
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
                "prompt": question(asker.prompt(query)),
                "n_tokens": len(asker.prompt(query).ids),
            }
            for query in part
        ]
        return {"frame": frame.reset_index(), "details": pd.DataFrame(details)}

    tables = run_over(
        queries, compute, run, per_part=PER_PART, out=out, shard=shard, progress=progress
    )
    return HeadRetrieval(tables["frame"], tables["details"], run)


def _keys_seen(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """How many keys a token sees in each layer, shape (query, layer)."""
    windows = [model.window(layer) for layer in range(model.n_layers)]
    most = torch.tensor([window or int(tokens.max()) + 1 for window in windows])
    return torch.minimum(tokens[:, None].cpu() + 1, most)
