"""Causal tracing: which states bring the answer back when the source entity is noised.

ROME (Meng et al. 2022), section 2: noise on the embeddings of e1 spoils the answer; one clean
state put back shows how much of it runs through there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np
import pandas as pd
import torch

from hopscope.display.progress import divided
from hopscope.engine.edits import Cell, Patch
from hopscope.engine.read_out import CellOutputs, ReadOut
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_in_parts
from hopscope.experiments.arguments import Above, AtLeast, ListOf
from hopscope.experiments.randomness import generator_for
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import FIRST_TOKENS
from hopscope.prompting.capture import capture
from hopscope.prompting.query_prompts import QueryPrompts, question, with_first_tokens
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.query import Query
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import SITE_LABELS, largest_row, rows_where
from hopscope.statistics import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SITES = ("resid_post", "attn_out", "mlp_out")
POSITIONS = ("e1", "t1", "t2")
PER_PART = 4


@dataclass(frozen=True, repr=False)
class Tracing(Result):
    """How far one clean state restores the answer after the source entity was noised.

    `frame` has one row a query, position, site and layer, the middle of the restored window:
    `probability` of the answer's first token, and `indirect_effect`, that less the probability
    with noise alone; both are means over the draws of noise. `details` has one row a query:
    probabilities in the clean and in the noised run.
    """

    kind = "tracing"
    rules = FIRST_TOKENS
    columns: ClassVar = {
        "query": "str",
        "position": "str",
        "site": "str",
        "layer": "int64",
        "probability": "float32",
        "indirect_effect": "float32",
    }

    def summary(self, seed: int = 0) -> pd.DataFrame:
        """The average indirect effect by position, site and layer.

        Returns:
            Columns `position, site, layer, n, effect, low, high`.
        """
        keys = ["position", "site", "layer"]
        return intervals(self.frame, keys, "indirect_effect", "effect", seed)

    def total_effect(self, seed: int = 0) -> pd.DataFrame:
        """Mean probability of the answer, clean and noised, and their difference.

        Returns:
            Rows `clean`, `noised`, `total_effect`; columns `what, n, mean, low, high`.
        """
        table = self.details.assign(total_effect=self.details["clean"] - self.details["noised"])
        long = table.melt(value_vars=["clean", "noised", "total_effect"], var_name="what")
        return intervals(long, ["what"], "value", "mean", seed)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"total_effect": self.total_effect(), "summary": self.summary()}

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {"total_effect": self.total_effect(seed), "summary": self.summary(seed)}

    def findings(self) -> list[str]:
        summary = self.summary()
        mean = {row["what"]: row["mean"] for row in rows_where(self.total_effect())}
        sentences = [
            "noise on the source entity lowers the answer's probability from "
            f"{mean['clean']:.2f} to {mean['noised']:.2f}."
        ]
        for position in dict.fromkeys(summary["position"]):
            parts = []
            for site, name in SITE_LABELS.items():
                rows = summary[(summary["position"] == position) & (summary["site"] == site)]
                if len(rows):
                    best = largest_row(rows, "effect")
                    parts.append(f"{name} {best['effect']:.2f} at layer {best['layer']}")
            layers = summary["layer"].nunique()
            sentences.append(
                f"Average indirect effects at {position}, the largest of {layers} layers: "
                f"{', '.join(parts)}."
            )
        return sentences

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the average indirect effect by layer, a line for each position and site."""
        from hopscope.experiments.two_hop import plots

        return plots.tracing_lines(self.summary(), ax)


