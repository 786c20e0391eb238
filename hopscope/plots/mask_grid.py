"""Provides mask_grid(): who sees whom, with the parts of the prompt named along both sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from hopscope.plots.style import BLUE, axes_or_new, text_size

MASK_COLORS = ("#F4F4F4", BLUE)


_Part = tuple[int, int, str]
"""The first token of a part, the one after its last, and its name."""


_TURN = 40
"""By how many degrees the names below a mask are turned."""


class Parts(Protocol):
    """A prompt whose parts have names.

    Attributes:
        segments: the first token of each part and the one after its last.
        segment_names: what the parts are called.
    """

    @property
    def segments(self) -> Sequence[tuple[int, int]]: ...
    @property
    def segment_names(self) -> Sequence[str]: ...


def mask_grid(seen: np.ndarray, layout: Parts, ax: Axes | None = None, title: str = "") -> Axes:
    """Who sees whom: a row for each token that looks, a column for each that is seen.

    Args:
        seen: booleans of shape (query, key).
        layout: the prompt, whose parts are named along both sides.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.9)
    colors = mpl.colors.ListedColormap(MASK_COLORS)
    ax.imshow(seen, cmap=colors, vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    named = zip(layout.segments, layout.segment_names, strict=True)
    parts = [(a, b, name) for (a, b), name in named if b > a]
    length = min(ax.bbox.width, ax.bbox.height)  # a square, once it is drawn
    turned = _apart(parts, len(seen), length * math.sin(math.radians(_TURN)), ax)
    ax.set_xticks(*_middles(turned), rotation=_TURN, ha="right", rotation_mode="anchor")
    ax.set_yticks(*_middles(_apart(parts, len(seen), length, ax)))
    ax.tick_params(length=0)
    for start, _, _ in parts[1:]:
        ax.axhline(start - 0.5, color="white", lw=0.8)
        ax.axvline(start - 0.5, color="white", lw=0.8)
    ax.set(title=title)
    for side in ax.spines.values():
        side.set_visible(False)
    return ax


def _middles(parts: Sequence[_Part]) -> tuple[list[float], list[str]]:
    """Where parts are named, and their names."""
    return [(a + b - 1) / 2 for a, b, _ in parts], [name for _, _, name in parts]


def _apart(parts: Sequence[_Part], n: int, pixels: float, ax: Axes) -> list[_Part]:
    """The parts that can be named along n tokens without touching.

    Those that answer come before other documents, and longer ones before shorter ones.
    """
    points = pixels * 72 / ax.figure.dpi
    room = 1.15 * text_size() * n / points
    told: list[_Part] = []
    for part in sorted(parts, key=lambda each: (each[2].startswith("document"), each[0] - each[1])):
        if all(abs(sum(part[:2]) - sum(each[:2])) / 2 >= room for each in told):
            told.append(part)
    return sorted(told)
