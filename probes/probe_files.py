"""Provides reading and writing of probes: one safetensors file each, never a pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hopscope.errors import HopscopeError, ResultError, UsageError
from hopscope.files import replacing

FORMAT = "hopscope.probe/1"


def write_probe(
    path: str | Path,
    kind: str,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    exact: Collection[str] = (),
) -> Path:
    """Write a probe's tensors and settings beside their place, then rename.

    Args:
        path: the file; its folder is made if there is none.
        kind: the name of the probe's class.
        tensors: what the probe is made of.
        settings: the rest that `load` needs, as JSON can say it.
        dtype: floating-point type of the tensors in the file; their own if None.
        exact: names of small tensors that keep their own dtype.

    Raises:
        UsageError: if a number does not fit in the dtype, or the path is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file in it")
    metadata = {"format": FORMAT, "kind": kind, "settings": json.dumps(dict(settings))}
    cast = {
        name: _as_saved(name, tensor, None if name in exact else dtype)
        for name, tensor in tensors.items()
    }
    _, save_file = _safetensors()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(cast, temporary, metadata)
    return path


def read_probe(
    path: str | Path, kind: str, settings: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a probe of this kind, on the CPU in the file's dtype, and its settings.

    Args:
        path: the file.
        kind: the name of the probe's class.
        settings: names of the settings that it must have.

    Raises:
        ResultError: if there is no such file, it is damaged, or it holds something else.
    """
    safe_open, _ = _safetensors()
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ResultError(f"there is no probe at {path}; give a file that `save` wrote") from None
    except Exception as error:  # safetensors has errors of its own, and of the system's
        raise ResultError(
            f"{path} is damaged or no safetensors file ({error}); fit the probe and save it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ResultError(
            f"{path} is no probe of this version of hopscope (format {metadata.get('format')!r}, "
            f"expected {FORMAT!r}); fit the probe and save it again"
        )
    if metadata.get("kind") != kind:
        raise ResultError(
            f"{path} holds a {metadata.get('kind')}, not a {kind}; "
            f"load it with {metadata.get('kind')}.load"
        )
    return tensors, _settings(path, metadata, settings)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy a file's tensors into a module that has their names and shapes.

    Raises:
        ResultError: if the names or shapes differ.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ResultError(f"{path} does not fit what it is loaded into: {error}") from None


def _settings(
    path: str | Path, metadata: Mapping[str, str], names: Collection[str]
) -> dict[str, Any]:
    try:
        settings = dict(json.loads(metadata["settings"]))
    except (KeyError, TypeError, ValueError):
        settings = {}
    if settings.keys() != set(names):
        raise ResultError(
            f"{path} is damaged: its settings are {sorted(settings)}, expected {sorted(names)}; "
            "fit the probe and save it again"
        )
    return settings


def _as_saved(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    if dtype is not None and tensor.is_floating_point():
        cast = tensor.to(dtype)
        if tensor.isfinite().all() and not cast.isfinite().all():
            raise UsageError(f"{name} has numbers too large for {dtype}; save in torch.bfloat16")
        tensor = cast
    return tensor.contiguous().clone()


def _safetensors() -> tuple[Any, Any]:
    """safetensors' `safe_open` and `save_file`: imported here, as reading states needs neither."""
    try:
        from safetensors import safe_open
        from safetensors.torch import save_file
    except ImportError:
        raise HopscopeError(
            "a probe is saved and loaded with safetensors, which is not installed; "
            "pip install safetensors"
        ) from None
    return safe_open, save_file
