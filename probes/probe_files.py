"""Reads and writes probes as safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hopscope.errors import HopscopeError, ResultError, UsageError
from hopscope.files import make_folder, replacing

FORMAT = "hopscope.probe/1"


def write_probe(
    path: str | Path,
    kind: str,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    exact: Collection[str] = (),
) -> Path:
    """Write the tensors and settings of a probe as one safetensors file.

    Args:
        path: the file; its folder is created if necessary.
        kind: name of the probe's class.
        tensors: tensors of the probe, by name.
        settings: everything else that `load` needs, as JSON.
        dtype: floating-point dtype in the file; that of each tensor if None.
        exact: names of tensors that keep their dtype.

    Returns:
        The file.

    Raises:
        UsageError: if a number overflows in the dtype, or if the path is a folder.
        PlaceError, WriteError: if the file cannot be written.
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
    make_folder(path.parent)
    with replacing(path) as temporary:
        save_file(cast, temporary, metadata)
    return path


def read_probe(
    path: str | Path, kind: str, settings: Collection[str], added: Mapping[str, Any] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the settings of a probe.

    Args:
        path: the file.
        kind: name of the probe's class.
        settings: names of the settings that the file must have.
        added: settings of later versions, with their values in files of earlier ones.

    Returns:
        Tensors on the CPU in the dtype of the file, and the settings.

    Raises:
        ResultError: if the file does not exist, is damaged, or holds another kind of probe.
    """
    safe_open, _ = _safetensors()
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ResultError(
            f"there is no probe at {path}; give a file that `save` has written"
        ) from None
    except Exception as error:  # safetensors raises its own errors and those of the system
        raise ResultError(
            f"{path} is damaged or not a safetensors file ({error}); "
            "fit the probe and save it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ResultError(
            f"{path} is not a probe of this version of hopscope (format "
            f"{metadata.get('format')!r}, expected {FORMAT!r}); fit the probe and save it again"
        )
    if metadata.get("kind") != kind:
        raise ResultError(
            f"{path} holds a {metadata.get('kind')}, not a {kind}; "
            f"load it with {metadata.get('kind')}.load"
        )
    return tensors, _settings(path, metadata, settings, added or {})


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy tensors from a file into a module with the same names and shapes.

    Raises:
        ResultError: if names or shapes differ.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ResultError(f"{path} does not fit the given modules: {error}") from None


def _settings(
    path: str | Path, metadata: Mapping[str, str], names: Collection[str], added: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings in the metadata of a file, after a check of their names."""
    try:
        settings = dict(json.loads(metadata["settings"]))
    except (KeyError, TypeError, ValueError):
        settings = {}
    settings = {**added, **settings}
    names = {*names, *added}
    if settings.keys() != names:
        raise ResultError(
            f"{path} is damaged: its settings are {sorted(settings)}, expected {sorted(names)}; "
            "fit the probe and save it again"
        )
    return settings


def _as_saved(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a contiguous copy of a tensor on the CPU, in the dtype of the file."""
    tensor = tensor.detach().cpu()
    if dtype is not None and tensor.is_floating_point():
        cast = tensor.to(dtype)
        if tensor.isfinite().all() and not cast.isfinite().all():
            raise UsageError(f"{name} has numbers too large for {dtype}; save in torch.bfloat16")
        tensor = cast
    return tensor.contiguous().clone()


def _safetensors() -> tuple[Any, Any]:
    """Import `safe_open` and `save_file`, without which probes can still be fitted and used."""
    try:
        from safetensors import safe_open
        from safetensors.torch import save_file
    except ImportError:
        raise HopscopeError(
            "a probe is saved and loaded with safetensors, which is not installed; "
            "pip install safetensors"
        ) from None
    return safe_open, save_file
