"""Says how the logit, tuned and Jacobian lens rank the bridge at t1 and the answer at t2.

    python -m hopscope.study.lens_ranks [FILE]

FILE, by default in the cache, holds the Jacobian lens of SmolLM2-135M, which is fitted first if
there is none: on texts that the model writes itself (about fifteen minutes on one core). The
numbers it prints are those of `docs/findings.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.prompts import Prompt, token_span
from hopscope.queries.query_set import QuerySet
from hopscope.results.wording import with_interval
from hopscope.statistics import mean_interval
from hopscope.study.shipped_probes import by_source
from hopscope.training.fit import torch_seed

Lens: TypeAlias = LogitLens | TunedLens | JacobianLens
MODEL = "smollm2-135m"
GRADING = Path(__file__).parents[2] / "figures" / "results" / "size_ladder" / MODEL / "grading"
N_QUERIES = 40
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
        Columns query, entity, lens, layer, own, other, unasked: the best rank of the next tokens
        that tell the entity, e2 at t1 and e3 at t2, from 0. Two controls: `other` is the rank of
        another query's entity in the same states, and `unasked` that of the own e2 at the last
        token of e1 where the first hop is not asked, in r2(e1). Queries of which no token tells an
        entity are left out.
    """
    others, rows = choose_others(queries, seed=0), []
    asked = zip(queries, queries.prompts(), queries.prompts("entity_shortcut"), strict=True)
    for query, prompt, shortcut in asked:
        t1, t2 = _states(model, prompt, ["t1", "t2"])
        _, end = token_span(shortcut, "e1", TokenizedPrompt.of(model, shortcut).offsets)
        (unasked,) = _states(model, shortcut, [end - 1])
        places: list[tuple[Literal["e2", "e3"], Literal["e2", "e3"], Tensor]]
        places = [("e2", "e3", t1), ("e3", "e2", t2)]
        for entity, beside, state in places:
            own, other = (
                model.answer_tokens(
                    each.names(entity), required=False, after=prompt.end, beside=each.names(beside)
                )
                for each in (query, others[query.id])
            )
            if not own or not other:
                continue
            for name, lens in lenses.items():
                found = {
                    "own": _best_rank(lens, state, own),
                    "other": _best_rank(lens, state, other),
                    "unasked": _best_rank(lens, unasked, own) if entity == "e2" else None,
                }
                layers = pd.DataFrame(found).rename_axis("layer").reset_index()
                rows.append(layers.assign(query=query.id, entity=entity, lens=name))
    return pd.concat(rows, ignore_index=True)


def _states(model: LanguageModel, prompt: Prompt, positions: Sequence[str | int]) -> Tensor:
    """The residual stream at some positions of a prompt, (position, layer, d_model)."""
    return hs.capture(model, [prompt], ["resid_post"], positions)["resid_post"][0]


def _best_rank(lens: Lens, states: Tensor, tokens: Sequence[int]) -> list[int]:
    """The rank of the likeliest of some tokens in the states of each layer, (layer, d_model)."""
    each = lens.rank(states.expand(len(tokens), -1, -1), torch.tensor(tokens)[:, None])
    best: list[int] = each.amin(dim=0).tolist()
    return best


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Median ranks by entity, lens and layer, and how often the own entity ranks higher.

    Returns:
        Columns entity, lens, layer, n, own, other, unasked (medians), and the share of the queries
        whose own entity ranks higher than the other, and than where it is not asked, each with its
        95 % interval (Wilson).
    """
    rows = []
    for (entity, lens, layer), part in found.groupby(["entity", "lens", "layer"]):
        row: dict[Any, Any] = {"entity": entity, "lens": lens, "layer": layer, "n": len(part)}
        row |= part[["own", "other", "unasked"]].astype(float).median().to_dict()
        for control in ("other", "unasked"):
            if part[control].notna().all():
                share = mean_interval((part["own"] < part[control]).to_numpy())
                row[f"over_{control}"] = with_interval(*share)
        rows.append(row)
    return pd.DataFrame(rows)


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
    print(shown.to_string(index=False, na_rep="", float_format="{:.1f}".format))


if __name__ == "__main__":
    cached = cache_dir() / "lenses" / f"{MODEL}.jacobian_lens.safetensors"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else cached)
