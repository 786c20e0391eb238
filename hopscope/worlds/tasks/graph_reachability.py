"""Provides GraphReachability: which of two vertices can be reached, after some thoughts.

The task of Zhu et al. 2025 (Reasoning by Superposition): edges `u v E`, then `Q a b R root`, then
thoughts, then `A` and the one of a and b that the root leads to. The model is trained in stages:
after c thoughts it must name the c-th vertex on the way, the last one being the answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from hopscope.errors import UsageError
from hopscope.queries.graph_paths import PathPrompt
from hopscope.training.settings import check_shares
from hopscope.worlds.tasks.examples import Batch, Written, tabulated
from hopscope.worlds.tasks.two_hop_facts import names

THOUGHT = "T"
TESTED = 1000


class Maze(NamedTuple):
    """Edges in the order of the prompt, two candidates, and the way from the root to one."""

    edges: tuple[tuple[str, str], ...]
    candidates: tuple[str, str]
    way: tuple[str, ...]

    @property
    def prompt(self) -> tuple[str, ...]:
        """The words before the thoughts."""
        edges = [word for u, v in self.edges for word in (u, v, "E")]
        return (*edges, "Q", *self.candidates, "R", self.way[0])


@dataclass(frozen=True)
class GraphReachability:
    """Two trees of equal size, drawn anew for every step; the root of one is asked about.

    A candidate stands at the depth of each tree, and some further edges lead from the other tree
    into the root's own, so that they open no way.

    Attributes:
        n_vertices: how many vertices there are, half of them a tree.
        n_edges: of each graph.
        depth: steps from the root to the answer, and the number of thoughts.
        continuous: whether a thought is the model's last state, given back to it as the embedding
            of the next token; else it is a pause: always the same learned embedding.
        stage_steps: of the training, in each stage but the last.
        earlier: share of the batches that are of an earlier stage, once there is one.
        seed: of all that is drawn.

    Raises:
        UsageError: for trees that do not fit, or a share that is none.
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

    def __post_init__(self) -> None:
        half = self.n_vertices // 2
        if self.n_vertices % 2 or not 1 <= self.depth < half:
            raise UsageError(
                f"two trees of depth {self.depth} need an even number of at least "
                f"{2 * self.depth + 2} vertices, not {self.n_vertices}"
            )
        if not 0 <= self.n_edges - 2 * (half - 1) <= half * half:
            raise UsageError(f"two trees of {half} vertices do not make {self.n_edges} edges")
        check_shares(self, "earlier")

    @property
    def thought(self) -> str | None:
        """The word whose embedding is the state before it."""
        return THOUGHT if self.continuous else None

    @property
    def vertices(self) -> tuple[str, ...]:
        """The names of the vertices."""
        return names("v", self.n_vertices)

    @property
    def words(self) -> tuple[str, ...]:
        """All words of the world."""
        return (*self.vertices, "E", "Q", "R", THOUGHT, "A")

    @property
    def longest(self) -> int:
        """Tokens of a prompt with all thoughts and the answer."""
        return 3 * self.n_edges + 5 + self.depth + 2

    def _maze(self, rng: random.Random) -> Maze:
        half = self.n_vertices // 2
        mixed = rng.sample(self.vertices, self.n_vertices)
        own, others = mixed[:half], mixed[half:]
        edges = [edge for tree in (own, others) for edge in _tree(tree, self.depth, rng)]
        bridges = [(a, b) for a in others for b in own]
        edges += rng.sample(bridges, self.n_edges - len(edges))
        rng.shuffle(edges)
        candidates = [own[self.depth], others[self.depth]]
        rng.shuffle(candidates)
        a, b = candidates
        return Maze(tuple(edges), (a, b), tuple(own[: self.depth + 1]))

    def told(self, maze: Maze, stage: int) -> Written:
        """The text of a stage: so many thoughts, and the vertex that they should have led to."""
        prompt = (*maze.prompt, *[THOUGHT] * stage, "A")
        return Written(prompt, (maze.way[stage],), ended=False)

    def batches(self, vocabulary: Mapping[str, int], end: int, size: int) -> Callable[[int], Batch]:
        """Batches of new graphs, each of one stage."""

        def drawn(step: int) -> Batch:
            rng = random.Random(f"{self.seed} {step}")
            stage = min(1 + step // self.stage_steps, self.depth)
            if rng.random() < self.earlier:
                stage = rng.randint(1, max(1, stage - 1))
            rngs = [random.Random(f"{self.seed} {step} {row}") for row in range(size)]
            told = [self.told(self._maze(rng), stage) for rng in rngs]
            return tabulated(told, vocabulary, end)

        return drawn

    def mazes(self) -> list[Maze]:
        """Graphs that are asked about."""
        return [self._maze(random.Random(f"{self.seed} test {number}")) for number in range(TESTED)]

    def tests(self) -> Mapping[str, Sequence[Written]]:
        """What accuracy is measured on: the answer, and the vertices on the way to it."""
        mazes = self.mazes()
        stages = {
            stage: [self.told(maze, stage) for maze in mazes] for stage in range(1, self.depth + 1)
        }
        earlier = {f"step_{stage}": stages[stage] for stage in range(1, self.depth)}
        return {"in_distribution": stages[self.depth], **earlier}

    def path_prompts(self) -> list[PathPrompt]:
        """The prompts with all thoughts; a path leads from the root to the answer."""
        prompts = []
        edges = tuple((3 * at, 3 * at + 1) for at in range(self.n_edges))
        for number, maze in enumerate(self.mazes()):
            prompt, (answer,), _ = self.told(maze, self.depth)
            goal = len(maze.prompt) - 4 + maze.candidates.index(answer)
            ends = {"start": len(maze.prompt) - 1, "goal": goal, "group": self.depth}
            prompts.append(PathPrompt(str(number), " ".join(prompt), answer, edges, **ends))
        return prompts


def _tree(vertices: Sequence[str], depth: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """The edges of a random tree: the first `depth` + 1 vertices are a way down, none is deeper."""
    at = {0: 0}
    for place in range(1, len(vertices)):
        parents = [place - 1] if place <= depth else [p for p, d in at.items() if d < depth]
        parent = rng.choice(parents)
        at[place] = at[parent] + 1
        yield vertices[parent], vertices[place]
