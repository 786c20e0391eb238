"""Provides shipped(): the files of the trained probes that come with hopscope."""

from __future__ import annotations

from pathlib import Path

from hopscope.errors import UsageError

FOLDER = Path(__file__).parent / "trained"


def shipped(name: str) -> Path:
    """Return the file of a trained probe, which is described in `probes/trained/README.md`.

    Args:
        name: name of the probe, such as `smollm2-135m.tuned_lens` or `smollm2-135m.bridge_probe`.

    Raises:
        UsageError: for an unknown name; the message lists the known names.

    Example:
        >>> shipped("smollm2-135m.bridge_probe").name
        'smollm2-135m.bridge_probe.safetensors'
    """
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        known = sorted(file.stem for file in FOLDER.glob("*.safetensors"))
        raise UsageError(
            f"no trained probe {name!r} comes with hopscope; choose one of {', '.join(known)}"
        )
    return path
