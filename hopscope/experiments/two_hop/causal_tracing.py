"""Causal tracing: which states bring the answer back when the source entity is noised.

ROME (Meng et al. 2022), section 2: noise on the embeddings of e1 spoils the answer; one clean
state put back shows how much of it runs through there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from hopscope.engine.edits import Cell, Patch
from hopscope.engine.read_out import CellOutputs, ReadOut
from hopscope.engine.sweep import sweep
from hopscope.errors import UsageError
from hopscope.experiments.arguments import check_choice
from hopscope.experiments.randomness import seeded
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.capture import Activations, capture
from hopscope.prompting.query_prompts import Asker, question
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery
from hopscope.results.provenance import provenance
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.runs import run_over
from hopscope.statistics import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SITES = ("resid_post", "attn_out", "mlp_out")
POSITIONS = ("e1", "t1", "t2")
PER_PART = 4
COLUMNS = ["query", "position", "site", "layer", "probability", "indirect_effect"]


@dataclass(frozen=True, repr=False)
class Tracing(Result):
    """How far one clean state restores the answer after the source entity was noised.

    `frame` has one row a query, position, site and layer, the middle of the restored window:
    `probability` of the answer's first token, and `indirect_effect`, that less the probability
    with noise alone; both are means over the draws of noise. `details` has one row a query:
    probabilities in the clean and in the noised run.
    """

    kind = "tracing"

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

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the average indirect effect by layer, a line for each position and site."""
        from hopscope.experiments.two_hop import plots

        return plots.tracing_lines(self.summary(), ax)


def trace(
    model: LanguageModel,
    queries: QuerySet,
    positions: Sequence[str] = ("t1", "t2"),
    sites: Sequence[str] = SITES,
    noise: float = 3.0,
    draws: int = 3,
    window: int = 2,
    seed: int = 0,
    progress: bool = True,
    *,
    max_memory: int | None = None,
    out: str | Path | None = None,
    shard: tuple[int, int] | None = None,
) -> Tracing:
    """Noise the embeddings of the source entity, and put back clean states one by one.

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
        seed: of the noise.
        progress: show a progress bar.
        max_memory: bytes that the rows may take; measured if None.
        out: run folder; a run that was stopped goes on.
        shard: (i, n): only every n-th part of the queries.

    Raises:
        UsageError: for an empty set, an unknown position or site, or a noise, number of draws or
            window that makes no sense.

    Example:
        >>> trace(model, graded.correct()).plot()  # doctest: +SKIP
    """
    if noise <= 0 or draws < 1 or window < 0:
        raise UsageError(
            "noise must be above 0, draws 1 or more and window 0 or more, not "
            f"{noise}, {draws} and {window}"
        )
    settings = {
        "positions": check_choice("position", positions, POSITIONS),
        "sites": check_choice("site", sites, SITES),
        "noise": float(noise),
        "draws": draws,
        "window": window,
        "seed": seed,
    }
    tracer = _Tracer(Asker.of(model, queries), max_memory, settings)
    run = provenance(model, queries, Tracing.kind, settings)
    tables = run_over(
        queries, tracer.tables, run, per_part=PER_PART, out=out, shard=shard, progress=progress
    )
    return Tracing.of(tables, run)


@dataclass(frozen=True)
class _Tracer:
    """Traces one query after the other."""

    asker: Asker
    max_memory: int | None
    settings: Mapping[str, Any]

    def tables(self, queries: QuerySet) -> Tables:
        """Frame and details of some queries."""
        done = [self._query(query) for query in queries]
        return {
            "frame": pd.concat([frame for frame, _ in done], ignore_index=True)[COLUMNS],
            "details": pd.DataFrame([row for _, row in done]),
        }

    def _query(self, query: TwoHopQuery) -> tuple[pd.DataFrame, dict[str, Any]]:
        model, prompt = self.asker.model, self.asker.prompt(query)
        clean = self.asker.clean(prompt)
        what = ReadOut(answer_tokens=model.answer_tokens(query.names("e3")))
        where, cells = self._cells(prompt)
        noised = [
            sweep(
                model,
                prompt.ids,
                [[], *cells],
                what,
                base=base,
                clean=clean,
                max_memory=self.max_memory,
            )
            for base in self._noise(query, prompt)
        ]
        probability = np.mean([_probability(each) for each in noised], axis=0)
        unedited = sweep(model, prompt.ids, [[]], what, clean=clean)
        frame = pd.DataFrame(where, columns=["position", "site", "layer"]).assign(
            query=query.id,
            probability=probability[1:],
            indirect_effect=probability[1:] - probability[0],
        )
        details = {
            "query": query.id,
            "prompt": question(prompt),
            "bridge": query.e2_label,
            "answer": query.e3_label,
            "clean": float(_probability(unedited)[0]),
            "noised": float(probability[0]),
        }
        return frame, details

    def _noise(self, query: TwoHopQuery, prompt: TokenizedPrompt) -> list[Cell]:
        """For each draw the noised embeddings of the source entity."""
        tokens = prompt.tokens("e1")
        asked = range(prompt.n_shared, len(prompt.ids))
        embedded = capture(
            self.asker.model, [prompt.prompt], ["resid_pre"], list(asked), store=self.asker.store
        )
        states = embedded["resid_pre"][0, :, 0]
        spread = self.settings["noise"] * states.float().std()
        bases: list[Cell] = []
        for draw in range(self.settings["draws"]):
            generator = seeded(self.settings["seed"], query.id, str(draw))
            noise = torch.randn(len(tokens), states.shape[-1], generator=generator).to(
                states.device
            )
            bases.append(
                [
                    Patch(0, at, states[at - asked.start] + spread * each, "resid_pre")
                    for at, each in zip(tokens, noise, strict=True)
                ]
            )
        return bases

    def _cells(self, prompt: TokenizedPrompt) -> tuple[list[tuple[str, str, int]], list[Cell]]:
        acts: Activations = capture(
            self.asker.model,
            [prompt.prompt],
            self.settings["sites"],
            self.settings["positions"],
            store=self.asker.store,
        )
        last = self.asker.model.n_layers - 1
        where: list[tuple[str, str, int]] = []
        cells: list[Cell] = []
        for site in self.settings["sites"]:
            k = 0 if site == "resid_post" else self.settings["window"]
            for place, position in enumerate(self.settings["positions"]):
                states, at = acts[site][0, place], prompt.position(position)
                for layer in range(last + 1):
                    window = range(max(0, layer - k), min(last, layer + k) + 1)
                    where.append((position, site, layer))
                    cells.append([Patch(each, at, states[each], site) for each in window])
        return where, cells


def _probability(outputs: CellOutputs) -> np.ndarray:
    probability: np.ndarray = outputs.logprob.exp().numpy()
    return probability
