"""Provides PathPrompt: a prompt that lists the edges of a graph and asks for a path in it."""

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
    """A prompt that lists the edges of a graph and asks for a step on the path to a goal.

    Attributes:
        id: identifier, unique within a set.
        text: the prompt.
        answer: the correct continuation.
        edges: for each edge, the token indices of its two vertices in the prompt.
        start, goal: token indices of the two ends of the path, at any of their mentions.
        group: a number by which examples are grouped, such as the lookahead.

    Raises:
        QueryError: if there is no edge, or if a token index is negative.
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
            raise QueryError(f"path prompt {self.id!r} needs edges, and token indices of 0 or more")


@dataclass(frozen=True, repr=False)
class PathSet(Sequence[PathPrompt]):
    """An immutable sequence of path prompts, with distinct ids.

    Args:
        prompts: the prompts.
        name: name of the set in results.

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
        """sha256 over all prompts."""
        return hashlib.sha256(json.dumps([asdict(each) for each in self]).encode()).hexdigest()


def reachable(edges: Iterable[tuple[str, str]], start: str) -> dict[str, int]:
    """Return the vertices that can be reached from `start`, each with its distance in steps."""
    edges, distances, frontier, depth = list(edges), {start: 0}, {start}, 0
    while frontier:
        depth += 1
        frontier = {b for a, b in edges if a in frontier} - set(distances)
        distances |= dict.fromkeys(sorted(frontier), depth)
    return distances
