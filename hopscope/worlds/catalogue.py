"""Provides the named worlds: what is learned, by which model, for how long."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from hopscope.documents.question_set import QuestionSet
from hopscope.errors import UsageError
from hopscope.queries.graph_paths import PathPrompt
from hopscope.queries.query_set import QuerySet
from hopscope.training.fit import Schedule
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.chains_in_context import ChainsInContext
from hopscope.worlds.tasks.composed_tables import ComposedTables
from hopscope.worlds.tasks.examples import Batch, Written
from hopscope.worlds.tasks.graph_reachability import GraphReachability
from hopscope.worlds.tasks.graph_search import GraphSearch
from hopscope.worlds.tasks.two_hop_facts import TwoHopFacts


class Task(Protocol):
    """What a world's model learns, drawn by seed; a frozen dataclass of plain settings.

    Attributes:
        kind: its name in records.
        splits: what accuracy is told of.
        seed: of all that is drawn.
        words: all words of its texts.
        longest: tokens of the longest text of the training.
    """

    kind: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]

    @property
    def seed(self) -> int: ...
    @property
    def words(self) -> tuple[str, ...]: ...
    @property
    def longest(self) -> int: ...

    def batches(self, vocabulary: Mapping[str, int], end: int, size: int) -> Callable[[int], Batch]:
        """The batch of each step, counted from 0; it depends on the step alone."""

    def tests(self) -> Mapping[str, Sequence[Written]]:
        """What accuracy is measured on, by split; there may be more than `splits`."""


@runtime_checkable
class Thinks(Protocol):
    """A task whose texts have thoughts in them.

    Attributes:
        thought: the word whose embedding is the model's state before it, if there is any.
    """

    @property
    def thought(self) -> str | None: ...


@runtime_checkable
class AsksForPaths(Protocol):
    """A task with graphs in its prompts."""

    def path_prompts(self) -> Sequence[PathPrompt]:
        """The prompts that accuracy is measured on."""


@runtime_checkable
class AsksOverDocuments(Protocol):
    """A task whose questions are over documents."""

    def questions(self, hops: Literal["one", "two"] = "two") -> QuestionSet:
        """The questions that ask one hop, or two."""


@runtime_checkable
class AsksTwoHops(Protocol):
    """A task whose questions are `TwoHopQuery`s."""

    def queries(self, split: str = "in_distribution") -> QuerySet:
        """The questions of a split, or of `trained`."""


TASKS: dict[str, type[Task]] = {
    task.kind: task
    for task in (
        TwoHopFacts,
        ComposedTables,
        ChainsInContext,
        GraphSearch,
        GraphReachability,
    )
}
"""How the tasks in records are read back; a task of your own is entered here."""


@dataclass(frozen=True)
class Recipe:
    """How a world is made.

    Attributes:
        description: what its model does, in a line.
        task: what it learns; its seed is that of the training.
        shape: of the model.
        schedule: of the training.

    Raises:
        UsageError: if the model has too few positions for the task.
    """

    description: str
    task: Task
    shape: Shape = field(default_factory=Shape)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        if self.task.longest > self.shape.n_positions:
            raise UsageError(
                f"the task's texts have up to {self.task.longest} tokens, but the model has "
                f"{self.shape.n_positions} positions: give Shape(n_positions=...)"
            )

    def seeded(self, seed: int) -> Recipe:
        """The recipe with a seed for all that is drawn."""
        return replace(self, task=replace(self.task, seed=seed))  # type: ignore[type-var]

    def as_json(self) -> dict[str, Any]:
        """All that the trained weights depend on."""
        schedule = asdict(self.schedule)
        del schedule["checkpoint_every"]
        return {
            "task": {"kind": self.task.kind, **asdict(self.task)},  # type: ignore[call-overload]
            "shape": asdict(self.shape),
            "schedule": schedule,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], description: str = "") -> Recipe:
        """What `as_json` has written.

        Raises:
            KeyError, TypeError: if it has not.
        """
        settings = dict(record["task"])
        task = TASKS[settings.pop("kind")](**settings)
        shape, schedule = Shape(**record["shape"]), Schedule(**record["schedule"])
        return cls(description, task, shape, schedule)


def facts_digest(task: Task) -> str:
    """The sha256 of all that accuracy is measured on."""
    return hashlib.sha256(json.dumps(task.tests()).encode()).hexdigest()


COVERED = Schedule(steps=4000, batch_size=512, learning_rate=1e-3, weight_decay=1.0)
"""With less weight decay, or a narrower model, tables are learned by heart for longer."""
REACHABILITY = GraphReachability(n_vertices=12, n_edges=12, stage_steps=2400, earlier=0.3)
THINKING_SHAPE = Shape(
    n_blocks=2, n_heads=4, d_model=64, d_mlp=128, n_positions=48, scaled=True, rotary=True
)
THINKING_SCHEDULE = Schedule(steps=7200, batch_size=128, hold=0.8)
"""Three stages of 2,400 steps: one for each thought. With 10 % of earlier stages seed 1 does not
learn the third, neither in 1,600 steps nor in 2,400."""
WORLDS: Mapping[str, Recipe] = MappingProxyType(
    {
        "two-hop-looped": Recipe(
            "composes: two blocks that run twice, atoms ten times as often as two-hop facts",
            TwoHopFacts(),
            Shape(n_blocks=2, n_loops=2),
        ),
        "two-hop": Recipe(
            "composes: four blocks, atoms ten times as often as two-hop facts",
            TwoHopFacts(),
        ),
        "two-hop-memoriser": Recipe(
            "memorises: four blocks, atoms as often as two-hop facts",
            TwoHopFacts(atom_repeats=1),
        ),
        "in-context": Recipe(
            "follows chains in its prompt, whose first hop always came first",
            ChainsInContext(most=2, late_one_hop=0.15, n_queries=1),
            Shape(n_heads=1, d_mlp=64, scaled=True, rotary=True),
            Schedule(steps=6000, batch_size=128, hold=0.8),
        ),
        "coverage": Recipe(
            "composes two random tables as far as its examples cover them",
            ComposedTables(),
            Shape(d_model=128),
            COVERED,
        ),
        "coverage-few-bridges": Recipe(
            "as coverage, but by way of four bridges",
            ComposedTables(n_examples=6000, n_bridges=4),
            Shape(d_model=128),
            COVERED,
        ),
        # With as many bridges as tokens f2 would have as many entries as there are inputs, and
        # composing would save nothing.
        "coverage-path-ambiguity": Recipe(
            "as coverage-few-bridges, but the second token is an argument of both tables",
            ComposedTables("path_ambiguity", n_examples=6000, n_bridges=4),
            Shape(d_model=128),
            COVERED,
        ),
        "graph-search": Recipe(
            "finds the next step to a goal in a graph that stands in its prompt",
            GraphSearch(),
            Shape(n_blocks=5, n_heads=1, n_positions=40, one_hot=True),
            Schedule(steps=10000, learning_rate=1e-3),
        ),
        "reachability": Recipe(
            "tells which of two vertices can be reached, after three continuous thoughts",
            REACHABILITY,
            THINKING_SHAPE,
            THINKING_SCHEDULE,
        ),
        "reachability-pause": Recipe(
            "as reachability, but with a pause in place of each thought",
            replace(REACHABILITY, continuous=False),
            THINKING_SHAPE,
            THINKING_SCHEDULE,
        ),
    }
)


def recipe_of(name: str) -> Recipe:
    """The recipe of a named world.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in WORLDS:
        raise UsageError(f"no world {name!r}: choose one of {', '.join(WORLDS)}")
    return WORLDS[name]
