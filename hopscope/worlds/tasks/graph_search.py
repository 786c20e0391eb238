"""Provides GraphSearch: graphs that stand in the prompt, in which the next step is looked for.

The task of Saparov et al. 2024 (Transformers Struggle to Learn to Search): edges `E u v`, then
`Q start goal P start`, which the next vertex on the way to the goal must follow. How far one must
look ahead to tell it from the other neighbours of the start is balanced.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from hopscope.errors import UsageError
from hopscope.queries.graph_paths import PathPrompt
from hopscope.worlds.tasks.examples import Batch, Written, tabulated
from hopscope.worlds.tasks.two_hop_facts import names

TESTED = 1000


class Graph(NamedTuple):
    """Edges in the order of the prompt, what is asked, and how far one must look ahead."""

    edges: tuple[tuple[str, str], ...]
    start: str
    goal: str
    answer: str
    lookahead: int

    @property
    def prompt(self) -> tuple[str, ...]:
        """The words of the prompt."""
        edges = [word for edge in self.edges for word in ("E", *edge)]
        return (*edges, "Q", self.start, self.goal, "P", self.start)

    @property
    def written(self) -> Written:
        """The prompt and its answer."""
        return Written(self.prompt, (self.answer,), ended=False)


@dataclass(frozen=True)
class GraphSearch:
    """Graphs drawn anew for every step, whose lookahead is uniform from 1 to `farthest`.

    From the start `n_branches` paths of as many steps as the lookahead lead away, one of them to
    the goal; all other edges begin at vertices that cannot be reached from the start, so that
    they open no other way, whatever they lead to.

    Attributes:
        n_vertices: how many vertices there are.
        n_edges: of each graph.
        n_branches: paths that lead away from the start.
        farthest: the largest lookahead.
        seed: of all that is drawn.

    Raises:
        UsageError: for branches that do not fit.
    """

    kind: ClassVar[str] = "graph_search"
    splits: ClassVar[tuple[str, ...]] = ("in_distribution",)

    n_vertices: int = 10
    n_edges: int = 8
    n_branches: int = 2
    farthest: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_branches < 2 or self.farthest < 1:
            raise UsageError("a search needs at least two branches, and a lookahead of 1 or more")
        for lookahead in range(1, self.farthest + 1):
            on_the_way = self.n_branches * lookahead
            reached = 1 + on_the_way
            others = self.n_vertices - reached
            spare = others * (others - 1) // 2 + others * reached
            if others < 0 or not 0 <= self.n_edges - on_the_way <= spare:
                raise UsageError(
                    f"{self.n_vertices} vertices and {self.n_edges} edges do not fit "
                    f"{self.n_branches} branches of {lookahead} steps"
                )

    @property
    def vertices(self) -> tuple[str, ...]:
        """The names of the vertices."""
        return names("v", self.n_vertices)

    @property
    def words(self) -> tuple[str, ...]:
        """All words of the world."""
        return (*self.vertices, "E", "Q", "P")

    @property
    def longest(self) -> int:
        """Tokens of a prompt with its answer."""
        return 3 * self.n_edges + 6

    def _graph(self, rng: random.Random, lookahead: int) -> Graph:
        start, *rest = rng.sample(self.vertices, self.n_vertices)
        branches = [rest[at * lookahead : (at + 1) * lookahead] for at in range(self.n_branches)]
        on_the_way = [
            edge for branch in branches for edge in zip([start, *branch], branch, strict=False)
        ]
        # Edges from what the start does not reach, forward in an order, so that no cycle closes.
        others = rest[self.n_branches * lookahead :]
        reached = [start, *rest[: self.n_branches * lookahead]]
        spare = [(a, b) for place, a in enumerate(others) for b in (*others[place + 1 :], *reached)]
        edges = on_the_way + rng.sample(spare, self.n_edges - len(on_the_way))
        rng.shuffle(edges)
        return Graph(tuple(edges), start, branches[0][-1], branches[0][0], lookahead)

    def batches(self, vocabulary: Mapping[str, int], end: int, size: int) -> Callable[[int], Batch]:
        """Batches of new graphs."""

        def drawn(step: int) -> Batch:
            rngs = [random.Random(f"{self.seed} {step} {row}") for row in range(size)]
            graphs = [self._graph(rng, rng.randint(1, self.farthest)) for rng in rngs]
            return tabulated([graph.written for graph in graphs], vocabulary, end)

        return drawn

    def graphs(self) -> Iterator[Graph]:
        """Graphs that are asked about, as many of each lookahead as fit."""
        for number in range(TESTED):
            rng = random.Random(f"{self.seed} test {number}")
            yield self._graph(rng, 1 + number % self.farthest)

    def tests(self) -> Mapping[str, Sequence[Written]]:
        """What accuracy is measured on: all, and by lookahead."""
        graphs = list(self.graphs())
        found = {"in_distribution": [graph.written for graph in graphs]}
        for lookahead in range(1, self.farthest + 1):
            own = [graph.written for graph in graphs if graph.lookahead == lookahead]
            found[f"lookahead_{lookahead}"] = own
        return found

    def path_prompts(self) -> list[PathPrompt]:
        """The same prompts for `computation_graph`; they are grouped by lookahead."""
        prompts = []
        for number, graph in enumerate(self.graphs()):
            edges = tuple((3 * at + 1, 3 * at + 2) for at in range(self.n_edges))
            start = len(graph.prompt) - 1
            ends = {"start": start, "goal": start - 2, "group": graph.lookahead}
            text = " ".join(graph.prompt)
            prompts.append(PathPrompt(str(number), text, graph.answer, edges, **ends))
        return prompts
