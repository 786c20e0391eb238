"""Provides GraphSearch: the prompt lists a graph, and asks for the next step on a path to a goal.

The task of Saparov et al. 2024 (Transformers Struggle to Learn to Search): edges `E u v`, then
`Q start goal P start`, to be followed by the next vertex on the path to the goal. Examples are
balanced by their lookahead: the number of steps that must be searched to identify that vertex.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from hopscope.errors import UsageError
from hopscope.queries.graph_paths import PathPrompt
from hopscope.worlds.tasks.examples import Example, TaskBatch, as_batch
from hopscope.worlds.tasks.two_hop_facts import names

TESTED = 1000
"""Number of test graphs."""


class Graph(NamedTuple):
    """Edges in the order of the prompt, the query with its answer, and the lookahead."""

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
    def written(self) -> Example:
        """The prompt and its answer."""
        return Example(self.prompt, (self.answer,), ended=False)


@dataclass(frozen=True)
class GraphSearch:
    """Graphs that are newly drawn at each step, with a lookahead uniform from 1 to `farthest`.

    `n_branches` paths lead away from the start, each with as many steps as the lookahead, and one
    of them ends at the goal. All other edges begin at vertices that cannot be reached from the
    start, so that they add no path.

    Attributes:
        n_vertices: number of vertices.
        n_edges: number of edges.
        n_branches: number of paths from the start.
        farthest: largest lookahead.
        seed: seed of everything that is drawn.

    Raises:
        UsageError: if the branches do not fit the vertices and edges.
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
        """The vocabulary of the task."""
        return (*self.vertices, "E", "Q", "P")

    @property
    def longest(self) -> int:
        """Number of tokens of a prompt with its answer."""
        return 3 * self.n_edges + 6

    def _graph(self, rng: random.Random, lookahead: int) -> Graph:
        """Draw a graph and its query."""
        start, *rest = rng.sample(self.vertices, self.n_vertices)
        branches = [rest[at * lookahead : (at + 1) * lookahead] for at in range(self.n_branches)]
        on_the_way = [
            edge for branch in branches for edge in zip([start, *branch], branch, strict=False)
        ]
        # Edges from unreachable vertices, forward in one order, so that there is no cycle.
        others = rest[self.n_branches * lookahead :]
        reached = [start, *rest[: self.n_branches * lookahead]]
        spare = [(a, b) for place, a in enumerate(others) for b in (*others[place + 1 :], *reached)]
        edges = on_the_way + rng.sample(spare, self.n_edges - len(on_the_way))
        rng.shuffle(edges)
        return Graph(tuple(edges), start, branches[0][-1], branches[0][0], lookahead)

    def batches(
        self, vocabulary: Mapping[str, int], end: int, size: int
    ) -> Callable[[int], TaskBatch]:
        """Return a function that draws the batch of a step; see `Task.batches`."""

        def drawn(step: int) -> TaskBatch:
            rngs = [random.Random(f"{self.seed} {step} {row}") for row in range(size)]
            graphs = [self._graph(rng, rng.randint(1, self.farthest)) for rng in rngs]
            return as_batch([graph.written for graph in graphs], vocabulary, end)

        return drawn

    def graphs(self) -> Iterator[Graph]:
        """Yield the test graphs, about equally many of each lookahead."""
        for number in range(TESTED):
            rng = random.Random(f"{self.seed} test {number}")
            yield self._graph(rng, 1 + number % self.farthest)

    def tests(self) -> Mapping[str, Sequence[Example]]:
        """Return the examples on which accuracy is measured: all, and by lookahead."""
        graphs = list(self.graphs())
        tests = {"in_distribution": [graph.written for graph in graphs]}
        for lookahead in range(1, self.farthest + 1):
            matching = [graph.written for graph in graphs if graph.lookahead == lookahead]
            tests[f"lookahead_{lookahead}"] = matching
        return tests

    def path_prompts(self) -> list[PathPrompt]:
        """Return the test prompts for `computation_graph`, grouped by lookahead."""
        prompts = []
        for number, graph in enumerate(self.graphs()):
            edges = tuple((3 * at + 1, 3 * at + 2) for at in range(self.n_edges))
            start = len(graph.prompt) - 1
            ends = {"start": start, "goal": start - 2, "group": graph.lookahead}
            text = " ".join(graph.prompt)
            prompts.append(PathPrompt(str(number), text, graph.answer, edges, **ends))
        return prompts
