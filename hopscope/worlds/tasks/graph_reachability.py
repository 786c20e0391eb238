"""Provides GraphReachability: which of two vertices can be reached from a root, with thoughts.

The task of Zhu et al. 2025 (Reasoning by Superposition): edges `u v E`, then `Q a b R root`, then
thoughts, then `A` and whichever of a and b can be reached from the root. The model is trained in
stages: after c thoughts it must name the c-th vertex on the path, whose last vertex is the answer.
The token that names it can make a step itself, so that each thought may lag a step behind; with one
thought less (`lead`) none may.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from hopscope.errors import UsageError
from hopscope.queries.graph_paths import PathPrompt
from hopscope.training.settings import check_shares
from hopscope.worlds.tasks.examples import Example, TaskBatch, as_batch
from hopscope.worlds.tasks.two_hop_facts import names

THOUGHT = "T"
"""The word of a thought or pause."""
TESTED = 1000
"""Number of test graphs."""


class Maze(NamedTuple):
    """Edges in the order of the prompt, two candidates, and the path from the root to one."""

    edges: tuple[tuple[str, str], ...]
    candidates: tuple[str, str]
    way: tuple[str, ...]

    @property
    def prompt(self) -> tuple[str, ...]:
        """The words of the prompt before the thoughts."""
        edges = [word for u, v in self.edges for word in (u, v, "E")]
        return (*edges, "Q", *self.candidates, "R", self.way[0])


@dataclass(frozen=True)
class GraphReachability:
    """Graphs of two trees of equal size, newly drawn at each step; the query names one root.

    Each tree has a candidate at depth `depth`. Further edges lead from the other tree to the tree
    of the root, and thus add no path from the root.

    Attributes:
        n_vertices: number of vertices, half of them in each tree.
        n_edges: number of edges.
        depth: steps from the root to the answer.
        lead: how many thoughts fewer than steps there are: 0 or 1.
        continuous: whether a thought is continuous: the last hidden state, fed back as the next
            input embedding. Otherwise it is a pause token with a learned embedding.
        stage_steps: training steps in each stage, one a step of the path, but the last.
        earlier: share of the batches that come from an earlier stage, from the second stage on.
        seed: seed of everything that is drawn.

    Raises:
        UsageError: if the trees do not fit the vertices and edges, if `earlier` is not a share, or
            if there would be no thought.
    """

    kind: ClassVar[str] = "graph_reachability"
    splits: ClassVar[tuple[str, ...]] = ("in_distribution",)

    n_vertices: int = 20
    n_edges: int = 20
    depth: int = 3
    continuous: bool = True
    stage_steps: int = 2000
    earlier: float = 0.1
    seed: int = 0
    lead: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.lead <= min(1, self.depth - 1):
            raise UsageError(
                f"lead must be 0 or 1, and less than the depth {self.depth}, not {self.lead}"
            )
        half = self.n_vertices // 2
        if self.n_vertices % 2 or not 1 <= self.depth < half:
            raise UsageError(
                f"two trees of depth {self.depth} need an even number of at least "
                f"{2 * self.depth + 2} vertices, not {self.n_vertices}"
            )
        if not 0 <= self.n_edges - 2 * (half - 1) <= half * half:
            raise UsageError(
                f"two trees of {half} vertices cannot have {self.n_edges} edges: give "
                f"{2 * (half - 1)} to {2 * (half - 1) + half * half}"
            )
        check_shares(self, "earlier")

    @property
    def n_thoughts(self) -> int:
        """Number of thoughts before the answer."""
        return self.depth - self.lead

    @property
    def thought(self) -> str | None:
        """The word of a continuous thought; None if thoughts are pauses."""
        return THOUGHT if self.continuous else None

    @property
    def vertices(self) -> tuple[str, ...]:
        """The names of the vertices."""
        return names("v", self.n_vertices)

    @property
    def words(self) -> tuple[str, ...]:
        """The vocabulary of the task."""
        return (*self.vertices, "E", "Q", "R", THOUGHT, "A")

    @property
    def longest(self) -> int:
        """Number of tokens of a prompt with all thoughts and the answer."""
        return 3 * self.n_edges + 5 + self.n_thoughts + 2

    def _maze(self, rng: random.Random) -> Maze:
        """Draw a graph and its query."""
        half = self.n_vertices // 2
        shuffled = rng.sample(self.vertices, self.n_vertices)
        reachable, others = shuffled[:half], shuffled[half:]
        edges = [edge for tree in (reachable, others) for edge in _tree(tree, self.depth, rng)]
        bridges = [(a, b) for a in others for b in reachable]
        edges += rng.sample(bridges, self.n_edges - len(edges))
        rng.shuffle(edges)
        candidates = [reachable[self.depth], others[self.depth]]
        rng.shuffle(candidates)
        a, b = candidates
        return Maze(tuple(edges), (a, b), tuple(reachable[: self.depth + 1]))

    def example(self, maze: Maze, stage: int) -> Example:
        """Return the example of a stage: the vertex after `stage` steps, and its thoughts."""
        prompt = (*maze.prompt, *[THOUGHT] * (stage - self.lead), "A")
        return Example(prompt, (maze.way[stage],), ended=False)

    told = example

    def batches(
        self, vocabulary: Mapping[str, int], end: int, size: int
    ) -> Callable[[int], TaskBatch]:
        """Return a function that draws the batch of a step, of one stage; see `Task.batches`."""

        def drawn(step: int) -> TaskBatch:
            rng = random.Random(f"{self.seed} {step}")
            stage = min(1 + step // self.stage_steps, self.depth)
            if rng.random() < self.earlier:
                stage = rng.randint(1, max(1, stage - 1))
            rngs = [random.Random(f"{self.seed} {step} {row}") for row in range(size)]
            examples = [self.example(self._maze(rng), stage) for rng in rngs]
            return as_batch(examples, vocabulary, end)

        return drawn

    def mazes(self) -> list[Maze]:
        """Return the test graphs."""
        return [self._maze(random.Random(f"{self.seed} test {number}")) for number in range(TESTED)]

    def tests(self) -> Mapping[str, Sequence[Example]]:
        """Return the examples on which accuracy is measured: the answer, and the path to it."""
        mazes = self.mazes()
        stages = {
            stage: [self.example(maze, stage) for maze in mazes]
            for stage in range(1, self.depth + 1)
        }
        earlier = {f"step_{stage}": stages[stage] for stage in range(1, self.depth)}
        return {"in_distribution": stages[self.depth], **earlier}

    def path_prompts(self) -> list[PathPrompt]:
        """Return the test prompts with all thoughts; the path leads from the root to the answer."""
        prompts = []
        edges = tuple((3 * at, 3 * at + 1) for at in range(self.n_edges))
        for number, maze in enumerate(self.mazes()):
            prompt, (answer,), _ = self.example(maze, self.depth)
            goal = len(maze.prompt) - 4 + maze.candidates.index(answer)
            ends = {"start": len(maze.prompt) - 1, "goal": goal, "group": self.depth}
            prompts.append(PathPrompt(str(number), " ".join(prompt), answer, edges, **ends))
        return prompts


def _tree(vertices: Sequence[str], depth: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield the edges of a random tree whose first `depth` + 1 vertices are a path to its depth."""
    depths = {0: 0}
    for place in range(1, len(vertices)):
        parents = [place - 1] if place <= depth else [p for p, d in depths.items() if d < depth]
        parent = rng.choice(parents)
        depths[place] = depths[parent] + 1
        yield vertices[parent], vertices[place]
