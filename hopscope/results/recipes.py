"""Provides recording(): says by which call a run can be made again while the call is being made.

A run folder that is begun meanwhile tells it, so that another process can compute parts of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol


class Recipe(Protocol):
    """A call that can be made again."""

    def as_json(self) -> dict[str, Any]:
        """What the run's record says; `refused` with the reason if the call cannot be told."""

    def write_inputs(self, folder: Path) -> None:
        """Write the inputs into a run folder, unless they are there or go by a name."""


_recipe: ContextVar[Recipe | None] = ContextVar("hopscope_recipe", default=None)


@contextmanager
def recording(recipe: Recipe | None) -> Iterator[None]:
    """Let runs that are begun while the context is open tell a recipe, or none."""
    token = _recipe.set(recipe)
    try:
        yield
    finally:
        _recipe.reset(token)


def recipe_now() -> Recipe | None:
    """The recipe of the call that is being made, if it is to be told."""
    return _recipe.get()
