"""Provides evaluating(): a model that computes as in evaluation, however it is set.

And torch_modes(), which leaves torch itself as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import nn
from transformers import PreTrainedConfig

from hopscope.interrupts import interrupt_safe

PLAIN_OUTPUTS: Mapping[str, bool] = MappingProxyType(
    {
        "return_dict": True,
        "output_attentions": False,
        "_output_attentions": False,  # what the property of that name keeps
        "output_hidden_states": False,
        "output_router_logits": False,
    }
)
"""The settings of a configuration that say in which form a forward pass returns what it computes,
with the values that give logits and nothing more."""


@interrupt_safe
def torch_modes() -> Iterator[None]:
    """Leave torch's gradient mode, autocast and number of threads as they were before.

    An interrupt inside `torch.no_grad()` or `torch.autocast` themselves can leave them changed.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    gradients, n_threads = torch.is_grad_enabled(), torch.get_num_threads()
    autocast = {device: torch.is_autocast_enabled(device) for device in devices}
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        for device, enabled in autocast.items():
            torch.set_autocast_enabled(device, enabled)
        if torch.get_num_threads() != n_threads:
            torch.set_num_threads(n_threads)


@interrupt_safe
def plain_outputs(module: nn.Module) -> Iterator[None]:
    """Let a model return objects with logits alone while the context is open.

    Args:
        module: the model. The configurations of its modules are changed in place meanwhile.
    """
    held = (vars(each).get("config") for each in module.modules())
    configs = {id(each): vars(each) for each in held if isinstance(each, PreTrainedConfig)}
    asked = [
        (settings, {name: settings[name] for name in PLAIN_OUTPUTS if name in settings})
        for settings in configs.values()
    ]
    try:
        for settings, kept in asked:
            settings.update({name: PLAIN_OUTPUTS[name] for name in kept})
        yield
    finally:
        for settings, kept in asked:
            settings.update(kept)


@interrupt_safe
def evaluating(module: nn.Module) -> Iterator[None]:
    """Let a model compute as in evaluation while the context is open, and set it back afterwards.

    No module drops out activations, and forward passes return objects with logits alone, whatever
    `module.train()` and the configuration ask for.

    Args:
        module: the model. Its modules and their configurations are changed in place meanwhile.
    """
    training = [each for each in module.modules() if each.training]
    try:
        for each in training:
            each.training = False
        with plain_outputs(module):
            yield
    finally:
        for each in training:
            each.training = True