@analysis(
    "trace",
    title="Causal tracing",
    question="Which clean states restore the answer when the source entity is noised?",
    source="Meng et al. 2022 (ROME), section 2",
    control="noise alone",
    subsets=("correct",),
    order=70,
    accepts={
        "positions": ListOf(POSITIONS),
        "sites": ListOf(SITES),
        "noise": Above(0),
        "draws": AtLeast(1),
        "window": AtLeast(0),
    },
)
def trace(
    model: LanguageModel,
    queries: QuerySet,
    positions: Sequence[str] = ("t1", "t2"),
    sites: Sequence[str] = SITES,
    noise: float = 3.0,
    draws: int = 3,
    window: int = 2,
    **run: Unpack[RunKeywords],
) -> Tracing:
    """Corrupt the source entity's embeddings with noise, and restore clean states one by one.

    Where the first-hop phrase ends with the source entity, t1 is its last token, so that a state
    put back there in an early layer undoes part of the noise itself.

    Args:
        model: the model.
        queries: usually `graded.correct()`.
        positions: where states are put back: any of `e1` (its last token), `t1`, `t2`.
        sites: `resid_post` of one layer; `attn_out` or `mlp_out` of a window of layers.
        noise: standard deviation of the noise, in those of the prompt's embeddings (ROME: 3).
        draws: draws of noise that are averaged.
        window: `attn_out` and `mlp_out` are put back in this many layers on each side, too.

    Raises:
        UsageError: for an empty set, an unknown position or site, or a noise, number of draws or
            window that makes no sense.

    Example:
        >>> trace(model, graded.correct()).plot()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    settings = {
        "positions": positions,
        "sites": sites,
        "noise": float(noise),
        "draws": draws,
        "window": window,
        "seed": options.seed,
    }
    prompts = QueryPrompts.of(model, queries, max_memory=options.max_memory)
    queries = with_first_tokens(model, queries, prompts.answer_tokens)
    tracer = _Tracer(prompts, settings)
    return run_in_parts(
        Tracing, model, queries, settings, tracer.tables, options, per_part=PER_PART
    )


@dataclass(frozen=True)
class _Tracer:
    """Traces one query after the other."""

    prompts: QueryPrompts
    settings: Mapping[str, Any]

    def tables(self, queries: QuerySet) -> Tables:
        """Frame and details of some queries."""
        return Tracing.gathered(self._query(query) for query in divided(queries))

    def _query(self, query: Query) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        model, prompt = self.prompts.model, self.prompts.prompt(query)
        clean = self.prompts.clean(prompt)
        read_out = ReadOut(answer_tokens=self.prompts.answer_tokens(query))
        where, cells = self._cells(prompt)
        noised = [
            self.prompts.sweep(prompt.ids, [[], *cells], read_out, clean, base)
            for base in divided(self._noise(query, prompt))
        ]
        probability = np.mean([_probability(each) for each in noised], axis=0)
        unedited = self.prompts.sweep(prompt.ids, [[]], read_out, clean)
        frame = pd.DataFrame(where, columns=["position", "site", "layer"]).assign(
            query=query.id,
            probability=probability[1:],
            indirect_effect=probability[1:] - probability[0],
        )
        details = {
            "query": query.id,
            "prompt": question(prompt),
            "bridge": query.label("e2"),
            "answer": query.label("e3"),
            "answer_tokens": model.texts_of(read_out.answer_tokens),
            "clean": float(_probability(unedited)[0]),
            "noised": float(probability[0]),
        }
        return frame, [details]

    def _noise(self, query: Query, prompt: TokenizedPrompt) -> list[Cell]:
        """For each draw the noised embeddings of the source entity."""
        tokens = prompt.tokens("e1")
        first, store = prompt.n_shared, self.prompts.store
        own = range(first, len(prompt.ids))
        acts = capture(self.prompts.model, [prompt.prompt], ["resid_pre"], own, store=store)
        states = acts["resid_pre"][0, :, 0]
        spread = self.settings["noise"] * states.float().std()
        bases: list[Cell] = []
        for draw in range(self.settings["draws"]):
            generator = generator_for(self.settings["seed"], query.id, str(draw))
            drawn = torch.randn(len(tokens), states.shape[-1], generator=generator)
            noise = spread * drawn.to(states.device)
            bases.append(
                [
                    Patch(0, at, states[at - first] + each, "resid_pre")
                    for at, each in zip(tokens, noise, strict=True)
                ]
            )
        return bases

    def _cells(self, prompt: TokenizedPrompt) -> tuple[list[tuple[str, str, int]], list[Cell]]:
        model, store = self.prompts.model, self.prompts.store
        sites, positions = self.settings["sites"], self.settings["positions"]
        acts = capture(model, [prompt.prompt], sites, positions, store=store)
        last = model.n_layers - 1
        where: list[tuple[str, str, int]] = []
        cells: list[Cell] = []
        for site in sites:
            k = 0 if site == "resid_post" else self.settings["window"]
            for place, position in enumerate(positions):
                states, at = acts[site][0, place], prompt.position(position)
                for layer in range(last + 1):
                    window = range(max(0, layer - k), min(last, layer + k) + 1)
                    where.append((position, site, layer))
                    cells.append([Patch(each, at, states[each], site) for each in window])
        return where, cells


def _probability(outputs: CellOutputs) -> np.ndarray:
    probability: np.ndarray = outputs.logprob.exp().numpy()
    return probability
