"""Provides LensGrid: the logit lens of one prompt as an interactive heatmap, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from hopscope.display.grid import Axis, Choice, Measure, Slice
from hopscope.engine.logit_lens import logit_lens
from hopscope.models.language_model import LanguageModel
from hopscope.probes.logit_lens import rank_among
from hopscope.prompting.capture import capture
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.query_set import QuerySet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENTITIES: Mapping[Literal["e2", "e3"], Literal["bridge", "answer"]] = {
    "e2": "bridge",
    "e3": "answer",
}
"""The entities that states are read for, as the views call them."""


@dataclass(frozen=True)
class LensGrid:
    """The logit lens of one prompt: tokens × layers, with the next token that each state predicts.

    Attributes:
        tokens: the tokens of the prompt after its demonstrations, with the part of each token.
        states: one row for each layer and token: the most likely next token, ranks and
            probabilities.
        measures: the numeric columns of `states`.
        title: title of the grid.
    """

    tokens: tuple[dict[str, str], ...]
    states: pd.DataFrame
    measures: tuple[Measure, ...]
    title: str

    @classmethod
    @torch.no_grad()
    def of(cls, model: LanguageModel, single: QuerySet) -> LensGrid:
        """Apply the logit lens to the residual stream of the only query in a set."""
        query, prompt = single[0], single.prompts()[0]
        tokens = TokenizedPrompt.of(model, prompt)
        shown = range(tokens.n_shared, len(tokens.ids))
        states = capture(model, [prompt], positions=list(shown))["resid_post"][0]
        lens = logit_lens(model)
        first: dict[str, Sequence[int]] = {
            entity: model.answer_tokens(
                query.names(entity),
                required=False,
                after=prompt.end,
                beside=query.names("e3" if entity == "e2" else "e2"),
            )
            for entity in ENTITIES
        }
        # One token at a time: with a large vocabulary, all logits would take gigabytes.
        by_token = [_predictions(lens(state).float(), first) for state in states]
        read = {name: torch.stack([each[name] for each in by_token], dim=1) for name in by_token[0]}
        columns = {name: table.flatten().cpu().numpy() for name, table in read.items()}
        words = [_printable(model.decode([token])) for token in columns.pop("token").tolist()]
        places = pd.MultiIndex.from_product([range(model.n_layers), range(len(shown))])
        return cls(
            tuple(_described(tokens, each) for each in shown),
            pd.DataFrame({**columns, "word": words}, index=places),
            _lens_measures(),
            f"Logit lens: {model.name}",
        )

    @property
    def x(self) -> Axis:
        names = tuple(_printable(each["text"]) for each in self.tokens)
        return Axis("token", tuple(range(len(names))), names)

    @property
    def y(self) -> Axis:
        return Axis("layer", tuple(self.states.index.unique(0)))

    @property
    def choices(self) -> tuple[Choice, ...]:
        return ()

    def slice(self, _: Mapping[str, str]) -> Slice:
        """Return the only slice."""
        return Slice(self.states, self.measures, {"likeliest": "word"}, inside="likeliest")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the likeliest next token of each state, shaded by its probability."""
        from hopscope.plots import heatmaps

        top, words = (self.states[name].unstack() for name in ("top", "word"))
        return heatmaps.lens_heatmap(top, words, self.x.names, ax, title="logit lens")


def _lens_measures() -> tuple[Measure, ...]:
    """Return the measures of the lens, in the order in which the view offers them."""
    measures = [Measure("top", "P(likeliest)", "probability")]
    for entity, name in ENTITIES.items():
        measures.append(Measure(f"{entity}_rank", f"rank of the {name}, from 0", "rank"))
        measures.append(Measure(f"{entity}_p", f"P({name})", "probability"))
    return tuple(measures)


def _predictions(
    logits: Float[Tensor, "layer vocab"], first: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return the most likely token and the measures of `_lens_measures`, each of shape (layer,).

    Args:
        logits: logits of the states of one token.
        first: next tokens that tell each entity from the other; one without any is not ranked
            (NaN).
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    likeliest = logprobs.max(dim=-1)
    read = {"token": likeliest.indices, "top": likeliest.values.exp()}
    for entity, tokens in first.items():
        if not tokens:
            nowhere = torch.full_like(likeliest.values, torch.nan)
            read |= {f"{entity}_rank": nowhere, f"{entity}_p": nowhere}
            continue
        best = logprobs[:, list(tokens)].amax(dim=-1)
        read[f"{entity}_rank"] = rank_among(logprobs, best)
        read[f"{entity}_p"] = best.exp()
    return read


def _printable(word: str) -> str:
    """Return a token's text without white space around it; visible signs if it is only that."""
    return word.strip() or word.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def _described(tokens: TokenizedPrompt, index: int) -> dict[str, str]:
    """Return the text of a token, its part of the prompt, and the name of its position if any."""
    start, end = tokens.offsets[index]
    parts = [part for part in ("e1", "r1", "r2") if index in tokens.tokens(part)]
    names = [name for name in ("t1", "t2") if index == tokens.position(name)]
    text = tokens.prompt.text[start:end]
    return {"text": text, "part": parts[0] if parts else "r2", "name": ", ".join(names)}
