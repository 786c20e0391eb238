"""Provides Task: the protocol of the tasks on which small models are trained and tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

from hopscope.documents.question_set import QuestionSet
from hopscope.queries.graph_paths import PathPrompt
from hopscope.queries.query_set import QuerySet
from hopscope.worlds.tasks.examples import Example, TaskBatch


class Task(Protocol):
    """A seeded task that the model of a world learns: a frozen dataclass of plain settings.

    Attributes:
        kind: name of the task class in records.
        splits: the main splits for which accuracy is reported.
        seed: seed of everything that is drawn.
        words: the vocabulary, all words of its texts.
        longest: number of tokens of the longest training text.
    """

    kind: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]

    @property
    def seed(self) -> int: ...
    @property
    def words(self) -> tuple[str, ...]: ...
    @property
    def longest(self) -> int: ...

    def batches(
        self, vocabulary: Mapping[str, int], end: int, size: int
    ) -> Callable[[int], TaskBatch]:
        """Return a function from the step, counted from 0, to its batch.

        Args:
            vocabulary: the id of each word.
            end: the id of the end token.
            size: examples per batch.
        """

    def tests(self) -> Mapping[str, Sequence[Example]]:
        """Return the examples on which accuracy is measured, by split; a superset of `splits`."""


@runtime_checkable
class Thinks(Protocol):
    """A task whose texts contain thoughts.

    Attributes:
        thought: the word that marks a continuous thought; None if the thoughts are pauses.
    """

    @property
    def thought(self) -> str | None: ...


@runtime_checkable
class AsksForPaths(Protocol):
    """A task whose prompts list the edges of a graph."""

    def path_prompts(self) -> Sequence[PathPrompt]:
        """Return the test prompts."""


@runtime_checkable
class AsksOverDocuments(Protocol):
    """A task with questions over documents."""

    def questions(self, hops: Literal["one", "two"] = "two") -> QuestionSet:
        """Return the test questions that ask one hop, or two."""


@runtime_checkable
class AsksTwoHops(Protocol):
    """A task with two-hop queries."""

    def queries(self, split: str = "in_distribution") -> QuerySet:
        """Return the queries of a split, or the training queries (`trained`)."""
