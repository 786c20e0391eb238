"""Provides where worlds lie: shipped with the package, or in the cache."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from hopscope.models.zoo import cache_dir

ABOUT = "world.json"


def world_name(name: str, seed: int) -> str:
    """What the model of a world is called."""
    return f"world:{name}@{seed}"


def cached_folder(name: str, seed: int) -> Path:
    """Where a world that does not come with hopscope is kept."""
    return _places(name)[-1] / f"seed-{seed}"


def _places(name: str) -> tuple[Path, Path]:
    """Where the seeds of a world may lie: with hopscope, or in the cache."""
    shipped = Path(str(resources.files("hopscope.data")))
    return shipped / "worlds" / name, cache_dir() / "worlds" / name


def seeds_at_hand(name: str) -> list[int]:
    """The seeds with which a world need not be trained any more."""
    found = [about for place in _places(name) for about in place.glob(f"seed-*/{ABOUT}")]
    seeds = {about.parent.name.removeprefix("seed-") for about in found}
    return sorted(int(seed) for seed in seeds if seed.isdecimal())
