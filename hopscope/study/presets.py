"""Provides the presets: how much a study runs."""

from __future__ import annotations

from dataclasses import dataclass

from hopscope.errors import one_of


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
        probed: queries that are probed at most, graded or not.
        need: queries of each subset, for which more than `limit` are graded if they are there.
        setting: the preset of the analyses that have it (see `Analysis.parity`), in which queries
            have no demonstrations; None for what the analyses do by themselves.
    """

    limit: int | None
    most: int | None
    layer_step: int
    questions: int = 500
    shuffles: int = 20
    of_world: int = 1000
    need: int = 0
    probed: int = 1000
    setting: str | None = None


PRESETS = {
    "quick": Preset(limit=256, most=16, layer_step=3, questions=40, shuffles=8, of_world=36),
    "paper": Preset(None, None, 1),
    "hopping-too-late": Preset(None, None, 1, setting="hopping-too-late"),
}


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UsageError: if there is none.
    """
    return PRESETS[one_of("preset", name, PRESETS)]
