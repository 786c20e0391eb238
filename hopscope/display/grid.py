"""Provides Grid: what an interactive heatmap shows, as plain data; no widget and no model.

A grid has two axes, choices (which query, position, control) and, for each combination of these, a
slice: a number a cell for each measure, and what is told of the cell that is pointed at.
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
"""How a measure is written and shaded: a rank is darker the nearer it is to 0."""
Json = dict[str, Any]
EVERYTHING = "*"
"""The option that stands for the mean over all queries."""


class Option(NamedTuple):
    """One of the values of a choice, and what it is called."""

    value: str
    label: str


@dataclass(frozen=True)
class Choice:
    """What can be chosen beside the cell.

    Attributes:
        name: of the choice, as in `GridWidget.chosen`.
        label: what it is called in the view.
        options: in their order; the first is chosen at the start.
    """

    name: str
    label: str
    options: tuple[Option, ...]

    @classmethod
    def of(cls, name: str, label: str, values: Sequence[str], labels: Mapping[str, str]) -> Choice:
        """A choice among values, called by their labels where they have any."""
        return cls(name, label, tuple(Option(each, labels.get(each, each)) for each in values))


class Axis(NamedTuple):
    """A label, the numbers along an axis in ascending order, and names for them, if any."""

    label: str
    values: tuple[int, ...]
    names: tuple[str, ...] = ()

    def as_json(self) -> Json:
        """The axis as its view reads it."""
        return {"label": self.label, "values": list(self.names or self.values)}


class Measure(NamedTuple):
    """One number a cell: its name, what it is called, and how it is written."""

    name: str
    label: str
    kind: Kind


@dataclass(frozen=True)
class Slice:
    """What a grid shows once everything is chosen.

    Attributes:
        cells: one row a cell, indexed by y and x; a column for each measure and text.
        measures: by which cells can be shaded.
        texts: the columns that are told of each cell in words, by what they are called.
        facts: what is told beside, whichever cell is pointed at.
        marked: the measure whose value of 1 gets a mark, so that colour is not all there is.
        inside: the text that is written into the cells, which are wide then.
        largest: by measure, the value that is darkest, where slices are to be compared; the
            slice's own largest elsewhere.
    """

    cells: pd.DataFrame
    measures: tuple[Measure, ...]
    texts: Mapping[str, str] = field(default_factory=dict)
    facts: tuple[tuple[str, str], ...] = ()
    marked: str | None = None
    inside: str | None = None
    largest: Mapping[str, float] = field(default_factory=dict)

    def as_json(self, x: Sequence[int], y: Sequence[int]) -> Json:
        """The slice as its view reads it: cells in rows from y's first value on, null if blank."""
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
    return [None if np.isnan(each) else _short(each) for each in values]


def _short(value: float) -> float:
    """Four digits, and no point where none is needed: a page holds many of them."""
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() else short


def _coded(column: pd.Series[Any]) -> Json:
    """Texts as the numbers of words that are written once; -1 where there is none."""
    codes, words = pd.factorize(column.to_numpy(dtype=object))
    return {"codes": codes.tolist(), "words": [str(word) for word in words]}


class Grid(Protocol):
    """What an interactive heatmap shows.

    Attributes:
        title: of the whole.
        x, y: the axes; y grows upwards, as layers do in all pictures.
        choices: what can be chosen.
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
        """What is shown when every choice is made."""


def spec_of(grid: Grid) -> Json:
    """All of a grid but its slices, as its view reads it."""
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
    """The first option of each choice."""
    return {each.name: each.options[0].value for each in grid.choices}


def key_of(grid: Grid, chosen: Mapping[str, str]) -> str:
    """What the slice of some choices is called; the view makes the same of them."""
    return json.dumps([chosen[each.name] for each in grid.choices], separators=(",", ":"))


def slice_json(grid: Grid, chosen: Mapping[str, str]) -> Json:
    """The slice of some choices, as its view reads it."""
    return grid.slice(chosen).as_json(grid.x.values, grid.y.values)


def all_chosen(choices: Sequence[Choice]) -> Iterator[dict[str, str]]:
    """Every combination of choices; the first one changes slowest."""
    names = [each.name for each in choices]
    for values in itertools.product(*([o.value for o in each.options] for each in choices)):
        yield dict(zip(names, values, strict=True))
