"""Provides the weights and the device of modules whose weights accelerate keeps elsewhere.

Between two forward passes such weights are on the device "meta", without numbers; a hook on the
module brings them from the CPU's memory or the disk, and takes the module's inputs along.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hopscope.errors import ModelError


def device_of_module(module: nn.Module) -> torch.device:
    """Return the device on which a module with parameters computes."""
    weight = next(module.parameters())
    hook = _hook(module) if weight.is_meta else None
    return weight.device if hook is None else torch.device(hook.execution_device)


def check_numbers(hf: nn.Module, name: str, tensor: Tensor) -> None:
    """Check that a parameter or buffer has numbers, wherever they are kept.

    Args:
        hf: the model.
        name: the tensor's name in the model, such as `"model.norm.weight"`.
        tensor: the tensor.

    Raises:
        ModelError: if it has none.
    """
    if tensor.is_meta and _hook(hf.get_submodule(name.rpartition(".")[0])) is None:
        raise ModelError(
            f"{name} is on the device 'meta', where it has no numbers: load the weights of "
            f"{type(hf).__name__} before it is used here"
        )


def numbers_of(hf: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Return a parameter or buffer with its numbers; arguments and errors as `check_numbers`."""
    check_numbers(hf, name, tensor)
    if not tensor.is_meta:
        return tensor
    owner, _, own_name = name.rpartition(".")
    stored: Tensor = _hook(hf.get_submodule(owner)).weights_map[own_name]
    return stored


def _hook(module: nn.Module) -> Any:
    """Return the hook that brings the weights of a module, if there is one."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", [hook])
    return next((each for each in hooks if getattr(each, "weights_map", None) is not None), None)
