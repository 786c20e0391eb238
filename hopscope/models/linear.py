"""Provides without_bias(): what a linear module adds, asked of the module and not of its weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hopscope.models.evaluation import evaluating


@torch.no_grad()
def without_bias(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a linear module makes of its inputs, without its bias.

    The module itself is run, but not the hooks on it. So it may have adapters (LoRA), weights that
    are quantised, or weights that lie elsewhere until they are needed.

    Args:
        module: a linear map, with a bias or without.
        inputs: shape (..., width of the input).

    Returns:
        Shape (..., width of the output), on the device of the inputs.

    Example:
        >>> without_bias(nn.Linear(2, 3), torch.zeros(4, 2))
        tensor([[0., 0., 0.],
                [0., 0., 0.],
                [0., 0., 0.],
                [0., 0., 0.]])
    """
    here = next((each.device for each in module.parameters() if not each.is_meta), inputs.device)
    given = inputs.to(here)
    with evaluating(module):
        outputs: Tensor = module.forward(given) - module.forward(torch.zeros_like(given[:1]))
    return outputs.to(inputs.device)
