"""Provides Recipe: the task, model shape and training schedule of a world."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hopscope.errors import UsageError
from hopscope.training.settings import Schedule
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.chains_in_context import ChainsInContext
from hopscope.worlds.tasks.composed_tables import ComposedTables
from hopscope.worlds.tasks.graph_reachability import GraphReachability
from hopscope.worlds.tasks.graph_search import GraphSearch
from hopscope.worlds.tasks.multi_hop_facts import MultiHopFacts
from hopscope.worlds.tasks.task import Task
from hopscope.worlds.tasks.two_hop_facts import TwoHopFacts

TASKS: dict[str, type[Task]] = {
    task.kind: task
    for task in (
        TwoHopFacts,
        MultiHopFacts,
        ComposedTables,
        ChainsInContext,
        GraphSearch,
        GraphReachability,
    )
}
"""The task classes by their `kind`, to read recipes from JSON. Register a task of your own here."""


@dataclass(frozen=True)
class Recipe:
    """The recipe of a world.

    Attributes:
        description: what the model does, in one line.
        task: the task that the model learns; its seed is also the seed of the training.
        shape: shape of the model.
        schedule: schedule of the training.

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
        """Return the recipe with another seed for everything that is drawn."""
        return replace(self, task=replace(self.task, seed=seed))  # type: ignore[type-var]

    def as_json(self) -> dict[str, Any]:
        """Return everything that the trained weights depend on, as JSON."""
        schedule = self.schedule.as_record()
        del schedule["checkpoint_every"]
        return {
            "task": {"kind": self.task.kind, **asdict(self.task)},  # type: ignore[call-overload]
            "shape": asdict(self.shape),
            "schedule": schedule,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Recipe:
        """Convert the output of `as_json` back to a recipe, without its description.

        Raises:
            KeyError, TypeError: if the record has another form.
        """
        settings = dict(record["task"])
        task = TASKS[settings.pop("kind")](**settings)
        shape, schedule = Shape(**record["shape"]), Schedule(**record["schedule"])
        return cls("", task, shape, schedule)


def facts_digest(task: Task) -> str:
    """Return the sha256 of all examples on which accuracy is measured."""
    return hashlib.sha256(json.dumps(task.tests()).encode()).hexdigest()
