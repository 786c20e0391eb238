"""Provides read_encoder_decoder(): prompts under masks, read by a T5-like model.

The mask says who sees whom in the encoder. The decoder sees of the prompt what its last token
sees, as what a decoder-only model generates does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from hopscope.engine.decoding import greedy
from hopscope.engine.hooks import adding_to_scores, reading_weights
from hopscope.engine.masked.batch import (
    decode_in_batches,
    masses_by_row,
    padded_ids,
    padded_masks,
    segment_masses,
    segment_membership,
)
from hopscope.engine.masked.prompt import MaskedPrompt, by_layer
from hopscope.engine.memory import memory_budget
from hopscope.engine.read_out import CellOutputs, Readings, ReadOut, Version
from hopscope.errors import UsageError
from hopscope.interrupts import interrupt_safe
from hopscope.masks.lowering import lower
from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.evaluation import evaluating


@torch.no_grad()
def read_encoder_decoder(
    model: EncoderDecoder,
    versions: Sequence[Version],
    read_out: ReadOut,
    *,
    attention: bool = False,
    max_memory: int | None = None,
) -> Readings:
    """Read prompts under masks: encode with the mask, and decode greedily after it.

    The mask to leave a model as it was trained is `prefix_bidirectional`. Layers and heads of
    masks are those of the encoder. Cross-attention of decoder block ℓ sees of the prompt what its
    last token sees in encoder block ℓ, so never a document that the layout hides, nor what is
    knocked out for `question` or `last`. Versions that cannot differ are computed once, the others
    in padded batches.

    Args:
        model: the model.
        versions: the prompts, in the order in which they stand in the row.
        read_out: what to read; draws are not supported.
        attention: also read how much cross-attention goes to each segment: token 0 of `masses` is
            the one that the decoder begins with, the others those that were generated. Nothing of
            it goes to what was generated, the last segment.
        max_memory: bytes that the rows may take; measured if None.

    Raises:
        UsageError: if position ids are permuted, an answer is laid out, draws are given, a mask
            lets a token see nothing, or the attention implementation takes no position bias.

    Example:
        >>> versions = [Version(layout, mask_of("prefix_bidirectional"))]   # doctest: +SKIP
        >>> read_encoder_decoder(model, versions, ReadOut(max_new_tokens=8))  # doctest: +SKIP
    """
    if read_out.draws is not None:
        raise UsageError("an encoder-decoder decodes greedily: leave draws out")
    _check_implementation(model)
    rows: dict[bytes, EncodedRow] = {}
    for index, version in enumerate(versions):
        row = EncodedRow.of(model, version, index)
        rows.setdefault(row.key, row).versions.append(index)
    return decode_in_batches(
        model,
        list(rows.values()),
        read_out,
        partial(_decode, model, read_out, attention),
        memory_budget(model, max_memory),
        attention=attention,
        fused=False,
    )


@torch.no_grad()
def encoder_masses(
    model: EncoderDecoder, version: Version
) -> Float[Tensor, "layer head segment segment"]:
    """How much of the encoder's self-attention goes from the tokens of one segment to another.

    The attention is summed over the keys of a segment and averaged over the queries of one: the
    group attention of Masking in Multi-hop QA (Huang et al. 2025).

    Args:
        model: the model.
        version: a prompt and its mask.

    Returns:
        Numbers by encoder block, head, segment of the queries, and segment of the keys. Those of
        a query's segment sum to 1; a segment without tokens has NaN as a query's, 0 as a key's.

    Raises:
        UsageError: as `read_encoder_decoder`.
    """
    _check_implementation(model)
    row = EncodedRow.of(model, version, 0)
    belongs = segment_membership([row], len(row.tokens))[0, :, :-1].to(model.device)
    found: list[Tensor] = []

    def take(_: int, weights: Tensor) -> None:
        here = belongs.to(weights.device)
        mass = here.T @ (weights[0] @ here) / here.sum(dim=0)[:, None]
        found.append(mass.cpu())

    batch = EncoderBatch(model, [row])
    attentions = [model.encoder_attention(layer) for layer in range(model.n_encoder_layers)]
    with reading_weights(attentions, model.n_heads, batch.encoder_scores, take):
        batch.states()
    return torch.stack(found)


def _check_implementation(model: EncoderDecoder) -> None:
    for stack in (model.encoder, model.decoder):
        implementation = getattr(stack.config, "_attn_implementation", "eager")
        if implementation not in ("eager", "sdpa"):
            raise UsageError(
                f"the attention implementation {implementation!r} cannot be given the masks and "
                "position biases of a batch: load the model with attn_implementation='sdpa' or "
                "'eager'"
            )


@dataclass(frozen=True, eq=False)
class EncodedRow:
    """A prompt that is encoded whole, for all versions that cannot differ.

    Attributes:
        prompt: its tokens, and who sees whom in each block of the encoder and of the decoder.
        versions: the numbers of the versions.
        places: none: nothing comes before.
    """

    prompt: MaskedPrompt
    versions: list[int]
    places: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @classmethod
    def of(cls, model: EncoderDecoder, version: Version, index: int) -> EncodedRow:
        """One version, not yet entered into `versions`; `index` is its number in messages."""
        layout = version.layout
        if layout.positions != tuple(range(len(layout))):
            raise UsageError(
                f"version {index}: {model.name} knows by a token's place in the row how far away "
                "it is, and takes no position ids: permute by way='text' or way='mask'"
            )
        if layout.answered:
            raise UsageError(
                f"version {index}: the answer of an encoder-decoder is no part of its prompt: lay "
                "the question out without an answer"
            )
        n_layers = max(model.n_encoder_layers, model.n_layers)
        return cls(MaskedPrompt(version, n_layers, model.n_heads), [])

    @property
    def tokens(self) -> np.ndarray:
        """All tokens of the prompt."""
        return np.arange(len(self.prompt.layout))

    @property
    def key(self) -> bytes:
        """The same for all rows that are read alike."""
        layout, masks = self.prompt.layout, self.prompt.masks
        shapes = [tuple(keep.shape) for keep in masks.keeps]
        digest = hashlib.blake2b(
            repr((layout.ids, layout.segments, masks.of_layer, shapes)).encode()
        )
        for keep in masks.keeps:
            digest.update(np.packbits(keep.numpy()).tobytes())
        return digest.digest()


class EncoderBatch:
    """Some prompts as one batch: what is added to the attention scores of each block.

    Attributes:
        ids: the tokens, shape (row, token).
        masks: for each block who sees whom, shape (row, head or 1, query, key).
        cross: for each block of the decoder what its masks add to scores, shape (row, head, 1,
            key): it sees of a prompt what the prompt's last token sees, and no padding.
    """

    def __init__(self, model: EncoderDecoder, rows: Sequence[EncodedRow]) -> None:
        self.model = model
        self.ids = padded_ids(rows).to(model.device)
        self.masks = by_layer(
            [row.prompt.masks for row in rows],
            lambda keeps: padded_masks(keeps, rows).to(model.device),
        )
        nothing = torch.zeros(1, model.n_heads, 1, 1, dtype=model.dtype, device=model.device)
        distinct = {id(mask): mask for mask in self.masks[: model.n_layers]}
        added = {key: _lowered(mask[:, :, -1:], nothing) for key, mask in distinct.items()}
        self.cross = [added[id(mask)] for mask in self.masks[: model.n_layers]]

    def encoder_scores(self, layer: int) -> Tensor:
        """Position bias and mask of an encoder block, shape (row, head, query, key)."""
        bias = self.model.encoder_bias(layer, self.ids.shape[1])
        return _lowered(self.masks[layer].to(bias.device), bias)

    def states(self) -> Tensor:
        """What the encoder makes of the prompts, shape (row, token, d_model)."""
        model = self.model
        sublayers = [model.encoder_sublayer(layer) for layer in range(model.n_encoder_layers)]
        with adding_to_scores(sublayers, self.encoder_scores), evaluating(model.encoder):
            states: Tensor = model.encoder(input_ids=self.ids).last_hidden_state
        return states

    @interrupt_safe
    def decoding(self, read: Callable[[int, Tensor], None], attention: bool) -> Iterator[None]:
        """Let the decoder see what it may of the prompts, and `read` its weights if asked for."""
        model, added = self.model, self.cross.__getitem__
        layers = range(model.n_layers)
        sublayers = [model.cross_sublayer(layer) for layer in layers]
        attentions = [model.cross_attention(layer) for layer in layers if attention]
        reading = reading_weights(attentions, model.n_heads, added, read)
        with adding_to_scores(sublayers, added), reading:
            yield


def _lowered(keep: Tensor, bias: Tensor) -> Tensor:
    """A keep-mask and a position bias as numbers to add to scores; heads stand apart."""
    seen = lower(keep, "eager", bias.dtype)
    return torch.where(seen == 0, bias, seen)


def _decode(
    model: EncoderDecoder,
    read_out: ReadOut,
    attention: bool,
    rows: Sequence[EncodedRow],
    outputs: CellOutputs,
) -> tuple[list[tuple[int, ...]], list[Tensor]]:
    """Encode some rows, and decode them, each until its text ends."""
    batch = EncoderBatch(model, rows)
    encoded = BaseModelOutput(last_hidden_state=batch.states())
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    start = torch.full((len(rows), 1), model.start_token, device=model.device)
    member = segment_membership(rows, batch.ids.shape[1]).to(model.device)
    by_block: list[Tensor] = []
    masses: list[Tensor] = []

    def run(newest: Tensor | None) -> Tensor:
        by_block.clear()
        output = model.forward(
            encoder_outputs=encoded,
            decoder_input_ids=start if newest is None else newest,
            use_cache=True,
            **{model.cache_argument: cache},
        )
        if attention:
            masses.append(torch.stack(by_block))
        logits: Tensor = output.logits[:, -1]
        return logits

    def take(_: int, weights: Tensor) -> None:
        by_block.append(segment_masses(weights, member))

    versions = [row.versions for row in rows]
    with batch.decoding(take, attention):
        tokens = greedy(model, read_out, outputs, versions, run, run_last=attention)
    return tokens, masses_by_row(masses, tokens, rows)
