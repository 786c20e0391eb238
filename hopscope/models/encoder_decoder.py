"""Provides EncoderDecoder: a uniform interface to T5-like Hugging Face models."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hopscope.errors import ModelError
from hopscope.models.token_model import TokenModel

T5_TYPES = ("t5", "mt5", "umt5")
"""The values of `model_type` whose modules are named as in T5 and Flan-T5."""


class EncoderDecoder(TokenModel):
    """A T5-like model (Raffel et al. 2020) with its tokenizer and access to its modules.

    The encoder reads the prompt with bidirectional attention. The decoder generates the answer, and
    attends to the encoder's states of the prompt by cross-attention. The token `</s>` that the
    tokenizer appends to a text belongs to the prompt.

    Args:
        hf: the Hugging Face model, with a language-model head.
        tokenizer: its (fast) tokenizer.
        name: name of the model in results.
        wrapped: the object that the user passed, if it was a wrapper around `hf`.

    Attributes:
        encoder_layers: the blocks of the encoder.
        layers: the blocks of the decoder.
        relative: True; attention depends on the distance between tokens, not on position ids.

    Raises:
        ModelError: if the model is not T5-like, or has no language-model head.
    """

    relative = True
    keeps_end = True
    answers_anew = True

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
    def blocks(self) -> tuple[nn.Module, ...]:
        """All blocks, those of the encoder first."""
        return (*self.encoder_layers, *self.layers)

    @property
    def n_encoder_layers(self) -> int:
        """Number of blocks of the encoder."""
        return len(self.encoder_layers)

    @property
    def max_context(self) -> None:
        """None: positions are relative, so that only memory limits the length of a prompt."""

    @cached_property
    def start_token(self) -> int:
        """The id of the decoder's start token, whose logits predict the first answer token.

        Raises:
            ModelError: if the configuration does not define it.
        """
        for config in (self.hf.generation_config, self.config):
            start = getattr(config, "decoder_start_token_id", None)
            if start is not None:
                return int(start)
        raise ModelError(
            f"the configuration of {self.name} has no decoder_start_token_id; set it in hf.config"
        )

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
        """Return the relative position bias on the attention scores of encoder block `layer`.

        T5 learns the bias in its first block and adds it in all blocks; UMT5 learns one per block.

        Args:
            layer: 0-based index of the encoder block.
            n_tokens: number of tokens in the prompt.

        Returns:
            The bias, shape (1, head, query, key).
        """
        attention = self.encoder_attention(layer)
        if not getattr(attention, "has_relative_attention_bias", False):
            attention = self.encoder_attention(0)
        bias: Tensor = attention.compute_bias(n_tokens, n_tokens)  # type: ignore[operator]
        return bias


def _blocks(stack: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(stack.get_submodule("block").children())
