"""Provides every `hs.load_*`: by name, path or hub id, with the worlds that are known by name."""

from __future__ import annotations

from pathlib import Path

from hopscope.documents.load import load_questions as load_questions
from hopscope.errors import path_of
from hopscope.models.load import load_any as load_any
from hopscope.models.load import load_encoder_decoder as load_encoder_decoder
from hopscope.models.load import load_model as load_model
from hopscope.queries.load import load_queries as load_queries
from hopscope.results.result import Result, read_result
from hopscope.worlds.load import load_world as load_world


def load_result(path: str | Path) -> Result:
    """Read a run folder that `Result.save` or an experiment's `out` has written.

    Raises:
        ResultError: if there is none, or it is damaged.

    Example:
        >>> load_result("runs/mine").summary()  # doctest: +SKIP
    """
    return read_result(path_of("path", path), Result.kinds)
