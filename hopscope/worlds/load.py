"""Provides load_world(): loads a world by name, and trains it first if necessary."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hopscope.errors import MAX_SEED, ResultError, UsageError, path_of, whole_number
from hopscope.queries.query_set import QuerySet
from hopscope.worlds.catalogue import WORLDS, recipe_of
from hopscope.worlds.folders import ABOUT, cached_folder, places_of, world_name
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.world import World, read_record, read_world, task_queries


def load_world(
    world: str | Path, seed: int = 0, *, device: str | torch.device | None = None
) -> World:
    """Load a trained world.

    Args:
        world: a name of `WORLDS`, or the folder of a world. A named world that does not come with
            hopscope is trained once and then kept in the cache.
        seed: seed of the training, for a named world.
        device: device of the model; by default CUDA if available.

    Raises:
        UsageError: for an unknown name, or a folder without a world.
        ResultError: if the record of the world is damaged.

    Example:
        >>> world = load_world("two-hop-looped")
        >>> world.queries("first_hop_ood")[0].two_hop()
        'e00 r05 r00'
    """
    seed = whole_number("seed", seed, 0, MAX_SEED)
    if isinstance(world, str) and world in WORLDS:
        return read_world(world_folder(world, seed, device=device), device)
    return read_world(path_of("world", world), device)


def world_folder(name: str, seed: int = 0, *, device: str | torch.device | None = None) -> Path:
    """Return the folder of a named world, and train the world first if there is none.

    Raises:
        UsageError: for an unknown name.
        ResultError: if the world in the cache was trained with another recipe.
    """
    recipe = recipe_of(name).seeded(seed)
    for place in places_of(name):
        folder = place / f"seed-{seed}"
        if not (folder / ABOUT).is_file():
            continue
        if not _made_by(folder, recipe):
            raise ResultError(
                f"{folder} was trained by another recipe; delete it to train it again"
            )
        return folder
    from hopscope.worlds.train import train_world

    folder = cached_folder(name, seed)
    train_world(name, seed, folder, device=device)
    return folder


def _made_by(folder: Path, recipe: Recipe) -> bool:
    """Return whether a world was trained with a recipe; missing settings had their defaults."""
    try:
        recorded = Recipe.from_json(read_record(folder)["recipe"])
    except KeyError as error:
        raise ResultError(f"{folder / ABOUT} is damaged: {error!r}") from error
    except (TypeError, UsageError):
        return False  # settings that this version does not accept
    return json.dumps(recorded.as_json()) == json.dumps(recipe.as_json())


def parse_reference(reference: str) -> tuple[str, int, str | None]:
    """Split `world:NAME`, `world:NAME@SEED` or `world:NAME@SEED.SPLIT` into name, seed and split.

    Raises:
        UsageError: for an unknown name, or a seed that is not a number.
    """
    rest, _, split = reference.removeprefix("world:").partition(".")
    name, _, seed = rest.partition("@")
    recipe_of(name)
    if seed and not seed.isdecimal():
        raise UsageError(f"{reference!r} should end in a seed, as in world:{name}@1, not {seed!r}")
    return name, int(seed or 0), split or None


def world_queries(reference: str) -> QuerySet:
    """Return the two-hop queries of a world by a reference such as `world:NAME.SPLIT`.

    The model is not loaded. Without a split, the queries are those in distribution.

    Raises:
        UsageError: for an unknown name or split.
    """
    name, seed, split = parse_reference(reference)
    task = recipe_of(name).seeded(seed).task
    return task_queries(name, task, split or "in_distribution")


def model_folder(reference: str, device: torch.device | None) -> tuple[Path, str]:
    """Return the folder of the model of `world:NAME@SEED`, and its name in results."""
    name, seed, _ = parse_reference(reference)
    return world_folder(name, seed, device=device), world_name(name, seed)
