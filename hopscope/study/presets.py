"""Provides the presets: how much a study runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from hopscope.documents.question_set import QuestionSet
from hopscope.errors import UsageError
from hopscope.queries.query_set import QuerySet


@dataclass(frozen=True)
class Preset:
    """How much is run.

    Attributes:
        limit: queries that are graded; all if None.
        most: queries of each subset that are analysed; all if None.
        layer_step: only every so many layers are sources and targets, or probed.
        questions: questions over documents that are asked.
        shuffles: orders of their documents among which one is chosen.
        of_world: questions of each split of a world.
    """

    limit: int | None
    most: int | None
    layer_step: int
    questions: int = 500
    shuffles: int = 20
    of_world: int = 1000


PRESETS = {
    "quick": Preset(limit=256, most=16, layer_step=3, questions=40, shuffles=8, of_world=36),
    "paper": Preset(None, None, 1),
}


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UsageError: if there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


S = TypeVar("S", QuerySet, QuestionSet)


def limited(queries: S, limit: int | None, seed: int = 0) -> S:
    """At most `limit` queries, drawn by seed."""
    return queries if limit is None or limit >= len(queries) else queries.sample(limit, seed)


def layer_cells(n_layers: int, step: int) -> list[tuple[int, int]] | None:
    """All (source, target) pairs with source > target of every `step`-th layer; None for all."""
    if step < 1:
        raise UsageError(f"the layer step must be 1 or more, not {step}")
    layers = range(0, n_layers, step)
    return None if step == 1 else [(a, b) for a in layers for b in layers if a > b]
