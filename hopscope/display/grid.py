"""Provides Grid: the contents of an interactive heatmap as plain data, without widget or model.

A grid has two axes, choices (such as query, position, control) and, for each combination of
choices, a slice: a number per cell for each measure, and texts about the selected cell.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd

Kind = Literal["share", "probability", "rank", "number", "yes"]
"""The kind of a measure, which decides its format and shading; ranks near 0 are dark."""
Json = dict[str, Any]
EVERYTHING = "*"
"""The value of the option for the mean over all queries."""


class Option(NamedTuple):
    """One of the values of a choice, with its label."""

    value: str
    label: str


@dataclass(frozen=True)
class Choice:
    """A choice that the user can make, such as the query.

    Attributes:
        name: name of the choice, as in `GridWidget.chosen`.
        label: label of the choice in the view.
        options: the options in order; the first is the default.
    """

    name: str
    label: str
    options: tuple[Option, ...]

    @classmethod
    def of(cls, name: str, label: str, values: Sequence[str], labels: Mapping[str, str]) -> Choice:
        """Create a choice among values; a value without a label is its own label."""
        return cls(name, label, tuple(Option(each, labels.get(each, each)) for each in values))


class Axis(NamedTuple):
    """The label of an axis, its values in ascending order, and optionally names for the values."""

    label: str
    values: tuple[int, ...]
    names: tuple[str, ...] = ()

    def as_json(self) -> Json:
        """Return the axis in the form that the JavaScript view reads."""
        names = {"names": list(self.names)} if self.names else {}
        return {"label": self.label, "values": list(self.values), **names}


class Measure(NamedTuple):
    """A number per cell: its name (a column), its label and its kind."""

    name: str
    label: str
    kind: Kind


@dataclass(frozen=True)
class Slice:
    """The contents of a grid for one combination of choices.

    Attributes:
        cells: one row per cell, indexed by y and x; a column for each measure and text.
        measures: the measures by which cells can be shaded.
        texts: columns with a text about each cell, by label.
        facts: pairs of a label and a text that are shown for all cells.
        marked: a measure whose cells of value 1 are marked, so that colour is not the only cue.
        inside: label of a text that is written into the cells, which are then wide.
        largest: value at the dark end of the scale, by measure, so that slices can be compared;
            for other measures, the largest value of the slice.
    """

    cells: pd.DataFrame
    measures: tuple[Measure, ...]
    texts: Mapping[str, str] = field(default_factory=dict)
    facts: tuple[tuple[str, str], ...] = ()
    marked: str | None = None
    inside: str | None = None
    largest: Mapping[str, float] = field(default_factory=dict)

    def as_json(self, x: Sequence[int], y: Sequence[int]) -> Json:
        """Return the slice in the form that the view reads.

        Args:
            x, y: values of the axes. Cells are listed row by row, from the first value of y;
                missing cells are null.
        """
        cells = self.cells.reindex(pd.MultiIndex.from_product([y, x]))
        return {
            "measures": [
                {
                    **each._asdict(),
                    "values": _numbers(cells[each.name]),
                    "largest": self.largest.get(each.name),
                }
                for each in self.measures
            ],
            "texts": [
                {"label": label, **_coded(cells[column])} for label, column in self.texts.items()
            ],
            "facts": [list(fact) for fact in self.facts],
            "marked": self.marked,
            "inside": self.inside,
        }


def _numbers(column: pd.Series[Any]) -> list[float | None]:
    values = column.to_numpy(dtype=float)
    return [_short(each) if np.isfinite(each) else None for each in values]  # JSON has no others


def _short(value: float) -> float:
    """Round to four significant digits, and to an integer if equal, to keep pages small."""
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() else short


def _coded(column: pd.Series[Any]) -> Json:
    """Encode texts as indices into a list of distinct texts; -1 where a text is missing."""
    codes, words = pd.factorize(column.to_numpy(dtype=object))
    return {"codes": codes.tolist(), "words": [str(word) for word in words]}


class Grid(Protocol):
    """The contents of an interactive heatmap.

    Attributes:
        title: title of the heatmap.
        x, y: the axes; y increases upwards, as layers do in all figures.
        choices: the choices that the user can make.
    """

    @property
    def title(self) -> str: ...
    @property
    def x(self) -> Axis: ...
    @property
    def y(self) -> Axis: ...
    @property
    def choices(self) -> tuple[Choice, ...]: ...

    def slice(self, chosen: Mapping[str, str]) -> Slice:
        """Return the contents for one option of each choice, given by the names of the choices."""


def spec_of(grid: Grid) -> Json:
    """Return a grid without its slices, in the form that the view reads."""
    return {
        "title": grid.title,
        "x": grid.x.as_json(),
        "y": grid.y.as_json(),
        "choices": [
            {
                "name": each.name,
                "label": each.label,
                "options": [option._asdict() for option in each.options],
            }
            for each in grid.choices
        ],
    }


def first_choice(grid: Grid) -> dict[str, str]:
    """Return the default option of each choice."""
    return {each.name: each.options[0].value for each in grid.choices}


def key_of(grid: Grid, chosen: Mapping[str, str]) -> str:
    """Return the key of the slice of some choices, which the view computes in the same way."""
    return json.dumps([chosen[each.name] for each in grid.choices], separators=(",", ":"))


def slice_json(grid: Grid, chosen: Mapping[str, str]) -> Json:
    """Return the slice of some choices, in the form that the view reads."""
    return grid.slice(chosen).as_json(grid.x.values, grid.y.values)


def all_chosen(choices: Sequence[Choice]) -> Iterator[dict[str, str]]:
    """Yield all combinations of options; the first choice varies slowest."""
    names = [each.name for each in choices]
    for values in itertools.product(*([o.value for o in each.options] for each in choices)):
        yield dict(zip(names, values, strict=True))
