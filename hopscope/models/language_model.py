"""Provides LanguageModel: one view of a decoder-only Hugging Face model, whatever its family."""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hopscope.errors import ModelError, UsageError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from hopscope.rotary import Rotary

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention", "attn_module")
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "mlp_module")
NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
WRITERS = {
    "attn_out": "post_attention_layernorm",
    "mlp_out": "post_feedforward_layernorm",
}
"""The norms that write to the residual stream, in families that norm a sublayer's output."""
_ARTICLE = re.compile(r"^(?:the|a|an) (?=\S)", re.IGNORECASE)
PROJECTION_NAMES = ("o_proj", "c_proj", "dense", "out_proj", "wo")


@dataclass(frozen=True)
class Encoded:
    """A prompt as tokens: `ids` and, for each, its half-open character range in the text."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.ids)


class LanguageModel:
    """A causal language model, its tokenizer, and where its parts are.

    Args:
        hf: the Hugging Face model; one that TransformerLens has wrapped in place is unwrapped
            into a model that shares its parameters.
        tokenizer: its (fast) tokenizer.
        name: what results call it.
        wrapped: the object that the user gave, if it was not `hf` itself.

    Raises:
        ModelError: if the model is not causal, or a part of it cannot be found.
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
        self.config = self.hf.config.get_text_config()
        self.stack, self.layers = _find_layers(self.hf, self.config.num_hidden_layers)
        self.final_norm = _child(self.stack, NORM_NAMES, "final norm")
        self.unembedding = _find_unembedding(self.hf)
        for layer in self.layers:
            _child(layer, ATTENTION_NAMES, "attention")
            _child(layer, MLP_NAMES, "MLP")

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}, {self.hf.config.model_type}, {self.n_layers} layers, "
            f"d_model {self.d_model}, {str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

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

    def attention(self, layer: int) -> nn.Module:
        """The attention module of block `layer`."""
        return _child(self.layers[layer], ATTENTION_NAMES, "attention")

    def mlp(self, layer: int) -> nn.Module:
        """The MLP module of block `layer`."""
        return _child(self.layers[layer], MLP_NAMES, "MLP")

    def head_projection(self, layer: int) -> nn.Module:
        """The linear map from the concatenated heads of block `layer` to the residual stream."""
        return _child(self.attention(layer), PROJECTION_NAMES, "attention output projection")

    def writer(self, layer: int, site: str) -> nn.Module:
        """The module whose output block `layer` adds to the residual stream at `site`.

        Families that normalise a sublayer's output (Gemma 2 and 3, OLMo 2) add the normalised
        one, so there it is the norm's output that is `attn_out` or `mlp_out`.
        """
        if site not in WRITERS:
            raise UsageError(f"no module writes {site!r}: expected 'attn_out' or 'mlp_out'")
        block = self.layers[layer]
        if hasattr(block, "post_feedforward_layernorm"):
            return _child(block, [WRITERS[site]], f"norm of {site}")
        return self.attention(layer) if site == "attn_out" else self.mlp(layer)

    @cached_property
    def shares_prefixes(self) -> bool:
        """Whether the sweep engine can put its own attention function into this family.

        It can where transformers lets attention be replaced, every layer attends to all earlier
        tokens or to a sliding window of them, and a probe gives the same logits both ways: some
        families do more to their attention than its arguments say.
        """
        kinds = set(getattr(self.config, "layer_types", None) or ())
        known = kinds <= {"full_attention", "sliding_attention"}
        if not known or not getattr(self.hf, "_supports_attention_backend", False):
            return False
        from hopscope.streams import agrees_with_plain  # built on this module

        return agrees_with_plain(self)

    @cached_property
    def rotary(self) -> Rotary | None:
        """How keys are turned to other positions; None if that cannot be done."""
        from hopscope.rotary import Rotary  # built on this module

        return Rotary.of(self)

    def window(self, layer: int) -> int | None:
        """The sliding window of block `layer` in tokens; None if it attends to everything."""
        types = getattr(self.config, "layer_types", None)
        sliding = types[layer] == "sliding_attention" if types else True
        window = getattr(self.config, "sliding_window", None)
        return int(window) if sliding and window is not None else None

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

    def to_transformer_lens(self) -> TransformerBridge:
        """The model as a TransformerLens bridge over the same parameters; it stays as it is.

        Raises:
            ModelError: if TransformerLens does not support the family.

        See `hopscope.interop.to_transformer_lens`.
        """
        from hopscope.interop import to_transformer_lens  # built on this module

        return to_transformer_lens(self)


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


def _find_layers(hf: PreTrainedModel, n_layers: int) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    """The module that holds the list of blocks, and the blocks."""
    if getattr(hf.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{hf.config.model_type} is an encoder-decoder, not a causal language model; "
            "give a decoder-only model"
        )
    for parent in hf.modules():
        for child in parent.children():
            if isinstance(child, nn.ModuleList) and len(child) == n_layers:
                return parent, tuple(child)
    raise ModelError(
        f"cannot find the {n_layers} blocks of {type(hf).__name__}: no ModuleList of that length "
        f"among {[name for name, _ in hf.named_children()]}"
    )


def _child(parent: nn.Module, names: Sequence[str], what: str) -> nn.Module:
    for name in names:
        child = getattr(parent, name, None)
        if isinstance(child, nn.Module):
            return child
    raise ModelError(
        f"cannot find the {what} in {type(parent).__name__}: looked for {', '.join(names)}, "
        f"found {', '.join(n for n, _ in parent.named_children())}"
    )


def _find_unembedding(hf: PreTrainedModel) -> nn.Module:
    unembedding = hf.get_output_embeddings()  # type: ignore[no-untyped-call]
    if unembedding is None:
        raise ModelError(
            f"{type(hf).__name__} has no unembedding: load it with a language-model head "
            "(AutoModelForCausalLM)"
        )
    return unembedding  # type: ignore[no-any-return]
