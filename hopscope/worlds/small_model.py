"""Provides the models of worlds: ordinary GPT-2 or Llama models of a few blocks, looped or not.

A looped model runs its blocks several times. Its later blocks have the parameters of the earlier
ones, so that every analysis of hopscope, TransformerLens and nnsight sees each pass as a block of
its own.
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
from hopscope.training.fit import seeded
from hopscope.training.settings import check_positive
from hopscope.training.small_models import scale, small_llama, whole_words


@dataclass(frozen=True)
class Shape:
    """The shape of a model, pre-norm with tied embeddings.

    Attributes:
        n_blocks: blocks with parameters of their own.
        n_loops: how often they run, one pass after the other.
        d_model: width of the residual stream.
        n_heads: of each block.
        d_mlp: width of the MLP; four times `d_model` if None.
        n_positions: longest text in tokens.
        one_hot: let the residual stream begin as the one-hot vector of the word beside that of its
            place, and read the answer off the first part. Neither is learned, and the width
            follows from the numbers of words and positions, not from `d_model`.
        scaled: draw matrices by their fan-in and embeddings of variance 1, not tied to the output;
            see `hopscope.training.small_models.scale`.
        rotary: a Llama, whose attention knows how far tokens are apart, in place of a GPT-2, which
            learns an embedding of each place.

    Raises:
        UsageError: for a number that cannot be.
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
            raise UsageError("one_hot fixes the embeddings that scaled would draw: choose one")
        if self.one_hot and self.rotary:
            raise UsageError("one_hot embeds places, which rotary does not: choose one")
        if not self.one_hot and self.d_model % self.n_heads:
            raise UsageError(f"d_model {self.d_model} cannot be divided by {self.n_heads} heads")
        if self.rotary and self.d_model // self.n_heads % 2:
            raise UsageError(f"rotary turns pairs: {self.n_heads} heads must be of an even width")


def untrained(
    words: Sequence[str],
    shape: Shape,
    seed: int,
    name: str,
    device: str | torch.device | None = "cpu",
) -> LanguageModel:
    """A model with random weights, drawn on the CPU, whose vocabulary is some words."""
    tokenizer = whole_words(words)
    width = len(tokenizer) + shape.n_positions if shape.one_hot else shape.d_model
    if width % shape.n_heads:
        raise UsageError(
            f"{len(tokenizer)} words and {shape.n_positions} positions make a width of {width}, "
            f"which cannot be divided by {shape.n_heads} heads: change n_positions"
        )
    with seeded(torch.device("cpu"), seed), torch.device("cpu"):
        hf = _drawn(shape, width, tokenizer)
        if shape.scaled:
            scale(hf)
    tie(hf, shape)
    return load_model(hf, device, tokenizer=tokenizer, name=name)


def _drawn(shape: Shape, width: int, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model of a shape, with transformers' own random weights but for one-hot embeddings."""
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
        both = torch.eye(width)
        with torch.no_grad():
            hf.transformer.wte.weight.copy_(both[: len(tokenizer)])
            hf.transformer.wpe.weight.copy_(both[len(tokenizer) :])
    return hf


def learn(hf: nn.Module, shape: Shape) -> None:
    """Let the parameters that a training changes have gradients, and no others."""
    hf.requires_grad_(True)
    if shape.one_hot:
        for name in ("wte", "wpe"):
            hf.get_submodule(f"transformer.{name}").requires_grad_(False)


def tie(hf: nn.Module, shape: Shape) -> None:
    """Let every later pass through the blocks use the parameters of the first, in place."""
    blocks = hf.get_submodule("model.layers" if shape.rotary else "transformer.h")
    assert isinstance(blocks, nn.ModuleList)
    for number in range(shape.n_blocks, len(blocks)):
        own = dict(blocks[number].named_modules())
        for path, module in blocks[number % shape.n_blocks].named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(own[path], name, parameter)


def untied(hf: PreTrainedModel) -> PreTrainedModel:
    """A copy in which every block has parameters of its own, as a file holds them."""
    with seeded(torch.device("cpu"), 0), torch.device("cpu"):
        copy = type(hf)(hf.config)
    copy.load_state_dict({name: each.detach().cpu() for name, each in hf.state_dict().items()})
    return copy
