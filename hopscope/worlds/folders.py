"""Provides the folders of worlds, which come with the package or are in the cache."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from hopscope.models.zoo import cache_dir

ABOUT = "world.json"
"""Name of the file that describes a trained world, in its folder."""


def world_name(name: str, seed: int) -> str:
    """Return the name of the model of a world in results."""
    return f"world:{name}@{seed}"


def cached_folder(name: str, seed: int) -> Path:
    """Return the cache folder of a world that does not come with hopscope."""
    return places_of(name)[-1] / f"seed-{seed}"


def places_of(name: str) -> tuple[Path, Path]:
    """Return the folders that may hold the seeds of a world: in the package and in the cache."""
    shipped = Path(str(resources.files("hopscope.data")))
    return shipped / "worlds" / name, cache_dir() / "worlds" / name


def available_seeds(name: str) -> list[int]:
    """Return the seeds of a world that are already trained, in ascending order."""
    files = [file for place in places_of(name) for file in place.glob(f"seed-*/{ABOUT}")]
    seeds = {file.parent.name.removeprefix("seed-") for file in files}
    return sorted(int(seed) for seed in seeds if seed.isdecimal())
