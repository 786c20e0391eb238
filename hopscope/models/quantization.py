"""Provides the kinds of quantisation that have a name, and what quantised models need to be read.

What a model computes is left to the library that quantised it: everything here and in the engine
runs its modules, and reads no packed weight.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from hopscope.errors import ModelError, UsageError, one_of

QUANTIZATIONS = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}
"""The library behind each kind that has a name. All of them quantise weights only: where
activations are quantised, too, a row may depend on the rows that are computed beside it."""

TORCHAO = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}


def quantization_config(
    kind: str | QuantizationConfigMixin | None, dtype: torch.dtype
) -> QuantizationConfigMixin | None:
    """Return the transformers configuration of a kind of quantisation.

    Args:
        kind: A name in `QUANTIZATIONS`; a configuration or None is returned as it is.
        dtype: The dtype in which the model computes.

    Raises:
        UsageError: If the name is unknown.
        ModelError: If the library that it needs is not installed.

    Example:
        >>> quantization_config("nf4", torch.bfloat16).bnb_4bit_quant_type  # doctest: +SKIP
        'nf4'
    """
    if not isinstance(kind, str):
        return kind
    library = QUANTIZATIONS[one_of("quantization", kind, QUANTIZATIONS)]
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise ModelError(
            f"quantization {kind!r} needs {library}: pip install hopscope[quantization]"
        ) from error
    if kind == "nf4":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    config = getattr(importlib.import_module("torchao.quantization"), TORCHAO[kind])
    return TorchAoConfig(config())


def check_dense(config: Mapping[str, Any], name: str) -> None:
    """Raise a UsageError for a checkpoint that comes quantised, and cannot be quantised again."""
    own = (config, config.get("text_config") or {})
    stated = next(filter(None, (each.get("quantization_config") for each in own)), None)
    if stated is not None:
        raise UsageError(
            f"{name} comes quantised ({stated.get('quant_method', 'bitsandbytes')}): leave "
            "quantization out, or take the checkpoint that it was made from"
        )


def check_quantized(hf: PreTrainedModel, name: str) -> None:
    """Raise a ModelError if a model that was to be quantised has nothing that was."""
    quantizer: Any = hf.hf_quantizer
    if not any(quantizer.param_needs_quantization(hf, each) for each, _ in hf.named_parameters()):
        library = quantizer.quantization_config.quant_method.value
        raise ModelError(
            f"{library} quantises none of the modules of {name} ({hf.config.model_type}), which "
            "would be loaded as it is: choose another quantization, or none"
        )


def keep_packing(hf: PreTrainedModel) -> None:
    """Keep 4-bit weights of bitsandbytes in the one form in which they are loaded.

    On a CPU with AVX512-BF16 they would be packed anew in the first pass. From then on they compute
    in bfloat16 whatever the dtype of the model, their bytes are others, and `state_dict` breaks
    them: it undoes the packing of the weights but not of their scales (bitsandbytes 0.50).

    Raises:
        ModelError: If that has happened.
    """
    for name, module in hf.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        state = getattr(module.weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ModelError(
                f"the 4-bit weights of {name} were packed for this CPU when the model was run, and "
                "can no longer be saved or described: load the model anew, and give it to hopscope "
                "before it is run"
            )
        vars(module)["support_avx512bf16_for_cpu"] = False
