"""Provides attention_view(): the attention patterns of a prompt, with layer and head to choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from hopscope.display.grid import EVERYTHING, Axis, Choice, Measure, Option, Slice
from hopscope.display.notebook import bundle_of, picture_of
from hopscope.display.widgets import GridWidget
from hopscope.errors import UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.capture import capture
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.prompts import Prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = (
    Measure("weight", "attention", "probability"),
    Measure("over_even", "times an even share", "number"),
)


@dataclass(frozen=True, repr=False)
class AttentionPatterns:
    """The attention weights of one prompt; a notebook shows them as a heatmap to choose from.

    Attributes:
        model: name of the model.
        prompt: its text.
        tokens: the texts of its tokens, special ones included.
        weights: of every query token to every key token; they sum to 1 over keys.
    """

    model: str
    prompt: str
    tokens: tuple[str, ...]
    weights: Float[Tensor, "layer head query key"]

    def __repr__(self) -> str:
        n_layers, n_heads, n_tokens, _ = self.weights.shape
        return (
            f"AttentionPatterns({self.model}, {n_tokens} tokens, {n_layers} layers, "
            f"{n_heads} heads)"
        )

    def _repr_mimebundle_(self, **_: Any) -> Mapping[str, Any]:
        return bundle_of(self)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a layer, head, query and key token that it sees: `weight`, and `over_even`.

        `over_even` is the weight as a multiple of what a head has that attends to all tokens up to
        its own evenly: 1 is no preference.
        """
        layer, head, query, key = np.indices(self.weights.shape).reshape(4, -1)
        weight = self.weights.numpy().reshape(-1)
        rows = {"layer": layer, "head": head, "query": query, "key": key, "weight": weight}
        table = pd.DataFrame(rows).assign(over_even=weight * (query + 1))
        return table[table["key"] <= table["query"]].reset_index(drop=True)

    def pattern(self, layer: int, head: int | None = None) -> Float[Tensor, "query key"]:
        """The weights of one head, or the mean over the heads of a layer.

        Raises:
            UsageError: for a layer or head that the model has not.
        """
        n_layers, n_heads = self.weights.shape[:2]
        for kind, number, n in (("layer", layer, n_layers), ("head", head or 0, n_heads)):
            if not 0 <= number < n:
                raise UsageError(f"no {kind} {number}: the model has {kind}s 0 to {n - 1}")
        chosen: Tensor = self.weights[layer].mean(0) if head is None else self.weights[layer, head]
        return chosen

    def grid(self) -> PatternGrid:
        """What the interactive heatmap shows."""
        return PatternGrid(self)

    def view(self) -> GridWidget:
        """The interactive heatmap, to keep and to steer.

        Example:
            >>> view = patterns.view()                                     # doctest: +SKIP
            >>> view.chosen = {**view.chosen, "layer": "23", "head": "4"}  # doctest: +SKIP
        """
        return GridWidget(self.grid(), lambda: picture_of(self))

    def to_html(self, path: str | Path) -> Path:
        """Write the interactive heatmap as one HTML file that opens without a kernel.

        Raises:
            PlaceError, WriteError: if the file cannot be written.
        """
        return self.view().to_html(path)

    def plot(self, layer: int = 0, head: int | None = None, ax: Axes | None = None) -> Axes:
        """Draw the pattern of one head, or the mean over a layer's heads; queries are rows.

        Raises:
            UsageError: for a layer or head that the model has not.
        """
        from hopscope.plots.heatmaps import token_heatmap

        title = f"layer {layer}, {'mean of heads' if head is None else f'head {head}'}"
        return token_heatmap(self.pattern(layer, head).numpy(), self.tokens, ax, title, "attention")


@dataclass(frozen=True)
class PatternGrid:
    """Query × key tokens of one head, or of the mean over a layer's heads."""

    patterns: AttentionPatterns

    @property
    def title(self) -> str:
        return f"Attention of {self.patterns.model}"

    @property
    def x(self) -> Axis:
        return Axis("key", tuple(range(len(self.patterns.tokens))), self.patterns.tokens)

    @property
    def y(self) -> Axis:
        """The first token stands on top, so queries are counted down from 0."""
        tokens = self.patterns.tokens
        return Axis("query", tuple(range(1 - len(tokens), 1)), tokens[::-1])

    @property
    def choices(self) -> tuple[Choice, ...]:
        n_layers, n_heads = self.patterns.weights.shape[:2]
        mean = Option(EVERYTHING, f"mean of {n_heads}")
        layers, heads = (
            tuple(Option(str(each), str(each)) for each in range(n)) for n in (n_layers, n_heads)
        )
        return Choice("layer", "layer", layers), Choice("head", "head", (mean, *heads))

    def slice(self, chosen: Mapping[str, str]) -> Slice:
        """The pattern of one head, or the mean over the heads of a layer."""
        head = None if chosen["head"] == EVERYTHING else int(chosen["head"])
        weights = self.patterns.pattern(int(chosen["layer"]), head).numpy()
        query, key = np.tril_indices(len(weights))
        found = weights[query, key]
        cells = pd.DataFrame({"weight": found, "over_even": found * (query + 1)})
        cells.index = pd.MultiIndex.from_arrays([-query, key])
        facts = (("prompt", self.patterns.prompt),)
        return Slice(cells, MEASURES, facts=facts, largest={"weight": 1.0})


def attention_view(model: LanguageModel, prompt: Prompt | str) -> AttentionPatterns:
    """Read the attention patterns of a prompt, and show them with layer and head to choose.

    Beside each weight stands how many times an even share it is. All patterns are held: as many
    numbers as layers × heads × tokens².

    Args:
        model: the model.
        prompt: one of `QuerySet.prompts()`, or a text.

    Raises:
        UsageError: if it is empty or too long for the model's context.
        ModelError: if the attention of the model cannot be read.

    Example:
        >>> attention_view(model, "The capital of the country of Kyoto is")  # doctest: +SKIP
    """
    tokenized = TokenizedPrompt.of(model, prompt)
    everywhere = range(len(tokenized.ids))
    found = capture(model, [tokenized.prompt], ("attn_pattern",), everywhere, device="cpu")
    weights = found["attn_pattern"][0].float().permute(1, 2, 0, 3).contiguous()
    tokens = tuple(model.decode([token]) for token in tokenized.ids)
    return AttentionPatterns(model.name, tokenized.prompt.text, tokens, weights)
