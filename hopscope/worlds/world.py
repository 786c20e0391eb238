"""Provides World: a small model that was trained here, and the truth about its task."""

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
        name: of the recipe.
        seed: of the facts, the weights and the batches.
        model: the trained model.
        task: the facts.
        record: what was asked, `seconds` (of training, since it was last gone on with), `accuracy`
            by split, a digest of the `facts`.
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
        """The share of right answers in each split, as measured after the training."""
        accuracy: Mapping[str, float] = self.record["accuracy"]
        return accuracy

    def queries(self, split: str = "in_distribution") -> QuerySet:
        """The two-hop questions of a split.

        Raises:
            UsageError: for an unknown split, or a world that asks other questions.
        """
        return _queries(self.name, self.task, split)

    def questions(self, hops: Literal["one", "two"] = "two") -> QuestionSet:
        """The questions over documents, for `permute_documents` and the like.

        They are asked with the template `hopscope.worlds.tasks.chains_in_context.TEMPLATE`.

        Raises:
            UsageError: for a world that asks other questions.
        """
        if not isinstance(self.task, AsksOverDocuments):
            raise UsageError(f"{self.name} asks no questions over documents{_offers(self.task)}")
        return replace(self.task.questions(hops), name=f"{self.name}@{self.seed}.{hops}")

    def paths(self, n: int | None = None) -> PathSet:
        """The first prompts with graphs in them, for `computation_graph`; all if `n` is None.

        Raises:
            UsageError: for a world that asks other questions.
        """
        if not isinstance(self.task, AsksForPaths):
            raise UsageError(f"{self.name} has no graphs in its prompts{_offers(self.task)}")
        if isinstance(self.task, Thinks) and self.task.thought is not None:
            raise UsageError(
                f"{self.name} thinks in states that no prompt holds, so its prompts alone say "
                "nothing of it: see superposition()"
            )
        return PathSet(tuple(self.task.path_prompts()[:n]), f"{self.name}@{self.seed}.paths")


def check_distinct(worlds: Sequence[World]) -> None:
    """Refuse an analysis of no world, or of one that is given twice.

    Raises:
        UsageError: naming what was given.
    """
    called = [(world.name, world.seed) for world in worlds]
    if not worlds or len(set(called)) < len(called):
        raise UsageError(f"give one or more worlds, each once, not {called}")


def _offers(task: Task) -> str:
    """What a task can be asked instead."""
    kinds = {"queries": AsksTwoHops, "questions": AsksOverDocuments, "paths": AsksForPaths}
    names = [f"{name}()" for name, kind in kinds.items() if isinstance(task, kind)]
    return f": see {' or '.join(names)}" if names else ""


def _queries(name: str, task: Task, split: str) -> QuerySet:
    if not isinstance(task, AsksTwoHops):
        raise UsageError(f"{name} asks no two-hop queries{_offers(task)}")
    splits = (*task.splits, "trained")
    if split not in splits:
        raise UsageError(f"{name} has no split {split!r}: choose one of {', '.join(splits)}")
    return replace(task.queries(split), name=f"{name}@{task.seed}.{split}")


def read_world(folder: Path, device: str | torch.device | None = None) -> World:
    """The world that a folder holds.

    Raises:
        UsageError: for a folder that holds no world.
        ResultError: for a damaged record, or facts that are drawn otherwise by now.
    """
    if not (folder / ABOUT).is_file():
        known = ", ".join(WORLDS)
        raise UsageError(f"no world {str(folder)!r}: give one of {known}, or a world's folder")
    record = _about(folder)
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


def _about(folder: Path) -> dict[str, Any]:
    """The record of a world's folder."""
    try:
        record = json.loads((folder / ABOUT).read_text("utf-8"))
    except ValueError as error:
        raise ResultError(f"{folder / ABOUT} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise ResultError(f"{folder / ABOUT} is damaged: it holds no object")
    return record


__getattr__ = old_names(__name__)
