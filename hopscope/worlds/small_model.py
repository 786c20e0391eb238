"""Provides the models of worlds: GPT-2 or Llama models of a few blocks, which may be looped.

A looped model runs its blocks several times. It is implemented as a model with more blocks that
share parameters, so that hopscope, TransformerLens and nnsight treat each pass as separate blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hopscope.errors import UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.training.fit import torch_seed
from hopscope.training.settings import check_positive
from hopscope.training.small_models import scale, small_llama, whole_words


@dataclass(frozen=True)
class Shape:
    """The shape of a pre-norm model, by default with tied embeddings.

    Attributes:
        n_blocks: number of blocks with their own parameters.
        n_loops: number of passes through these blocks.
        d_model: width of the residual stream.
        n_heads: heads per block.
        d_mlp: width of the MLP; four times `d_model` if None.
        n_positions: longest text in tokens.
        one_hot: whether the residual stream begins as the concatenation of a one-hot vector of the
            word and one of the position, neither of them learned. The logits are then the part of
            the words, and the width is the number of words plus positions instead of `d_model`.
        scaled: whether to scale initial matrices by fan-in and embeddings to variance 1, untied
            from the output; see `hopscope.training.small_models.scale`.
        rotary: whether the model is a Llama with rotary position embeddings, and not a GPT-2 with
            learned position embeddings.

    Raises:
        UsageError: if values are out of range or do not fit together.
    """

    n_blocks: int = 4
    n_loops: int = 1
    d_model: int = 64
    n_heads: int = 4
    d_mlp: int | None = None
    n_positions: int = 32
    one_hot: bool = False
    scaled: bool = False
    rotary: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "n_blocks", "n_loops", "d_model", "n_heads", "n_positions")
        if self.one_hot and self.scaled:
            raise UsageError("one_hot and scaled exclude each other: one_hot fixes the embeddings")
        if self.one_hot and self.rotary:
            raise UsageError(
                "one_hot and rotary exclude each other: one_hot embeds positions, rotary does not"
            )
        if not self.one_hot and self.d_model % self.n_heads:
            raise UsageError(
                f"d_model {self.d_model} must be a multiple of n_heads = {self.n_heads}"
            )
        if self.rotary and self.d_model // self.n_heads % 2:
            raise UsageError(
                f"rotary needs heads of even width: change d_model or n_heads = {self.n_heads}"
            )


def untrained(
    words: Sequence[str],
    shape: Shape,
    seed: int,
    name: str,
    device: str | torch.device | None = "cpu",
) -> LanguageModel:
    """Build a model with random weights and a vocabulary of whole words.

    Args:
        words: the vocabulary, besides special tokens.
        shape: shape of the model.
        seed: seed of the weights, which are drawn on the CPU.
        name: name of the model in results.
        device: device of the model.

    Raises:
        UsageError: if the width of a one-hot model is not a multiple of its heads.
    """
    tokenizer = whole_words(words)
    width = len(tokenizer) + shape.n_positions if shape.one_hot else shape.d_model
    if width % shape.n_heads:
        raise UsageError(
            f"{len(tokenizer)} words and {shape.n_positions} positions make a width of {width}, "
            f"which cannot be divided by {shape.n_heads} heads: change n_positions"
        )
    with torch_seed(torch.device("cpu"), seed), torch.device("cpu"):
        hf = _random_model(shape, width, tokenizer)
        if shape.scaled:
            scale(hf)
    tie(hf, shape)
    return load_model(hf, device, tokenizer=tokenizer, name=name)


def _random_model(shape: Shape, width: int, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Build a model with the default random weights of transformers, or one-hot embeddings."""
    n_blocks, d_mlp = shape.n_blocks * shape.n_loops, shape.d_mlp or 4 * width
    if shape.rotary:
        return small_llama(
            tokenizer,
            n_layers=n_blocks,
            d_model=width,
            n_heads=shape.n_heads,
            d_mlp=d_mlp,
            n_positions=shape.n_positions,
            tied=not shape.scaled,
        )
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=shape.n_positions,
        n_embd=width,
        n_layer=n_blocks,
        n_head=shape.n_heads,
        n_inner=d_mlp,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=not shape.scaled,
    )
    hf = GPT2LMHeadModel(config)
    if shape.one_hot:
        one_hot = torch.eye(width)
        with torch.no_grad():
            hf.transformer.wte.weight.copy_(one_hot[: len(tokenizer)])
            hf.transformer.wpe.weight.copy_(one_hot[len(tokenizer) :])
    return hf


def learn(hf: nn.Module, shape: Shape) -> None:
    """Require gradients for exactly the parameters that training changes."""
    hf.requires_grad_(True)
    if shape.one_hot:
        for name in ("wte", "wpe"):
            hf.get_submodule(f"transformer.{name}").requires_grad_(False)


def tie(hf: nn.Module, shape: Shape) -> None:
    """Share the parameters of the first pass through the blocks with all later passes, in place."""
    blocks = hf.get_submodule("model.layers" if shape.rotary else "transformer.h")
    assert isinstance(blocks, nn.ModuleList)
    for number in range(shape.n_blocks, len(blocks)):
        modules = dict(blocks[number].named_modules())
        for path, module in blocks[number % shape.n_blocks].named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(modules[path], name, parameter)


def untied(hf: PreTrainedModel) -> PreTrainedModel:
    """Return a copy in which each block has its own parameters, as in a saved model."""
    with torch_seed(torch.device("cpu"), 0), torch.device("cpu"):
        copy = type(hf)(hf.config)
    copy.load_state_dict({name: each.detach().cpu() for name, each in hf.state_dict().items()})
    return copy
