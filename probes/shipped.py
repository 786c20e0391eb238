"""Provides shipped(): where the trained probes lie that come with hopscope."""

from __future__ import annotations

from pathlib import Path

from hopscope.errors import UsageError

FOLDER = Path(__file__).parent / "trained"


def shipped(name: str) -> Path:
    """The file of a trained probe; `probes/trained/README.md` is its card.

    Args:
        name: such as `smollm2-135m.tuned_lens` or `smollm2-135m.bridge_probe`.

    Raises:
        UsageError: if there is none of that name; the message lists those that there are.

    Example:
        >>> shipped("smollm2-135m.bridge_probe").name
        'smollm2-135m.bridge_probe.safetensors'
    """
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        there = sorted(file.stem for file in FOLDER.glob("*.safetensors"))
        raise UsageError(f"no trained probe {name!r} comes with hopscope; there is {there}")
    return path
