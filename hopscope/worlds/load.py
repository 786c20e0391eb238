"""Provides load_world(): a world by name, shipped, cached or trained."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hopscope.errors import ResultError, UsageError
from hopscope.models import load as models
from hopscope.queries import load as queries
from hopscope.queries.query_set import QuerySet
from hopscope.worlds.catalogue import WORLDS, recipe_of
from hopscope.worlds.folders import ABOUT, _places, cached_folder, world_name
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.world import World, _about, _queries, read_world


def load_world(
    world: str | Path, seed: int = 0, *, device: str | torch.device | None = None
) -> World:
    """Load a trained world.

    Args:
        world: a name of `WORLDS`, or the folder of a world. What does not come with hopscope is
            trained once, and kept in the cache.
        seed: of the training, for a name.
        device: where the model goes; CUDA by default if there is any.

    Raises:
        UsageError: for an unknown name.
        ResultError: for a folder whose record is damaged.

    Example:
        >>> world = load_world("two-hop-looped")
        >>> world.queries("first_hop_ood")[0].two_hop()
        'e00 r05 r00'
    """
    if isinstance(world, str) and world in WORLDS:
        return read_world(world_folder(world, seed, device=device), device)
    return read_world(Path(world), device)


def world_folder(name: str, seed: int = 0, *, device: str | torch.device | None = None) -> Path:
    """Where a named world lies; it is trained first, if it comes neither with hopscope nor is
    in the cache.

    Raises:
        UsageError: for an unknown name.
        ResultError: if the one in the cache was made by another recipe.
    """
    recipe = recipe_of(name).seeded(seed)
    for place in _places(name):
        folder = place / f"seed-{seed}"
        if not (folder / ABOUT).is_file():
            continue
        if not _made_by(folder, recipe):
            raise ResultError(f"{folder} was trained by another recipe; delete it")
        return folder
    from hopscope.worlds.train import train_world  # built on this module

    kept = cached_folder(name, seed)
    train_world(name, seed, kept, device=device)
    return kept


def _made_by(folder: Path, recipe: Recipe) -> bool:
    """Whether a folder's world was made so; what its record does not name was as by default."""
    try:
        made = Recipe.from_json(_about(folder)["recipe"])
    except KeyError as error:
        raise ResultError(f"{folder / ABOUT} is damaged: {error!r}") from error
    except (TypeError, UsageError):
        return False  # settings that this version does not know, or know otherwise
    return json.dumps(made.as_json()) == json.dumps(recipe.as_json())


def parsed(reference: str) -> tuple[str, int, str | None]:
    """The name, seed and split in `world:NAME`, `world:NAME@SEED`, `world:NAME@SEED.SPLIT`.

    Raises:
        UsageError: for an unknown name, or a seed that is no number.
    """
    rest, _, split = reference.removeprefix("world:").partition(".")
    name, _, seed = rest.partition("@")
    recipe_of(name)
    if seed and not seed.isdecimal():
        raise UsageError(f"{reference!r} should end in a seed, as in world:{name}@1, not {seed!r}")
    return name, int(seed or 0), split or None


def world_queries(reference: str) -> QuerySet:
    """The questions of a world by `world:NAME.SPLIT`, without its model; in distribution if it
    names no split.

    Raises:
        UsageError: for an unknown name or split.
    """
    name, seed, split = parsed(reference)
    task = recipe_of(name).seeded(seed).task
    return _queries(name, task, split or "in_distribution")


def _model_folder(reference: str, device: torch.device | None) -> tuple[Path, str]:
    """The folder of `world:NAME@SEED`, and what results call its model."""
    name, seed, _ = parsed(reference)
    return world_folder(name, seed, device=device), world_name(name, seed)


models.RESOLVERS["world"] = _model_folder
queries.RESOLVERS["world"] = world_queries
