"""Provides read_encoder_decoder(): prompts under masks, read by a T5-like model.

The mask says who sees whom in the encoder. The decoder sees of the prompt what its last token
sees, as what a decoder-only model generates does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from hopscope.documents.layout import Layout
from hopscope.engine.masked.store import RATHER_ALIKE
from hopscope.engine.memory import free_memory
from hopscope.engine.read_out import NextToken, Readings, ReadOut, Version, grown, outputs_of
from hopscope.errors import UsageError
from hopscope.masks.lowering import lower
from hopscope.models.encoder_decoder import EncoderDecoder


@torch.no_grad()
def read_encoder_decoder(
    model: EncoderDecoder,
    versions: Sequence[Version],
    what: ReadOut,
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
        what: what to read; draws are not supported.
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
    if what.draws is not None:
        raise UsageError("an encoder-decoder decodes greedily: leave draws out")
    _check_implementation(model)
    rows: dict[bytes, _Row] = {}
    for index, version in enumerate(versions):
        row = _Row.of(model, version, index)
        rows.setdefault(row.key, row).versions.append(index)
    budget = free_memory(model.device) if max_memory is None else max_memory
    next_token = NextToken.empty(len(versions), what)
    tokens: list[tuple[int, ...]] = [()] * len(versions)
    masses: list[Tensor] = [torch.empty(0)] * len(versions)
    for chunk in _chunks(model, list(rows.values()), budget, what.max_new_tokens):
        decoding = _Decoding(model, chunk, what, attention)
        decoding.run(next_token)
        for row, generated, read in zip(chunk, decoding.tokens, decoding.masses, strict=True):
            for index in row.versions:
                tokens[index], masses[index] = tuple(generated), read
    return Readings(outputs_of(next_token, tokens), tuple(masses) if attention else None)


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
    row = _Row.of(model, version, 0)
    n_segments = len(row.layout.segments)
    belongs = _member([row], len(row.layout))[0, :, :n_segments].to(model.device)
    found: list[Tensor] = []

    def take(_: int, weights: Tensor) -> None:
        here = belongs.to(weights.device)
        mass = here.T @ (weights[0] @ here) / here.sum(dim=0)[:, None]
        found.append(mass.cpu())

    scores = _encoder_scores(model, [row])
    attentions = [model.encoder_attention(layer) for layer in range(model.n_encoder_layers)]
    with _patterns(model, attentions, scores, take):
        _encode(model, [row], scores)
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


@dataclass(frozen=True)
class _Row:
    """A prompt that is read, for all versions that cannot differ.

    Attributes:
        layout: its tokens.
        keeps: by block, of the encoder and of the decoder, who sees whom, shape (head or 1, query,
            key); the same tensor where blocks do not differ.
        key: the same for all rows that are read alike.
        versions: the numbers of the versions.
    """

    layout: Layout
    keeps: tuple[Tensor, ...]
    key: bytes
    versions: list[int]

    @classmethod
    def of(cls, model: EncoderDecoder, version: Version, index: int) -> _Row:
        """One version, not yet entered into `versions`; `index` is its number in messages."""
        layout, mask = version.layout, version.mask
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
        own: dict[int | None, Tensor] = {}
        keeps = []
        for layer in range(max(model.n_encoder_layers, model.n_layers)):
            kind = layer if layer in mask.layers else None
            if kind not in own:
                own[kind] = mask.keep(layout, layer, model.n_heads)
            keeps.append(own[kind])
        digest = hashlib.blake2b(repr((layout.ids, layout.segments, tuple(own))).encode())
        for keep in own.values():
            digest.update(str(tuple(keep.shape)).encode())
            digest.update(np.packbits(keep.numpy()).tobytes())
        return cls(layout, tuple(keeps), digest.digest(), [])

    def __len__(self) -> int:
        return len(self.layout)


def _chunks(
    model: EncoderDecoder, rows: Sequence[_Row], budget: int, more: int
) -> Iterator[list[_Row]]:
    """Rows that are about as long, as many as memory allows."""
    chunk: list[_Row] = []
    for row in sorted(rows, key=len, reverse=True):
        longest = len((chunk or [row])[0])
        needed = (len(chunk) + 1) * _bytes_of(model, longest, more)
        if chunk and (needed > budget or len(row) < RATHER_ALIKE * longest):
            yield chunk
            chunk = []
        chunk.append(row)
    if chunk:
        yield chunk


def _bytes_of(model: EncoderDecoder, n_tokens: int, more: int) -> int:
    """What a row takes: keys and values, the widest block, its scores and logits."""
    width = torch.finfo(model.dtype).bits // 8
    states = 2 * model.n_layers * model.n_heads * model.head_dim * (n_tokens + more)
    inner = int(model.config.d_ff)
    block = n_tokens * (4 * inner + 8 * model.d_model + 5 * model.n_heads * n_tokens)
    return (states + block) * width + 2 * model.vocab_size * (width + 4)


Scores = Callable[[int], Tensor]
"""What is added to the attention scores of a block, shape (row, head, query, key)."""


def _shared_by_layer(
    rows: Sequence[_Row], join: Callable[[Sequence[Tensor]], Tensor], n_layers: int
) -> list[Tensor]:
    """The masks of all rows in one, by block; the same tensor where blocks do not differ."""
    made: dict[tuple[int, ...], Tensor] = {}
    found = []
    for layer in range(n_layers):
        keeps = [row.keeps[layer] for row in rows]
        which = tuple(id(keep) for keep in keeps)
        if which not in made:
            made[which] = join(keeps)
        found.append(made[which])
    return found


def _encoder_scores(model: EncoderDecoder, rows: Sequence[_Row]) -> Scores:
    """Position bias and masks of the encoder; padding, on the right, sees itself alone."""
    longest = max(len(row) for row in rows)

    def join(keeps: Sequence[Tensor]) -> Tensor:
        n_heads = max(len(keep) for keep in keeps)
        seen = torch.eye(longest, dtype=torch.bool).repeat(len(keeps), n_heads, 1, 1)
        for index, keep in enumerate(keeps):
            n = keep.shape[-1]
            seen[index, :, :n, :n] = keep
        return seen.to(model.device)

    masks = _shared_by_layer(rows, join, model.n_encoder_layers)

    def scores(layer: int) -> Tensor:
        bias = model.encoder_bias(layer, longest)
        return _lowered(masks[layer].to(bias.device), bias)

    return scores


def _cross_scores(model: EncoderDecoder, rows: Sequence[_Row]) -> Scores:
    """What the decoder sees of the prompts: what their last tokens see, and no padding."""
    longest = max(len(row) for row in rows)

    def join(keeps: Sequence[Tensor]) -> Tensor:
        n_heads = max(len(keep) for keep in keeps)
        seen = torch.zeros(len(keeps), n_heads, 1, longest, dtype=torch.bool)
        for index, keep in enumerate(keeps):
            seen[index, :, 0, : keep.shape[-1]] = keep[:, -1]
        return seen.to(model.device)

    masks = _shared_by_layer(rows, join, model.n_layers)
    nothing = torch.zeros(1, model.n_heads, 1, 1, dtype=model.dtype, device=model.device)
    return lambda layer: _lowered(masks[layer], nothing)


def _lowered(keep: Tensor, bias: Tensor) -> Tensor:
    """A keep-mask and a position bias as numbers to add to scores; heads stand apart."""
    seen = lower(keep, "eager", bias.dtype)
    return torch.where(seen == 0, bias, seen)


@contextmanager
def _adding(sublayers: Sequence[nn.Module], scores: Scores) -> Iterator[None]:
    """Add numbers to the attention scores of each sublayer, in place of its own mask and bias.

    T5 hands the position bias from block to block, and in earlier versions of transformers (5.9)
    the first block's mask in it; so every block is given both as its bias. UMT5 blocks add a bias
    of their own, and take the mask alone.
    """

    def hook(layer: int) -> Callable[..., Any]:
        def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            added = scores(layer).to(args[0].device)
            if "position_bias" in kwargs:
                return args, {**kwargs, "attention_mask": None, "position_bias": added}
            least = torch.finfo(added.dtype).min
            mask = torch.where(added > least, torch.zeros_like(added), least)
            return args, {**kwargs, "attention_mask": mask}

        return replace

    with ExitStack() as stack:
        for layer, sublayer in enumerate(sublayers):
            handle = sublayer.register_forward_pre_hook(hook(layer), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def _patterns(
    model: EncoderDecoder,
    attentions: Sequence[nn.Module],
    scores: Scores,
    take: Callable[[int, Tensor], None],
) -> Iterator[None]:
    """Call `take` with each block's attention weights, in float32: (row, head, query, key).

    They are computed anew from queries and keys, since only the eager implementation tells them.
    Keys that are kept in a cache are computed in the first pass alone, and remembered here.
    """
    states: dict[tuple[int, str], Tensor] = {}

    def keep(layer: int, part: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            rows, tokens = output.shape[:2]
            heads = output.view(rows, tokens, model.n_heads, -1)
            states[layer, part] = heads.transpose(1, 2)

        return hook

    def done(layer: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            products = states[layer, "q"].float() @ states[layer, "k"].float().transpose(-1, -2)
            added = scores(layer).float().to(products.device)
            take(layer, torch.softmax(products + added, dim=-1))

        return hook

    with ExitStack() as stack:
        for layer, attention in enumerate(attentions):
            for part in ("q", "k"):
                projection = attention.get_submodule(part)
                handle = projection.register_forward_hook(keep(layer, part))
                stack.callback(handle.remove)
            stack.callback(attention.register_forward_hook(done(layer)).remove)
        yield


def _encode(model: EncoderDecoder, rows: Sequence[_Row], scores: Scores) -> Tensor:
    """What the encoder makes of some prompts, shape (row, token, d_model)."""
    longest = max(len(row) for row in rows)
    padded = [[*row.layout.ids, *row.layout.ids[:1] * (longest - len(row))] for row in rows]
    ids = torch.tensor(padded, device=model.device)
    sublayers = [model.encoder_sublayer(layer) for layer in range(model.n_encoder_layers)]
    with _adding(sublayers, scores):
        states: Tensor = model.encoder(input_ids=ids).last_hidden_state
    return states


def _member(rows: Sequence[_Row], n_tokens: int) -> Tensor:
    """Which segment each token belongs to, as one-hot numbers of shape (row, token, segment)."""
    n_segments = max(len(row.layout.segments) for row in rows)
    member = torch.zeros(len(rows), n_tokens, n_segments)
    for index, row in enumerate(rows):
        segment = torch.as_tensor(row.layout.segment_of)
        member[index, torch.arange(len(row)), segment] = 1
    return member


class _Decoding:
    """Some rows, encoded and decoded in one batch.

    Attributes:
        tokens: what each row generated.
        masses: for each row, if asked for, the cross-attention to its segments.
    """

    def __init__(
        self, model: EncoderDecoder, rows: Sequence[_Row], what: ReadOut, attention: bool
    ) -> None:
        self.model = model
        self.rows = rows
        self.what = what
        self.attention = attention
        self.tokens: list[list[int]] = [[] for _ in rows]
        self.masses: list[Tensor] = [torch.empty(0)] * len(rows)
        self.scores = _cross_scores(model, rows)

    def run(self, next_token: NextToken) -> None:
        """Read the next tokens and generate, each row until its text ends."""
        what, open_rows = self.what, set(range(len(self.rows)))
        states = _encode(self.model, self.rows, _encoder_scores(self.model, self.rows))
        cells = np.array([version for row in self.rows for version in row.versions])
        of_row = np.repeat(np.arange(len(self.rows)), [len(row.versions) for row in self.rows])
        ids = torch.full((len(self.rows), 1), self.model.start_token, device=self.model.device)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        read: list[Mapping[int, Tensor]] = []
        with self._watching(states.shape[1], read):
            for step in range(max(1, what.max_new_tokens + self.attention)):
                logits = self._step(ids, states, cache)
                if step == 0:
                    next_token.read(logits, of_row, cells, what)
                if not open_rows or step == what.max_new_tokens:
                    break
                ids = logits.argmax(dim=-1, keepdim=True)
                for row, token in enumerate(ids[:, 0].tolist()):
                    if row in open_rows and not grown(self.model, self.tokens[row], token, what):
                        open_rows.remove(row)
                if not open_rows and not self.attention:
                    break
        if self.attention:
            self._divide(read)

    def _step(self, ids: Tensor, states: Tensor, cache: EncoderDecoderCache) -> Tensor:
        """The logits after one more token of each row, shape (row, vocabulary)."""
        model = self.model
        sublayers = [model.cross_sublayer(layer) for layer in range(model.n_layers)]
        with _adding(sublayers, self.scores):
            output = model.hf(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                decoder_input_ids=ids,
                use_cache=True,
                **{model.cache_argument: cache},
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    @contextmanager
    def _watching(self, n_tokens: int, read: list[Mapping[int, Tensor]]) -> Iterator[None]:
        """Keep of each step the cross-attention to segments, by block (row, head, segment)."""
        if not self.attention:
            yield
            return
        model = self.model
        member = _member(self.rows, n_tokens).to(model.device)

        def take(layer: int, weights: Tensor) -> None:
            if layer == 0:
                read.append({})
            mass = weights[:, :, -1] @ member.to(weights.device)
            read[-1][layer] = mass.cpu()  # type: ignore[index]

        attentions = [model.cross_attention(layer) for layer in range(model.n_layers)]
        with _patterns(model, attentions, self.scores, take):
            yield

    def _divide(self, read: Sequence[Mapping[int, Tensor]]) -> None:
        """Give each row the masses of its own tokens, with none for what was generated."""
        steps = [[step[layer] for layer in range(self.model.n_layers)] for step in read]
        stacked = torch.stack([torch.stack(step) for step in steps])
        for index, row in enumerate(self.rows):
            n = len(row.layout.segments)
            own = stacked[: 1 + len(self.tokens[index]), :, index, :, :n]
            self.masses[index] = torch.nn.functional.pad(own, (0, 1))
