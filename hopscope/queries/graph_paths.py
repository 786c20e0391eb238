"""Provides PathPrompt: a prompt in which a graph stands, and which asks for a way through it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import overload

from hopscope.errors import QueryError

Edge = tuple[int, int]


@dataclass(frozen=True)
class PathPrompt:
    """A prompt with the edges of a graph, which asks for a step on the way to a goal.

    Attributes:
        id: unique within a set.
        text: the prompt.
        answer: what should follow it.
        edges: of each edge the places of its two vertices in the prompt, in tokens.
        start, goal: places of the vertices that a path joins; any of their mentions.
        group: what examples are told apart by, such as the lookahead.

    Raises:
        QueryError: if there is no edge, or a place is negative.
    """

    id: str
    text: str
    answer: str
    edges: tuple[Edge, ...]
    start: int
    goal: int
    group: int = 0

    def __post_init__(self) -> None:
        places = [self.start, self.goal, *(place for edge in self.edges for place in edge)]
        if not self.edges or min(places) < 0:
            raise QueryError(f"path prompt {self.id!r} needs edges, and places from 0 on")


@dataclass(frozen=True, repr=False)
class PathSet(Sequence[PathPrompt]):
    """An immutable sequence of path prompts, with distinct ids.

    Args:
        prompts: the prompts.
        name: what the set is called in results.

    Raises:
        QueryError: for repeated ids.
    """

    prompts: tuple[PathPrompt, ...]
    name: str = "paths"
    few_shot: int = 0
    few_shot_seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if len({each.id for each in self.prompts}) < len(self.prompts):
            raise QueryError(f"{self.name}: two path prompts have the same id; ids must differ")

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[PathPrompt]:
        return iter(self.prompts)

    @overload
    def __getitem__(self, index: int) -> PathPrompt: ...
    @overload
    def __getitem__(self, index: slice) -> PathSet: ...
    def __getitem__(self, index: int | slice) -> PathPrompt | PathSet:
        if isinstance(index, slice):
            return replace(self, prompts=self.prompts[index])
        return self.prompts[index]

    def __repr__(self) -> str:
        return f"PathSet({self.name!r}, {len(self)} prompts)"

    @property
    def fingerprint(self) -> str:
        """The sha256 of all prompts."""
        return hashlib.sha256(json.dumps([asdict(each) for each in self]).encode()).hexdigest()


def reachable(edges: Iterable[tuple[str, str]], start: str) -> dict[str, int]:
    """The vertices that directed edges lead to from one, each with the least number of steps."""
    edges, found, frontier, depth = list(edges), {start: 0}, {start}, 0
    while frontier:
        depth += 1
        frontier = {b for a, b in edges if a in frontier} - set(found)
        found |= dict.fromkeys(sorted(frontier), depth)
    return found
