"""Provides Rotary: turning keys that a model has computed to other positions.

With rotary embeddings a key at position p is R(p) k, and R(p + d) = R(d) R(p): what was computed of
a document at one place serves at another, if what it saw lies equally far away there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hopscope.engine.attention import forward_streams
from hopscope.engine.cache import PassPlan, Prefix, StreamCache
from hopscope.engine.hooks import probed
from hopscope.engine.support import FIXED_ROTATIONS, rotations
from hopscope.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

FIXED = FIXED_ROTATIONS
PROBE_TOKENS = 12
SHIFT = 17


@dataclass(frozen=True)
class Rotary:
    """The frequencies of a model's rotary embeddings, block by block.

    Attributes:
        frequencies: for each block radians a position, shape (rotary dimensions / 2,).
    """

    frequencies: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: LanguageModel) -> Rotary | None:
        """The embeddings of a model, or None if it has none that keys can be turned by.

        A short probe tests whether turned keys are those that the model computes at the place.
        """
        found = cls._read(model)
        if found is None or not found._agrees(model):
            return None
        return found

    @classmethod
    def _read(cls, model: LanguageModel) -> Rotary | None:
        module = getattr(model.stack, "rotary_emb", None)
        kinds = rotations(module) if isinstance(module, nn.Module) else set()
        if not kinds or not kinds <= FIXED:
            return None
        types = getattr(model.config, "layer_types", None) or [""] * model.n_layers
        if "chunked_attention" in types:
            return None  # who sees whom depends on where they stand, not on how far apart
        frequencies = []
        for kind in types:
            own = getattr(module, f"{kind}_inv_freq", getattr(module, "inv_freq", None))
            if not isinstance(own, Tensor):
                return None
            frequencies.append(own)
        return cls(tuple(frequencies))

    def angles(self, distance: Int[Tensor, "row key"]) -> Callable[[int], tuple[Tensor, Tensor]]:
        """Cosines and sines by which keys are turned in a block, each computed once.

        Args:
            distance: positions by which each key is moved.

        Returns:
            For a block two tensors of shape (row, 1, key, rotary dimensions / 2).
        """

        @cache
        def of(rate: int) -> tuple[Tensor, Tensor]:
            rates = next(each for each in self.frequencies if id(each) == rate)
            angle = distance.to(rates.device).float()[:, None, :, None] * rates.float()
            return angle.cos(), angle.sin()

        return lambda layer: of(id(self.frequencies[layer]))

    @staticmethod
    def turn(keys: Float[Tensor, "row kv_head key head_dim"], cos: Tensor, sin: Tensor) -> None:
        """Turn the keys of one block in place, by the `angles` of the block."""
        width = cos.shape[-1]
        first, second = keys[..., :width], keys[..., width : 2 * width]
        a, b = first.float(), second.float()  # no copies in float32
        cos, sin = cos.to(keys.device), sin.to(keys.device)
        crossed = a * sin
        first.copy_(a.mul_(cos).sub_(b * sin))
        second.copy_(b.mul_(cos).add_(crossed))

    @torch.no_grad()
    def _agrees(self, model: LanguageModel) -> bool:
        ids = torch.tensor(
            [[5 * index % model.vocab_size for index in range(PROBE_TOKENS)]], device=model.device
        )
        here = torch.arange(PROBE_TOKENS, device=model.device)[None]
        computed = []
        for positions in (here, here + SHIFT):
            streams = StreamCache(Prefix(), model.n_layers)
            logits = forward_streams(model, streams, ids, PassPlan(positions=positions))
            computed.append((streams.own, logits.float()))
        (near, logits), (far, far_logits) = computed
        tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
        same = _close(logits, far_logits, tolerance)
        angles = self.angles(torch.full_like(here, SHIFT))
        for layer, (own, other) in enumerate(zip(near, far, strict=True)):
            assert own is not None
            assert other is not None
            self.turn(own[0], *angles(layer))
            same = same and _close(own[0], other[0], tolerance)
            same = same and _close(own[1], other[1], tolerance)
        if not same:
            logger.info("%s has positions of its own: its keys are not turned", model.name)
        return same


def rotary_of(model: LanguageModel) -> Rotary | None:
    """How a model's keys are turned to other positions; None if that cannot be done.

    It is tested once per model.
    """
    return probed(model, "rotary", Rotary.of)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    difference = (a.float() - b.float()).abs().max()
    return bool(difference <= tolerance * b.float().abs().max().clamp(min=1e-6))
