"""Trains the probes that come with hopscope, and says how good they are.

    python -m hopscope.study.shipped_probes

Everything is seeded; the numbers it prints are those of `probes/trained/README.md`.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import hopscope as hs
from hopscope.models.language_model import LanguageModel
from hopscope.probes import LogitLens, TunedLens
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.query_set import QuerySet

MODEL = "smollm2-135m"
FOLDER = Path(__file__).parents[2] / "probes" / "trained"
TRAINED, HELD_OUT = 1000, 200
"""States of each; they come from questions about other source entities."""
RANK, EPOCHS = 16, 2


def states(model: LanguageModel, queries: QuerySet, n: int) -> Tensor:
    """Residual states at the source entity and at the end of questions, (n, layer, d_model).

    Tokens before the source entity stand in many prompts alike, after the same tokens: their
    states would be in both the training and the held-out set.
    """
    found: list[Tensor] = []
    for prompt in queries.prompts():
        tokens = TokenizedPrompt.of(model, prompt)
        at = sorted({*tokens.tokens("e1"), *tokens.tokens("t1"), *tokens.tokens("t2")})
        found.append(hs.capture(model, [prompt], ["resid_post"], at)["resid_post"][0])
        if sum(map(len, found)) >= n:
            break
    return torch.cat(found)[:n]


def by_source(queries: QuerySet) -> tuple[QuerySet, QuerySet]:
    """Questions about four fifths of the source entities, and about the others; shuffled."""
    sources = sorted({query.label("e1") for query in queries})
    random.Random(0).shuffle(sources)
    train = set(sources[: len(sources) * 4 // 5])
    shuffled = random.Random(1).sample(list(queries), len(queries))
    parts = [
        [q for q in shuffled if (q.label("e1") in train) == wanted] for wanted in (True, False)
    ]
    return replace(queries, queries=tuple(parts[0])), replace(queries, queries=tuple(parts[1]))


def tuned_lens(model: LanguageModel, queries: QuerySet) -> pd.DataFrame:
    """Train the tuned lens, save it, and compare it with the logit lens on other questions."""
    train, test = by_source(queries)
    acts, held_out = states(model, train, TRAINED), states(model, test, HELD_OUT)
    lens = TunedLens(
        model.final_norm, model.unembedding, model.n_layers, model.d_model, rank=RANK
    ).fit(acts, epochs=EPOCHS, progress=lambda done, of, loss: print(done, of, f"{loss:.3f}"))
    lens.save(FOLDER / f"{MODEL}.tuned_lens.safetensors", dtype=torch.float16)
    lens = TunedLens.load(
        FOLDER / f"{MODEL}.tuned_lens.safetensors", model.final_norm, model.unembedding
    )
    plain = LogitLens(model.final_norm, model.unembedding)
    final = torch.log_softmax(plain(held_out[:, -1]), dim=-1)
    says = final.argmax(dim=-1)
    rows = []
    for layer in range(0, model.n_layers, 3):
        row: dict[str, float] = {"layer": layer}
        for name, logits in (
            ("logit", plain(held_out[:, layer])),
            ("tuned", lens(held_out[:, layer], layer=layer)),
        ):
            read = torch.log_softmax(logits, dim=-1)
            row[f"{name}_kl"] = float((final.exp() * (final - read)).sum(dim=-1).mean())
            row[f"{name}_agrees"] = float((read.argmax(dim=-1) == says).float().mean())
        rows.append(row)
    return pd.DataFrame(rows)


def bridge_probe(model: LanguageModel, queries: QuerySet) -> pd.DataFrame:
    """Fit the bridge probe on all questions of `world` that can be used; cross-validate it."""
    layers = range(0, model.n_layers, 3)
    scores = hs.probe(model, queries, layers=layers)
    probe = hs.fit_probe(model, queries, layers=layers)
    probe.save(FOLDER / f"{MODEL}.bridge_probe.safetensors", dtype=torch.float16)
    return scores.selectivity()


@torch.no_grad()
def main() -> None:
    """Train both probes."""
    model, queries = hs.load_model(MODEL), hs.load_queries("world")
    for name, table in (
        ("bridge probe", bridge_probe(model, queries)),
        ("tuned lens", tuned_lens(model, queries)),
    ):
        print(f"\n{name}\n{table.to_string(index=False, float_format='%.3f')}")
    for path in sorted(FOLDER.glob("*.safetensors")):
        print(path.name, f"{path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
