"""Provides Trainings: the trainings of several tasks, described as the inputs of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


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
