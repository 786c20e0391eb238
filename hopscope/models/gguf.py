"""Provides read_gguf(): reads a quantised model file into a dense model and its tokenizer."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from hopscope.errors import ModelError
from hopscope.interrupts import interrupt_safe
from hopscope.models.kinds import check_complete
from hopscope.models.text_bars import text_bars

SPLITS_DIGITS = frozenset({"smollm", "starcoder", "refact"})
"""Names of GGUF pre-tokenizers that split digits before the byte-level BPE, which is lost when
transformers converts them."""


def read_gguf(
    path: Path, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Reads a GGUF file into a dense model on the CPU, with its tokenizer.

    Args:
        path: The `.gguf` file.
        dtype: Dtype of the dequantised weights; only float32 is exact.

    Returns:
        The model in eval mode, and its fast tokenizer.

    Raises:
        ModelError: If the file cannot be read, or transformers does not know its architecture.
    """
    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    dense: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # otherwise a GPU may get packed 4-bit modules
        dense["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        auto: Any = AutoModelForCausalLM
        with text_bars():
            model, report = auto.from_pretrained(
                **place, dtype=dtype, output_loading_info=True, **dense
            )
        check_complete(
            model, {**report, "unexpected_keys": ()}
        )  # a GGUF file has tensors of its own
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # what a damaged file breaks in the readers has many types
        raise ModelError(
            f"cannot read {path} as a GGUF model: {error}. Expected a complete GGUF file of an "
            "architecture that transformers can dequantise."
        ) from error
    _forget_quantisation(model)
    model.eval()
    return model, _plain_tokenizer(tokenizer, path)


def _forget_quantisation(model: PreTrainedModel) -> None:
    """Removes the GGUF settings, so that the dense weights are saved and loaded as such."""
    model.hf_quantizer = None  # type: ignore[assignment]
    for trace in ("quantization_config", "_model_name_or_path"):
        model.config.__dict__.pop(trace, None)


def _plain_tokenizer(tokenizer: Any, path: Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer as a generic fast one, with the pre-tokenizer that the GGUF file names.

    The generic class reads everything from `tokenizer.json`, while the class of a model family
    rebuilds part of it from vocabulary and merges, which is slow and may differ.
    """
    backend = tokenizer.backend_tokenizer
    is_byte_level = isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
    if is_byte_level and _gguf_pre_tokenizer(path) in SPLITS_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    plain = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
        **tokenizer.special_tokens_map,
    )
    plain.chat_template = tokenizer.chat_template
    return plain


def _gguf_pre_tokenizer(path: Path) -> str | None:
    """Returns the name that the GGUF file gives to its pre-tokenizer, such as `"smollm"`."""
    from gguf import GGUFReader  # slow to import, and needed only here

    field = GGUFReader(path).get_field("tokenizer.ggml.pre")
    return None if field is None else str(field.contents())


@interrupt_safe
def quiet_transformers() -> Iterator[None]:
    """Hides the progress bars of transformers, which would interrupt the bar of the caller.

    The bar of the GGUF reader cannot be disabled, so that stderr is discarded in the meantime. Log
    messages still appear, because their handlers hold the original stream.
    """
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
