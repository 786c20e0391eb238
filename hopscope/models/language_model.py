"""Provides LanguageModel: a uniform interface to decoder-only Hugging Face models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hopscope.errors import ModelError
from hopscope.models.evaluation import evaluating
from hopscope.models.token_model import Encoded as Encoded
from hopscope.models.token_model import TokenModel
from hopscope.models.token_model import plain_modules as plain_modules

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


ATTENTION_NAMES = (
    "self_attn",
    "attn",
    "attention",
    "self_attention",
    "attn_module",
    "temporal_block",  # RecurrentGemma
    "mixer",  # Nemotron-H
)
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "mlp_module", "mlp_block")
NORM_NAMES = (
    "norm",
    "ln_f",
    "final_layer_norm",
    "final_layernorm",
    "final_norm",
    "norm_f",
    "embedding_norm",  # LFM2
)
WRITERS = {
    "attn_out": "post_attention_layernorm",
    "mlp_out": "post_feedforward_layernorm",
}
"""By what version 0.1 found the norms behind sublayers; `engine.sublayers` tries them out now."""
PLAIN_LAYERS = ("full_attention", "sliding_attention", "attention", "hybrid")
"""The values of `layer_types` whose attention is causal, within a window or not."""
WITHOUT_ATTENTION = ("linear_attention", "conv", "mamba", "moe", "mlp")
"""The values of `layer_types` of blocks in which no token attends to another by a softmax."""
PROJECTION_NAMES = ("o_proj", "c_proj", "dense", "out_proj", "wo")


class LanguageModel(TokenModel):
    """A causal language model with its tokenizer and access to its modules.

    Args:
        hf: the Hugging Face model. If TransformerLens has wrapped it in place, it is replaced by
            an unwrapped model that shares its parameters.
        tokenizer: its (fast) tokenizer.
        name: name of the model in results.
        wrapped: the object that the user passed, if it was a wrapper around `hf`.

    Raises:
        ModelError: if the model is not causal, or if its blocks, final norm or unembedding cannot
            be found.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        wrapped: object | None = None,
    ) -> None:
        super().__init__(hf, tokenizer, name, wrapped)
        self.own_attention: str | None = self.config._attn_implementation
        self.stack, self.layers = _find_layers(self.hf, self.config.num_hidden_layers)
        self.final_norm = _child(self.stack, NORM_NAMES, "final norm")
        self.unembedding = _find_unembedding(self.hf)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """All blocks."""
        return self.layers

    @cached_property
    def attention_layers(self) -> tuple[int, ...]:
        """The blocks with attention: all of a transformer, some of a hybrid, none of Mamba."""
        types = getattr(self.config, "layer_types", None) or [""] * self.n_layers
        return tuple(
            number
            for number, (block, kind) in enumerate(zip(self.layers, types, strict=True))
            if kind not in WITHOUT_ATTENTION and _named(block, ATTENTION_NAMES) is not None
        )

    def attention(self, layer: int) -> nn.Module:
        """The attention module of block `layer`.

        Raises:
            ModelError: if the block has none, such as a state-space block.
        """
        if layer not in self.attention_layers:
            some = ", ".join(map(str, self.attention_layers)) or "none"
            parts = ", ".join(type(child).__name__ for child in self.layers[layer].children())
            raise ModelError(
                f"block {layer} of {self.name} ({self.config.model_type}) has no attention that "
                f"could be read, masked or knocked out, but {parts}; blocks with attention: "
                f"{some}. Choose among those, or read and patch the residual stream (resid_pre, "
                "resid_post), which every block has"
            )
        return _child(self.layers[layer], ATTENTION_NAMES, "attention")

    def mlp(self, layer: int) -> nn.Module:
        """The MLP module of block `layer`.

        Raises:
            ModelError: if it cannot be found.
        """
        return _child(self.layers[layer], MLP_NAMES, "MLP")

    def head_projection(self, layer: int) -> nn.Module:
        """The linear map from the concatenated heads of block `layer` to the residual stream."""
        return _child(self.attention(layer), PROJECTION_NAMES, "attention output projection")

    def run_blocks(self, ids: Tensor) -> None:
        """Run the blocks on whole prompts of one length, for what hooks read there.

        Args:
            ids: shape (prompt, token).
        """
        with evaluating(self.hf):
            self.stack(input_ids=ids, use_cache=False)

    def window(self, layer: int) -> int | None:
        """The sliding window of block `layer` in tokens; None for full attention.

        Raises:
            ModelError: if the block's attention is neither full nor that of a sliding window.
        """
        types = getattr(self.config, "layer_types", None)
        if types and types[layer] not in PLAIN_LAYERS:
            raise ModelError(
                f"block {layer} of {self.name} has {types[layer].replace('_', ' ')}, which the "
                "masks here do not describe: choose a model with full or sliding attention"
            )
        sliding = types[layer] == "sliding_attention" if types else True
        window = getattr(self.config, "sliding_window", None)
        return int(window) if sliding and window is not None else None

    def to_transformer_lens(self) -> TransformerBridge:
        """Return a TransformerLens bridge that shares the parameters; the model is not changed.

        See `hopscope.models.transformer_lens.to_transformer_lens`.

        Raises:
            ModelError: if TransformerLens does not support the family.
        """
        from hopscope.models.transformer_lens import to_transformer_lens

        return to_transformer_lens(self)


def _find_layers(hf: PreTrainedModel, n_layers: int) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    """Return the module that holds the list of blocks, and the blocks.

    They are looked for in the text decoder first: a multimodal model has towers with blocks, too.
    """
    if getattr(hf.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{hf.config.model_type} is an encoder-decoder, not a causal language model; "
            "use load_encoder_decoder or a decoder-only model"
        )
    decoder: nn.Module = hf.get_decoder()  # type: ignore[no-untyped-call]
    for parent in (*decoder.modules(), *hf.modules()):
        for child in parent.children():
            if isinstance(child, nn.ModuleList) and len(child) == n_layers:
                return parent, tuple(child)
    raise ModelError(
        f"cannot find the {n_layers} blocks of {type(hf).__name__}: no ModuleList of that length "
        f"among {[name for name, _ in hf.named_children()]}"
    )


def _named(parent: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """Return the first child module that has one of the given names, if there is one."""
    children = (getattr(parent, name, None) for name in names)
    return next((child for child in children if isinstance(child, nn.Module)), None)


def _child(parent: nn.Module, names: Sequence[str], part: str) -> nn.Module:
    """Return the first child module that has one of the given names."""
    child = _named(parent, names)
    if child is not None:
        return child
    raise ModelError(
        f"cannot find the {part} in {type(parent).__name__}: looked for {', '.join(names)}, "
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
