"""Provides Reader: prompts under masks, read in the same way whatever the kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hopscope.documents.layout import Layout
from hopscope.engine.cache import Prefix
from hopscope.engine.clean_run import clean_run
from hopscope.engine.edits import Cell, Knockout
from hopscope.engine.masked.encoder_decoder import read_encoder_decoder
from hopscope.engine.masked.read import read
from hopscope.engine.masked.store import PrefixCache
from hopscope.engine.read_out import CellOutputs, Readings, ReadOut, Version
from hopscope.engine.sweep import sweep
from hopscope.errors import ModelError
from hopscope.masks.algebra import Mask
from hopscope.masks.named import knock_out, mask_of
from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import TokenModel

ReadBlocked = Callable[[Sequence[Knockout | None], ReadOut], CellOutputs]
"""Reads a prompt without some attention edges, one cell each; None is the prompt as it is."""


class Reader(Protocol):
    """What reads prompts under masks.

    Attributes:
        usual_mask: the name of the mask that the model was trained with.
        looks_ahead: whether tokens of a prompt see later ones under that mask.
        n_mask_layers: how many blocks there are whose masks can be named.
    """

    @property
    def usual_mask(self) -> str: ...
    @property
    def looks_ahead(self) -> bool: ...
    @property
    def n_mask_layers(self) -> int: ...

    def read(
        self, versions: Sequence[Version], read_out: ReadOut, *, attention: bool = False
    ) -> Readings:
        """Read prompts under masks; with `attention` also how much goes to each segment."""

    def blocking(self, layout: Layout) -> ReadBlocked:
        """What reads a prompt under the usual mask with attention edges blocked."""


@dataclass(frozen=True)
class DecoderReader:
    """Reads with a decoder-only model, which keeps what prompts begin with from call to call."""

    model: LanguageModel
    prefixes: PrefixCache = field(default_factory=PrefixCache)
    usual_mask: str = "causal"
    looks_ahead: bool = False

    @property
    def n_mask_layers(self) -> int:
        """Number of blocks."""
        return self.model.n_layers

    def read(
        self, versions: Sequence[Version], read_out: ReadOut, *, attention: bool = False
    ) -> Readings:
        """See `hopscope.engine.masked.read.read`."""
        return read(self.model, versions, read_out, attention=attention, prefixes=self.prefixes)

    def blocking(self, layout: Layout) -> ReadBlocked:
        """A sweep over the prompt's clean run."""
        clean = clean_run(self.model, layout.ids, Prefix())

        def run(knockouts: Sequence[Knockout | None], read_out: ReadOut) -> CellOutputs:
            cells: list[Cell] = [[] if each is None else [each] for each in knockouts]
            return sweep(self.model, layout.ids, cells, read_out, clean=clean)

        return run


@dataclass(frozen=True)
class EncoderDecoderReader:
    """Reads with a T5-like model; masks are those of its encoder."""

    model: EncoderDecoder
    usual_mask: str = "prefix_bidirectional"
    looks_ahead: bool = True

    @property
    def n_mask_layers(self) -> int:
        """Number of blocks of the encoder."""
        return self.model.n_encoder_layers

    def read(
        self, versions: Sequence[Version], read_out: ReadOut, *, attention: bool = False
    ) -> Readings:
        """See `read_encoder_decoder`."""
        return read_encoder_decoder(self.model, versions, read_out, attention=attention)

    def blocking(self, layout: Layout) -> ReadBlocked:
        """Reads the prompt under masks."""

        def run(knockouts: Sequence[Knockout | None], read_out: ReadOut) -> CellOutputs:
            versions = [Version(layout, self._without(each)) for each in knockouts]
            return self.read(versions, read_out).outputs

        return run

    def _without(self, knockout: Knockout | None) -> Mask:
        usual = mask_of(self.usual_mask)
        if knockout is None:
            return usual
        cut = knockout.queries, knockout.keys, knockout.layers, knockout.heads
        return usual & knock_out(*cut)


def reader_of(model: TokenModel) -> Reader:
    """What reads prompts under masks with a model.

    Raises:
        ModelError: for a kind of model that nothing reads.
    """
    if isinstance(model, LanguageModel):
        return DecoderReader(model)
    if isinstance(model, EncoderDecoder):
        return EncoderDecoderReader(model)
    raise ModelError(f"nothing reads prompts under masks with {model!r}")
