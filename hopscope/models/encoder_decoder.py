"""Provides EncoderDecoder: one view of a T5-like Hugging Face model."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hopscope.errors import ModelError
from hopscope.models.token_model import TokenModel

T5_TYPES = ("t5", "mt5", "umt5")
"""The model types whose parts are where T5 (and so Flan-T5) has them."""


class EncoderDecoder(TokenModel):
    """A T5-like model, its tokenizer, and where its parts are.

    The encoder reads the prompt, whose tokens all see one another; the decoder writes the answer,
    and sees of the prompt what the encoder made of it (cross-attention). The token `</s>` that the
    tokenizer puts behind a text belongs to the prompt. Raffel et al. 2020.

    Args:
        hf: the Hugging Face model, with a language-model head.
        tokenizer: its (fast) tokenizer.
        name: what results call it.
        wrapped: the object that the user gave, if it was not `hf` itself.

    Attributes:
        encoder_layers: the blocks of the encoder.
        layers: the blocks of the decoder.
        relative: attention knows how far apart two places of the row are, and no position id.

    Raises:
        ModelError: if the model is no T5-like one, or has no head.
    """

    relative = True

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        wrapped: object | None = None,
    ) -> None:
        super().__init__(hf, tokenizer, name, wrapped)
        kind = self.config.model_type
        if kind not in T5_TYPES or not self.config.is_encoder_decoder:
            raise ModelError(
                f"{name} (model_type {kind!r}) is not an encoder-decoder that can be read here; "
                f"expected one of the types {', '.join(T5_TYPES)}, such as T5 or Flan-T5"
            )
        if self.hf.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
            raise ModelError(
                f"{type(self.hf).__name__} has no unembedding: load it with a language-model head "
                "(AutoModelForSeq2SeqLM)"
            )
        self.encoder = self.hf.get_submodule("encoder")
        self.decoder = self.hf.get_submodule("decoder")
        self.encoder_layers = _blocks(self.encoder)
        self.layers = _blocks(self.decoder)

    @property
    def n_layers(self) -> int:
        """Number of blocks of the decoder."""
        return len(self.layers)

    @property
    def n_encoder_layers(self) -> int:
        """Number of blocks of the encoder."""
        return len(self.encoder_layers)

    @property
    def max_context(self) -> None:
        """None: positions are relative, and a prompt may be as long as memory allows."""

    @cached_property
    def start_token(self) -> int:
        """The id that the decoder begins with, and that predicts the answer's first token.

        Raises:
            ModelError: if the configuration does not say it.
        """
        for config in (self.hf.generation_config, self.config):
            start = getattr(config, "decoder_start_token_id", None)
            if start is not None:
                return int(start)
        raise ModelError(f"the configuration of {self.name} has no decoder_start_token_id")

    def encoder_sublayer(self, layer: int) -> nn.Module:
        """The self-attention of encoder block `layer` with its norm and residual connection."""
        return self.encoder_layers[layer].get_submodule("layer.0")

    def encoder_attention(self, layer: int) -> nn.Module:
        """The self-attention module of encoder block `layer`."""
        return self.encoder_sublayer(layer).get_submodule("SelfAttention")

    def cross_sublayer(self, layer: int) -> nn.Module:
        """The cross-attention of decoder block `layer` with its norm and residual connection."""
        return self.layers[layer].get_submodule("layer.1")

    def cross_attention(self, layer: int) -> nn.Module:
        """The cross-attention module of decoder block `layer`."""
        return self.cross_sublayer(layer).get_submodule("EncDecAttention")

    def encoder_bias(self, layer: int, n_tokens: int) -> Tensor:
        """What the places of two tokens add to the attention scores of encoder block `layer`.

        T5 learns it in its first block and adds it in all; UMT5 learns one in every block.

        Returns:
            Numbers of shape (1, head, query, key).
        """
        own = self.encoder_attention(layer)
        if not getattr(own, "has_relative_attention_bias", False):
            own = self.encoder_attention(0)
        bias: Tensor = own.compute_bias(n_tokens, n_tokens)  # type: ignore[operator]
        return bias


def _blocks(stack: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(stack.get_submodule("block").children())
