"""Fixtures that several test modules share: the tiny random models, one of each family.

Shapes and types of the engine's functions are checked as the tests call them.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from jaxtyping import install_import_hook

with install_import_hook(
    ["hopscope.engine.attention", "hopscope.engine.read_out", "hopscope.engine.sweep"],
    "beartype.beartype",
):
    import hopscope.engine.attention
    import hopscope.engine.sweep  # noqa: F401

from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import TINY_FAMILIES

# The products of tiny models are too small for threads: waiting costs more than they bring.
torch.set_num_threads(1)


@cache
def loaded(name: str) -> LanguageModel:
    """A tiny model that the whole session shares; a test that changes one loads its own."""
    return load_model(name, device="cpu")


def short_name(name: str) -> str:
    """How a family is called in the names of tests."""
    return name.removeprefix("tiny-random-")


@pytest.fixture(scope="session", params=TINY_FAMILIES, ids=short_name)
def tiny_model(request: pytest.FixtureRequest) -> LanguageModel:
    """A model of every family in turn."""
    return loaded(request.param)


@pytest.fixture(scope="session")
def llama() -> LanguageModel:
    """A tiny model of one family, where the family does not matter."""
    return loaded("tiny-random-llama")
