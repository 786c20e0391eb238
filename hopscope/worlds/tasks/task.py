"""Provides Task: what a small model is trained on, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

from hopscope.documents.question_set import QuestionSet
from hopscope.queries.graph_paths import PathPrompt
from hopscope.queries.query_set import QuerySet
from hopscope.worlds.tasks.examples import Batch, Written


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
