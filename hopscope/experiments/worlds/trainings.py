"""Provides run_trainings(): a run whose parts are trainings of small models, each on a task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

from hopscope.experiments.analysis import RunOptions, run_numbered
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.run_record import device_name, provenance
from hopscope.training.settings import Schedule
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.small_model import Shape, untrained
from hopscope.worlds.train import train_world
from hopscope.worlds.world import World

R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Trainings:
    """The trainings of a run, which stand for its queries.

    Attributes:
        tasks: the task of each training, a dataclass.
        name: what they are called in the record of the run.
    """

    tasks: Sequence[Any]
    name: str
    few_shot: int = 0
    few_shot_seed: int = 0

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the tasks, of what is given of them: results go on where more can be."""
        given = [
            {name: value for name, value in asdict(task).items() if value is not None}
            for task in self.tasks
        ]
        return hashlib.sha256(json.dumps(given).encode()).hexdigest()


def run_trainings(
    kind: type[R],
    trainings: Trainings,
    name_of: Callable[[Any], str],
    tables_of: Callable[[Any, World], Tables],
    shape: Shape,
    schedule: Schedule,
    device: str | torch.device | None,
    options: RunOptions,
) -> R:
    """Train a model on each task, part by part, and make a result of what they learn.

    Args:
        kind: of the result.
        trainings: the tasks.
        name_of: what the world of a task is called.
        tables_of: the tables of a task and the world that was trained on it; see `of_training`.
        shape: of the models.
        schedule: of each training.
        device: where to train; CUDA by default if there is any.
        options: where the run folder is, which shard is computed, and whether a bar is shown.
    """
    tasks = trainings.tasks
    first = untrained(tasks[0].words, shape, tasks[0].seed, "untrained")  # stands for all of them
    settings = {"shape": asdict(shape), "schedule": schedule.as_record()}
    record = provenance(first, trainings, kind.kind, settings)

    def compute(number: int) -> Tables:
        task = tasks[number]
        name = name_of(task)
        recipe = Recipe(name, task, shape, schedule)
        world = train_world(name, task.seed, recipe=recipe, device=device, progress=False)
        return tables_of(task, world)

    return run_numbered(kind, len(tasks), compute, record, options, unit="training")


def of_training(world: World) -> dict[str, Any]:
    """What a table says of how a world was trained: its seconds, and the device."""
    return {"seconds": world.record["seconds"], "device": device_name(world.model.device)}
