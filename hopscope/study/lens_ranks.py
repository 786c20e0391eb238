"""Says how the logit, tuned and Jacobian lens rank the bridge at t1 and the answer at t2.

    python -m hopscope.study.lens_ranks [FILE]

FILE, by default in the cache, holds the Jacobian lens of SmolLM2-135M, which is fitted first if
there is none: on texts that the model writes itself (about fifteen minutes on one core). The
numbers it prints are those of `docs/findings.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd
import torch
from torch import Tensor

import hopscope as hs
from hopscope.experiments.two_hop.controls import choose_others
from hopscope.experiments.two_hop.grading import Grading
from hopscope.models.language_model import LanguageModel
from hopscope.models.zoo import cache_dir
from hopscope.probes import JacobianLens, LogitLens, TunedLens, shipped
from hopscope.queries.query_set import QuerySet
from hopscope.statistics import mean_interval
from hopscope.study.shipped_probes import by_source
from hopscope.training.fit import torch_seed

Lens: TypeAlias = LogitLens | TunedLens | JacobianLens
MODEL = "smollm2-135m"
GRADING = Path(__file__).parents[2] / "figures" / "results" / "size_ladder" / MODEL / "grading"
N_QUERIES = 40
ENTITIES: tuple[tuple[Literal["e2", "e3"], Literal["e2", "e3"]], ...] = (("e2", "e3"), ("e3", "e2"))
"""What is read at t1 and at t2, and from what it must be told."""
N_TEXTS, N_TOKENS, OUTPUTS = 64, 64, 72
"""Each output dimension is averaged over eight of the texts: an eighth of the cost of all."""


def own_texts(model: LanguageModel, n: int, n_tokens: int) -> Tensor:
    """Texts that a model writes after its first token, sampled at temperature 1, (n, token)."""
    start = torch.full((n, 1), model.tokenizer.bos_token_id, device=model.device)
    generate: Any = model.hf.generate
    with torch_seed(model.device, 0):
        written: Tensor = generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=n_tokens - 1,
            max_new_tokens=n_tokens - 1,
        )
    return written


def jacobian_lens(model: LanguageModel, path: Path) -> JacobianLens:
    """The Jacobian lens in a file, which is fitted and saved first if there is none."""
    if not path.is_file():
        lens = JacobianLens(model.final_norm, model.unembedding, model.n_layers, model.d_model)
        lens.fit(
            model.run_blocks,
            model.blocks,
            own_texts(model, N_TEXTS, N_TOKENS),
            outputs_per_text=OUTPUTS,
            progress=lambda done, of: print(done, of, end="\r"),
        ).save(path)
    return JacobianLens.load(path, model.final_norm, model.unembedding)


def graded(folder: Path, n: int) -> QuerySet:
    """Queries both hops of which the model has right, about entities new to the tuned lens."""
    queries = hs.load_queries("world")
    grading = Grading.load(folder)
    parts = (grading.correct(queries), grading.incorrect(queries))
    known = {query.id for part in parts for query in part}
    _, held_out = by_source(queries)
    return held_out.filter(lambda query: query.id in known).sample(n)


@torch.no_grad()
def ranks(model: LanguageModel, queries: QuerySet, lenses: Mapping[str, Lens]) -> pd.DataFrame:
    """The rank of each query's own and of another query's entity, one row a lens and layer.

    Returns:
        Columns query, entity, lens, layer, own, other: the best rank of the next tokens that tell
        the entity, e2 at t1 and e3 at t2, from 0. Queries of which none tells it are left out.
    """
    others, rows = choose_others(queries, seed=0), []
    for query, prompt in zip(queries, queries.prompts(), strict=True):
        states = hs.capture(model, [prompt], ["resid_post"], ["t1", "t2"])["resid_post"][0]
        for state, (entity, beside) in zip(states, ENTITIES, strict=True):
            told = [
                model.answer_tokens(
                    each.names(entity), required=False, after=prompt.end, beside=each.names(beside)
                )
                for each in (query, others[query.id])
            ]
            if not all(told):
                continue
            for name, lens in lenses.items():
                own, other = (
                    lens.rank(state.expand(len(each), -1, -1), torch.tensor(each)[:, None]).amin(0)
                    for each in told
                )
                rows += [
                    (query.id, entity, name, layer, *pair)
                    for layer, pair in enumerate(zip(own.tolist(), other.tolist(), strict=True))
                ]
    return pd.DataFrame(rows, columns=["query", "entity", "lens", "layer", "own", "other"])


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Median ranks by entity, lens and layer, and how often the own entity ranks higher."""
    rows = []
    for key, part in found.groupby(["entity", "lens", "layer"]):
        higher = mean_interval((part["own"] < part["other"]).to_numpy())
        rows.append((*key, len(part), *part[["own", "other"]].median(), *higher))
    columns = ["entity", "lens", "layer", "n", "own", "other", "own_higher", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def main(path: Path) -> None:
    """Print the table at every third layer and at the last."""
    model = hs.load_model(MODEL)
    parts = model.final_norm, model.unembedding
    lenses = {
        "logit": LogitLens(*parts),
        "tuned": TunedLens.load(shipped(f"{MODEL}.tuned_lens"), *parts),
        "Jacobian": jacobian_lens(model, path),
    }
    found = table(ranks(model, graded(GRADING, N_QUERIES), lenses))
    shown = found[(found["layer"] % 3 == 0) | (found["layer"] == model.n_layers - 1)]
    print(shown.to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    cached = cache_dir() / "lenses" / f"{MODEL}.jacobian_lens.safetensors"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else cached)
