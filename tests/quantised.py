"""Provides a model whose weights are no plain matrices, as libraries that quantise make them."""

from __future__ import annotations

from typing import Any

import torch
from plain import decoder_layers
from torch import Tensor, nn
from transformers import PreTrainedModel


class Int8(torch.Tensor):
    """A weight that is kept in 8 bits, and of which nothing but its product is there."""

    @staticmethod
    def __new__(cls, data: Tensor, scale: Tensor) -> Int8:
        return Tensor._make_wrapper_subclass(cls, data.shape, dtype=scale.dtype)  # type: ignore[attr-defined,no-any-return]

    def __init__(self, data: Tensor, scale: Tensor) -> None:
        self.data8, self.scale = data, scale

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        return ["data8", "scale"], {}

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            hidden, weight, bias = args
            return nn.functional.linear(hidden, weight.data8 * weight.scale, bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


def quantised(hf: PreTrainedModel, bits: int = 8) -> PreTrainedModel:
    """The model with output projections in 8 bits, or fewer."""
    for layer in decoder_layers(hf):
        module = layer.self_attn.o_proj
        scale = module.weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
        data = (module.weight / scale).round().to(torch.int8)
        module.weight = nn.Parameter(Int8(data, scale), requires_grad=False)
    return hf
