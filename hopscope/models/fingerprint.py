"""Provides digests of what makes a model's outputs: its weights, and everything else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hopscope.models.offload import numbers_of

SETUP_RULE = 1
"""Version of the rule by which `setup_of` describes a model. Descriptions of two versions cannot be
compared."""

NO_NUMBERS = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
    | {"use_cache", "return_dict", "output_attentions", "output_hidden_states"}
    | {"_attn_implementation", "_experts_implementation", "tie_word_embeddings"}
    | {"id2label", "label2id", "problem_type", "initializer_range", "initializer_factor"}
    | {"pad_token_id", "bos_token_id", "eos_token_id"}
)
"""Settings of a configuration that do not change the numbers, or are described otherwise."""

_ROW = 8 * 509
"""Bytes that are summed up with those that stand as many further on; 509 is a prime, so that rows
and heads that change places do not fall on each other."""

EXACT = frozenset({"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"})
"""Attention implementations that differ by rounding alone."""


def weights_digest(hf: PreTrainedModel) -> str:
    """Return the sha256 over the names, types, shapes and bytes of all parameters."""
    tied = getattr(hf, "all_tied_weights_keys", {})  # offloading makes them parameters of their own
    named = sorted(hf.named_parameters())
    return _digest_of_tensors(
        hf, [(n, each) for n, each in named if not each.is_meta or n not in tied]
    )


def digests(hf: PreTrainedModel) -> tuple[str, str]:
    """Return the digests of parameters and of buffers."""
    return weights_digest(hf), buffers_digest(hf)


def tensors_checksum(hf: PreTrainedModel) -> str:
    """Return a digest of sums over all parameters and saved buffers, where they are.

    It tells a model that was changed from one that was not in a fraction of the time of a digest of
    the bytes, above all on a GPU, but is none of them: it is not told to anyone.
    """
    digest, tied = hashlib.sha256(), getattr(hf, "all_tied_weights_keys", {})
    for name, tensor in sorted(hf.state_dict(keep_vars=True).items()):
        if not isinstance(tensor, Tensor) or (tensor.is_meta and name in tied):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in _parts(numbers_of(hf, name, tensor).detach()):
            flat = part.contiguous().reshape(-1).view(torch.uint8)
            whole = len(flat) // _ROW * _ROW
            aligned = flat[:whole] if flat.data_ptr() % 8 == 0 else flat[:whole].clone()
            sums = aligned.view(torch.int64).reshape(-1, _ROW // 8).sum(0)
            for each in (sums, flat[whole:]):
                digest.update(each.to("cpu").numpy().tobytes())
    return digest.hexdigest()


def buffers_digest(hf: PreTrainedModel) -> str:
    """Return the sha256 over tensors that are saved with a model but are no parameters."""
    parameters = {id(each) for each in hf.parameters()}
    saved = sorted(
        (name, each)
        for name, each in hf.state_dict(keep_vars=True).items()
        if isinstance(each, Tensor) and id(each) not in parameters
    )
    return _digest_of_tensors(hf, saved)


def weights_state(hf: PreTrainedModel) -> tuple[tuple[int, int], ...]:
    """Return what changes when a parameter is replaced or changed in place.

    Parameters that are offloaded are replaced in each pass, so that they do not count.
    """
    return tuple(
        (id(each), 0 if each.is_inference() else each._version)
        for each in hf.parameters()
        if not each.is_meta
    )


def setup_of(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    end_tokens: Iterable[int],
    buffers: str,
) -> dict[str, Any]:
    """Describe what makes a model's outputs besides its parameters, as JSON.

    The device, and how the model was loaded, are no part of it.

    Args:
        hf: the model.
        tokenizer: its tokenizer.
        end_tokens: the tokens that end a generation.
        buffers: what `buffers_digest` returns.

    Returns:
        `rule`: the version of this description; `config`, `tokenizer`, `modules`: a sha256 of the
        configuration's settings that differ from their defaults, of the tokenizer, and of buffers
        and modules of other libraries (adapters, quantised weights); `attention`: the attention
        implementation, if more than rounding depends on it; `end_tokens`: what ends a generation.
    """
    config = hf.config.get_text_config()
    attention = config._attn_implementation
    types = sorted((name, str(each.dtype)) for name, each in hf.named_buffers())
    return {
        "rule": SETUP_RULE,
        "config": _digest([hf.config.model_type, _own_settings(config)]),
        "tokenizer": _digest(_tokenizer_state(tokenizer)),
        "modules": _digest([buffers, types, [*_foreign_modules(hf)]]),
        "attention": None if attention in EXACT else attention,
        "end_tokens": sorted(end_tokens),
    }


def _own_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings of a configuration that differ from those of its class."""
    defaults = type(config)().to_dict()
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in NO_NUMBERS and (name not in defaults or value != defaults[name])
    }


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Return what a fast tokenizer makes tokens and texts with.

    How it cuts and pads stands at the beginning of its JSON, and may change from call to call.
    """
    state = str(tokenizer.backend_tokenizer.to_str())
    fixed = state[max(state.find('"added_tokens"'), 0) :]
    return [fixed, tokenizer.chat_template]


def _foreign_modules(hf: PreTrainedModel) -> Iterator[Any]:
    """Yield the class of each module that is not of torch or transformers.

    Of adapters also how they act (which are active, their scaling): that is in plain attributes.
    Modules of other libraries note there what they have done so far. Weights that several tensors
    make up (torchao) also tell how they act, such as whether they quantise their inputs.
    """
    for name, weight in hf.named_parameters():
        if hasattr(weight, "__tensor_flatten__"):
            yield [name, type(weight).__qualname__, weight.__tensor_flatten__()[1]]
    for name, module in hf.named_modules():
        library = type(module).__module__.partition(".")[0]
        if library not in ("torch", "transformers"):
            plain = {key: value for key, value in vars(module).items() if _is_plain(value)}
            acts = {key: value for key, value in plain.items() if key != "training"}
            yield [name, type(module).__qualname__, acts if library == "peft" else {}]


def _is_plain(value: Any) -> bool:
    """Return whether a value is text, a number, or made of such."""
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bool, int, float))


def _digest(state: Any) -> str:
    """Return the sha256 of something as JSON; of other objects only the type counts."""
    text = json.dumps(state, sort_keys=True, default=lambda each: type(each).__qualname__)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_of_tensors(hf: nn.Module, named: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 over the names, types, shapes and bytes of tensors of a model."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in _parts(numbers_of(hf, name, tensor).detach()):
            plain = part.to("cpu").contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor consists of: several, if it is quantised."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _parts(getattr(tensor, name))
