"""Provides World: a small trained model together with the facts of its task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from hopscope.compat.old_paths import old_names
from hopscope.documents.question_set import QuestionSet
from hopscope.errors import ResultError, UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.queries.graph_paths import PathSet
from hopscope.queries.query_set import QuerySet
from hopscope.worlds.catalogue import WORLDS
from hopscope.worlds.folders import ABOUT, world_name
from hopscope.worlds.recipe import Recipe, facts_digest
from hopscope.worlds.tasks.task import AsksForPaths, AsksOverDocuments, AsksTwoHops, Task, Thinks


@dataclass(frozen=True, repr=False)
class World:
    """A trained model and the facts that it was trained on.

    Attributes:
        name: name of the recipe.
        seed: seed of the facts, the weights and the batches.
        model: the trained model.
        task: the task with its facts.
        record: the recipe; `seconds` of training since it was last resumed; `accuracy` by split;
            and a digest of the `facts`.
    """

    name: str
    seed: int
    model: LanguageModel
    task: Task
    record: Mapping[str, Any]

    def __repr__(self) -> str:
        shares = ", ".join(f"{split} {self.accuracy[split]:.2f}" for split in self.task.splits)
        return f"World({self.name!r}, seed {self.seed}: {shares})"

    @property
    def accuracy(self) -> Mapping[str, float]:
        """The share of correct answers in each split, measured after training."""
        accuracy: Mapping[str, float] = self.record["accuracy"]
        return accuracy

    def queries(self, split: str = "in_distribution") -> QuerySet:
        """Return the two-hop queries of a split.

        Args:
            split: one of the task's `splits`, or `trained`.

        Raises:
            UsageError: for an unknown split, or a world without two-hop queries.
        """
        return task_queries(self.name, self.task, split)

    def questions(self, hops: Literal["one", "two"] = "two") -> QuestionSet:
        """Return the questions over documents, for analyses such as `permute_documents`.

        Use them with the template `hopscope.worlds.tasks.chains_in_context.TEMPLATE`.

        Args:
            hops: whether the questions ask one hop or two.

        Raises:
            UsageError: for a world without questions over documents.
        """
        if not isinstance(self.task, AsksOverDocuments):
            raise UsageError(f"{self.name} asks no questions over documents{_offers(self.task)}")
        return replace(self.task.questions(hops), name=f"{self.name}@{self.seed}.{hops}")

    def paths(self, n: int | None = None) -> PathSet:
        """Return the first `n` prompts with graphs, for `computation_graph`; all if `n` is None.

        Raises:
            UsageError: for a world without graphs in its prompts, or one with continuous thoughts.
        """
        if not isinstance(self.task, AsksForPaths):
            raise UsageError(f"{self.name} has no graphs in its prompts{_offers(self.task)}")
        if isinstance(self.task, Thinks) and self.task.thought is not None:
            raise UsageError(
                f"{self.name} uses continuous thoughts, which no prompt contains; analyse it "
                "with superposition()"
            )
        return PathSet(tuple(self.task.path_prompts()[:n]), f"{self.name}@{self.seed}.paths")


def check_distinct(worlds: Sequence[World] | World) -> list[World]:
    """Several worlds as a list; one alone makes a list of one.

    Raises:
        UsageError: for none, a repeated one, or what is no world; the message lists them.
    """
    listed = [worlds] if isinstance(worlds, World | str) else list(worlds)
    strangers = [each for each in listed if not isinstance(each, World)]
    if strangers:
        raise UsageError(f"{strangers[0]!r} is no World: make one with hs.load_world(name, seed)")
    given = [(world.name, world.seed) for world in listed]
    if not listed or len(set(given)) < len(given):
        raise UsageError(f"give one or more worlds, each once, not {given}")
    return listed


def _offers(task: Task) -> str:
    """Return the end of an error message, with the kinds of questions that a task does have."""
    kinds = {"queries": AsksTwoHops, "questions": AsksOverDocuments, "paths": AsksForPaths}
    names = [f"{name}()" for name, kind in kinds.items() if isinstance(task, kind)]
    return f": see {' or '.join(names)}" if names else ""


def task_queries(name: str, task: Task, split: str) -> QuerySet:
    """Return the two-hop queries of a split of a task; `name` is the name of its world.

    Raises:
        UsageError: for an unknown split, or a task without two-hop queries.
    """
    if not isinstance(task, AsksTwoHops):
        raise UsageError(f"{name} asks no two-hop queries{_offers(task)}")
    splits = (*task.splits, "trained")
    if split not in splits:
        raise UsageError(f"{name} has no split {split!r}: choose one of {', '.join(splits)}")
    return replace(task.queries(split), name=f"{name}@{task.seed}.{split}")


def read_world(folder: Path, device: str | torch.device | None = None) -> World:
    """Load the world in a folder.

    Args:
        folder: folder of a trained world.
        device: device of the model; by default CUDA if available.

    Raises:
        UsageError: if the folder holds no world.
        ResultError: if the record is damaged, or this version of hopscope draws other facts.
    """
    if not (folder / ABOUT).is_file():
        known = ", ".join(WORLDS)
        raise UsageError(f"no world {str(folder)!r}: give one of {known}, or a world's folder")
    record = read_record(folder)
    try:
        name, seed = record["world"], record["seed"]
        task = Recipe.from_json(record["recipe"]).task
        digest = record["facts"]
    except (KeyError, TypeError) as error:
        raise ResultError(f"{folder / ABOUT} is damaged: {error!r}") from error
    if facts_digest(task) != digest:
        raise ResultError(
            f"the model in {folder} was trained on other facts than this version of hopscope "
            "draws; train it again"
        )
    model = load_model(folder, device, "float32", name=world_name(name, seed))
    return World(name, seed, model, task, record)


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of the world in a folder.

    Raises:
        ResultError: if it is damaged.
    """
    try:
        record = json.loads((folder / ABOUT).read_text("utf-8"))
    except ValueError as error:
        raise ResultError(f"{folder / ABOUT} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise ResultError(f"{folder / ABOUT} is damaged: it must be a JSON object")
    return record


__getattr__ = old_names(__name__)
