"""Provides mask_grid(): draws an attention mask, with the parts of the prompt as tick labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from hopscope.plots.style import BLUE, axes_or_new, text_size

MASK_COLORS = ("#F4F4F4", BLUE)
"""Colours of blocked and of allowed attention."""


_Part = tuple[int, int, str]
"""The half-open token range of a part, and its name."""


_ROTATION = 40
"""Rotation of the labels below a mask, in degrees."""


class Parts(Protocol):
    """A prompt with named parts, such as a `Layout`.

    Attributes:
        segments: half-open token range of each part.
        segment_names: names of the parts.
    """

    @property
    def segments(self) -> Sequence[tuple[int, int]]: ...
    @property
    def segment_names(self) -> Sequence[str]: ...


def mask_grid(seen: np.ndarray, layout: Parts, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw a keep-mask: query tokens as rows, key tokens as columns.

    Args:
        seen: True where the query token may attend to the key token, shape (query, key).
        layout: the prompt, whose parts label both axes.
        ax: the axes to draw on; new ones if None.
        title: title of the axes.

    Returns:
        The axes.
    """
    ax = axes_or_new(ax, 2.9)
    colors = mpl.colors.ListedColormap(MASK_COLORS)
    ax.imshow(seen, cmap=colors, vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    named = zip(layout.segments, layout.segment_names, strict=True)
    parts = [(a, b, name) for (a, b), name in named if b > a]
    length = min(ax.bbox.width, ax.bbox.height)  # the axes become square when drawn
    labelled = _without_overlaps(parts, len(seen), length * math.sin(math.radians(_ROTATION)), ax)
    ax.set_xticks(*_middles(labelled), rotation=_ROTATION, ha="right", rotation_mode="anchor")
    ax.set_yticks(*_middles(_without_overlaps(parts, len(seen), length, ax)))
    ax.tick_params(length=0)
    for start, _, _ in parts[1:]:
        ax.axhline(start - 0.5, color="white", lw=0.8)
        ax.axvline(start - 0.5, color="white", lw=0.8)
    ax.set(title=title)
    for side in ax.spines.values():
        side.set_visible(False)
    return ax


def _middles(parts: Sequence[_Part]) -> tuple[list[float], list[str]]:
    """Return the middle of each part, and its name."""
    return [(a + b - 1) / 2 for a, b, _ in parts], [name for _, _, name in parts]


def _without_overlaps(parts: Sequence[_Part], n: int, pixels: float, ax: Axes) -> list[_Part]:
    """Choose the parts whose labels fit along an axis of n tokens without overlapping.

    Other parts have priority over distractor documents, and longer parts over shorter ones.
    """
    points = pixels * 72 / ax.figure.dpi
    room = 1.15 * text_size() * n / points
    chosen: list[_Part] = []
    for part in sorted(parts, key=lambda each: (each[2].startswith("document"), each[0] - each[1])):
        if all(abs(sum(part[:2]) - sum(each[:2])) / 2 >= room for each in chosen):
            chosen.append(part)
    return sorted(chosen)
