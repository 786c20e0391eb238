"""Provides what linear modules compute without their bias, whatever library made them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hopscope.models.evaluation import evaluating
from hopscope.models.language_model import LanguageModel


@torch.no_grad()
def without_bias(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a linear module makes of its inputs, without its bias.

    Of a plain module the weight is read. Any other is run itself, but not the hooks on it, and
    what it makes of zeros is subtracted. So it may have adapters (LoRA), weights that are
    quantised, or weights that lie elsewhere until they are needed.

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
    weight = _plain_weight(module)
    if weight is not None:
        return nn.functional.linear(inputs.to(weight.device), weight).to(inputs.device)
    return outputs_of(module, inputs) - outputs_of(module, torch.zeros_like(inputs[:1]))


@torch.no_grad()
def outputs_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a module makes of its inputs, without the hooks on it, where it lies.

    Args:
        module: a module with one input, such as a linear map or a norm.
        inputs: shape (..., width of the input).

    Returns:
        Shape (..., width of the output), on the device of the inputs.
    """
    here = next((each.device for each in module.parameters() if not each.is_meta), inputs.device)
    with evaluating(module):
        outputs: Tensor = module.forward(inputs.to(here))
    return outputs.to(inputs.device)


@torch.no_grad()
def unembedding_rows(model: LanguageModel) -> Tensor:
    """The direction of each token in the unembedding, adapters (LoRA) included.

    Returns:
        Shape (vocabulary, d_model), in float32 on the CPU.
    """
    rows = _plain_weight(model.unembedding)
    if rows is None:
        basis = torch.eye(model.d_model, dtype=model.dtype, device=model.device)
        rows = without_bias(model.unembedding, basis).T
    return rows.detach().float().cpu()


def _plain_weight(module: nn.Module) -> Tensor | None:
    """The weight (output, input) of a module that computes with nothing else, and that is here."""
    if type(module) not in (nn.Linear, Conv1D) or type(module.weight) is not nn.Parameter:
        return None
    replaced = "forward" in vars(module) and not hasattr(module, "_hf_hook")  # accelerate's own
    if module.weight.is_meta or replaced:
        return None
    return module.weight if isinstance(module, nn.Linear) else module.weight.T
