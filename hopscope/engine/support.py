"""Provides the probes that say whether the engine computes what a model computes."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from hopscope.engine.attention import extend, forward_streams
from hopscope.engine.cache import Prefix, StreamCache
from hopscope.engine.hooks import rewriting_residual
from hopscope.models.language_model import LanguageModel

logger = logging.getLogger(__name__)


PROBE_TOKENS = 24
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def shares_prefixes(model: LanguageModel) -> bool:
    """Whether the engine can put its own attention function into this family.

    It can where transformers lets attention be replaced, every layer attends to all earlier tokens
    or to a sliding window of them, and a probe gives the same logits both ways: some families do
    more to their attention than its arguments say. It is tested once per model.
    """
    if "shares_prefixes" not in model.probed:
        known = set(getattr(model.config, "layer_types", None) or ()) <= KNOWN_LAYERS
        replaceable = getattr(model.hf, "_supports_attention_backend", False)
        model.probed["shares_prefixes"] = known and replaceable and agrees_with_plain(model)
    return bool(model.probed["shares_prefixes"])


def _doubled_after_first(boundary: int, hidden: Tensor) -> Tensor | None:
    """Rows must be allowed to become more on their way through the blocks."""
    return hidden.repeat(2, 1, 1) if boundary == 1 else None


@torch.no_grad()
def agrees_with_plain(model: LanguageModel) -> bool:
    """Whether rows over a shared prefix give the model's own logits, tested with a short probe.

    Returns:
        False if they differ by more than rounding, or the family cannot be run so.
    """
    n_tokens = min(PROBE_TOKENS, model.max_context or PROBE_TOKENS)
    ids = [1 + 7 * index % (model.vocab_size - 1) for index in range(n_tokens)]  # 0 may be padding
    half = n_tokens // 2
    row = torch.tensor([ids[half:]], device=model.device)
    plain = model.forward(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].float()
    try:
        prefix = extend(model, Prefix(), ids[:half])
        cache = StreamCache(prefix, model.n_layers)
        with rewriting_residual(model, _doubled_after_first):
            shared = forward_streams(model, cache, row).float()
    except (AttributeError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
        logger.warning("%s cannot share prefixes: its cells run one by one", model.name)
        return False
    tolerance = plain.std() * (0.01 if model.dtype == torch.float32 else 0.5)
    if bool((shared - plain).abs().max() > tolerance):
        logger.warning("%s has attention of its own: its cells run one by one", model.name)
        return False
    return True
