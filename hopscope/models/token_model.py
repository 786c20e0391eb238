"""Provides TokenModel: what all models have in common, whichever way they read."""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hopscope.errors import UsageError

_ARTICLE = re.compile(r"^(?:the|a|an) (?=\S)", re.IGNORECASE)


@dataclass(frozen=True)
class Encoded:
    """A prompt as tokens: `ids` and, for each, its half-open character range in the text."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.ids)


class TokenModel:
    """A Hugging Face model that goes from tokens to tokens, and its tokenizer.

    Args:
        hf: the model; one that TransformerLens has wrapped in place is unwrapped into a model
            that shares its parameters.
        tokenizer: its (fast) tokenizer.
        name: what results call it.
        wrapped: the object that the user gave, if it was not `hf` itself.

    Attributes:
        probed: what a short run has told of the model, by name; each is told once.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        wrapped: object | None = None,
    ) -> None:
        self.hf = plain_modules(hf)
        self.tokenizer = tokenizer
        self.name = name
        self.wrapped = wrapped
        self.probed: dict[str, Any] = {}
        self.config = self.hf.config.get_text_config()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, {self.hf.config.model_type}, "
            f"{self.n_layers} layers, d_model {self.d_model}, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        raise NotImplementedError

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def n_heads(self) -> int:
        """Number of query heads of a block."""
        return int(self.config.num_attention_heads)

    @property
    def head_dim(self) -> int:
        """Width of one head's output."""
        stated = getattr(self.config, "head_dim", None)
        return int(stated or self.d_model // self.n_heads)

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return int(self.config.vocab_size)

    @property
    def max_context(self) -> int | None:
        """The longest prompt in tokens, where the configuration says it."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def device(self) -> torch.device:
        """Where the embeddings are, and so where token ids go."""
        return next(self.hf.get_input_embeddings().parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        return self.hf.dtype

    @cached_property
    def cache_argument(self) -> str:
        """What this version of transformers calls the keys and values of past tokens."""
        parameters = inspect.signature(type(self.hf).forward).parameters
        return "cache" if "cache" in parameters else "past_key_values"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names, types, shapes and bytes of all parameters."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.hf.named_parameters()):
            tensor = parameter.detach().to("cpu").contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def encode(self, text: str, room: int = 0) -> Encoded:
        """Tokenise a prompt as the model expects it, special tokens included.

        Args:
            text: the prompt.
            room: how many tokens are to be generated after it.

        Raises:
            UsageError: if the prompt is empty, or with `room` does not fit into the context.
        """
        row = self.tokenizer(text, return_offsets_mapping=True)
        ids = tuple(row["input_ids"])
        if not ids:
            raise UsageError(f"the prompt {text!r} has no token; give some text")
        if self.max_context is not None and len(ids) + room > self.max_context:
            raise UsageError(
                f"the prompt has {len(ids)} tokens and {room} are to be generated, but the "
                f"context of {self.name} is {self.max_context} tokens: {text[:80]!r}... "
                "Use fewer demonstrations (with_few_shot) or a shorter prompt."
            )
        return Encoded(text, ids, tuple((int(a), int(b)) for a, b in row["offset_mapping"]))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """The ids that end a generation."""
        configured = getattr(self.hf.generation_config, "eos_token_id", None)
        if configured is None:
            configured = self.tokenizer.eos_token_id
        if configured is None:
            return frozenset()
        return frozenset([configured] if isinstance(configured, int) else configured)

    def answer_tokens(self, names: Iterable[str]) -> tuple[int, ...]:
        """First tokens that tell an answer: of the names without an article, if there are any.

        The first token of "the euro" is that of "the yen", too.
        """
        names = tuple(names)
        telling = [name for name in names if not _ARTICLE.match(name.strip())]
        return self.first_tokens(telling or names)

    def first_tokens(self, names: Iterable[str], variants: bool = False) -> tuple[int, ...]:
        """The first token of each name as it would follow a prompt, after one space.

        Args:
            names: the names.
            variants: also those of the name without the space, and in lower case; of a name that
                begins with an article those of the rest, since an article names nothing.
        """
        found: dict[int, None] = {}
        for name in filter(None, (name.strip() for name in names)):
            spellings = [f" {name}"]
            if variants:
                plain = _ARTICLE.sub("", name)
                spellings = [f" {plain}", plain, f" {plain.lower()}", plain.lower()]
            for spelling in spellings:
                ids = self.tokenizer(spelling, add_special_tokens=False)["input_ids"]
                if ids:
                    found[ids[0]] = None
        return tuple(found)


def plain_modules(module: PreTrainedModel) -> PreTrainedModel:
    """The model without TransformerLens's wrappers; parameters and buffers are shared.

    `TransformerBridge` replaces modules in place by bridges that hold the original one and
    compute attention in their own way. The copy made here has the original modules again.
    """
    if not any("_original_component" in m._modules for m in module.modules()):
        return module
    plain: PreTrainedModel = _unwrapped(module, {})  # type: ignore[assignment]
    plain.config = copy.deepcopy(module.config)
    for part in plain.modules():
        if getattr(part, "config", None) is module.config:
            part.config = plain.config  # type: ignore[assignment]
    return plain


def _unwrapped(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    while "_original_component" in module._modules:
        module = module._modules["_original_component"]  # type: ignore[assignment]
    if id(module) not in seen:
        clone = copy.copy(module)
        for name, value in vars(module).items():
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                vars(clone)[name] = value.copy()  # edits of this model are not the bridge's
        seen[id(module)] = clone
        clone._modules = {
            name: None if child is None else _unwrapped(child, seen)
            for name, child in module._modules.items()
        }
    return seen[id(module)]
