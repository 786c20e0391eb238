"""Provides the probes that say whether the engine computes what a model computes."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from hopscope.engine.attention import extend, forward_streams
from hopscope.engine.cache import Prefix, StreamCache
from hopscope.engine.finite import refuse_not_finite
from hopscope.engine.hooks import probed, rewriting_residual
from hopscope.engine.memory import out_of_memory
from hopscope.models.language_model import LanguageModel

logger = logging.getLogger(__name__)


PROBE_TOKENS = 24
LONGEST_PROBE = 192
NAMED_LENGTHS = ("sliding_window", "attention_chunk_size", "window_size")
KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
FIXED_ROTATIONS = {"default", "linear", "llama3", "yarn", "proportional"}
"""Kinds of rotary embeddings whose frequencies do not depend on the length of the prompt."""


def shares_prefixes(model: LanguageModel, n_tokens: int) -> bool:
    """Whether the engine can put its own attention function into this family.

    It can where transformers lets attention be replaced, every layer attends to all earlier
    tokens, or to a window or chunk of them as the layer's own mask says, and a probe gives the
    same logits both ways: some families do more to their attention than its arguments say. It is
    tested once per model.

    Args:
        model: the model.
        n_tokens: of the longest prompt, with what is generated after it. Past a length at which
            the model's positions change (`position_limit`), a prefix is not what it is alone.
    """
    limit = position_limit(model)
    fits = limit is None or n_tokens <= limit
    return probed(model, "shares_prefixes", _takes_the_engines_attention) and fits


def _takes_the_engines_attention(model: LanguageModel) -> bool:
    known = set(getattr(model.config, "layer_types", None) or ()) <= KNOWN_LAYERS
    replaceable = getattr(model.hf, "_supports_attention_backend", False)
    return known and replaceable and agrees_with_plain(model)


def position_limit(model: LanguageModel) -> int | None:
    """The number of tokens past which the positions of all tokens change; None if they never do.

    Some rotary embeddings (dynamic NTK, LongRoPE) take other frequencies for a prompt that is
    longer than what the model was first trained on, for its first tokens too.
    """
    return probed(model, "position_limit", _shortest_original_length)


def _shortest_original_length(model: LanguageModel) -> int | None:
    decoder: nn.Module = model.hf.get_decoder()  # type: ignore[no-untyped-call]
    limits = [
        _original_length(module)
        for module in decoder.modules()  # a tower for images has rotary embeddings of its own
        if not rotations(module) <= FIXED_ROTATIONS
    ]
    return min(limits, default=None)


def rotations(module: nn.Module) -> set[str]:
    """The kinds of rotary embeddings that a module computes; none if it computes none."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, dict):
        return set(kinds.values())
    return set() if kinds is None else {str(kinds)}


def _original_length(module: nn.Module) -> int:
    """The length up to which a rotary embedding is what it is for short prompts."""
    stated = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
    kinds = [stated, *(each for each in stated.values() if isinstance(each, dict))]
    lengths = [each.get("original_max_position_embeddings") for each in kinds]
    lengths.append(getattr(module, "original_max_seq_len", None))
    return min((int(length) for length in lengths if length is not None), default=0)


def _doubled_after_first(boundary: int, hidden: Tensor) -> Tensor | None:
    """Rows must be allowed to become more on their way through the blocks."""
    return hidden.repeat(2, 1, 1) if boundary == 1 else None


@torch.no_grad()
def agrees_with_plain(model: LanguageModel) -> bool:
    """Whether rows over a shared prefix give the model's own logits, tested with a short probe.

    Returns:
        False if they differ by more than rounding, or the family cannot be run so.

    Raises:
        ModelError: if the model's own logits are not finite numbers.
    """
    n_tokens = _probe_tokens(model)
    ids = [1 + 7 * index % (model.vocab_size - 1) for index in range(n_tokens)]  # 0 may be padding
    half = n_tokens // 2
    row = torch.tensor([ids[half:]], device=model.device)
    plain = model.forward(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].float()
    if not plain.isfinite().all():
        refuse_not_finite(model, "logits", ids)
    try:
        prefix = extend(model, Prefix(), ids[:half])
        cache = StreamCache(prefix, model.n_layers)
        with rewriting_residual(model, _doubled_after_first):
            shared = forward_streams(model, cache, row).float()
    except (
        AttributeError,
        AssertionError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if out_of_memory(error):
            raise  # which says nothing about the family
        logger.warning("%s cannot share prefixes: its cells run one by one", model.name)
        return False
    tolerance = plain.std() * (0.01 if model.dtype == torch.float32 else 0.5)
    if not bool((shared - plain).abs().max() <= tolerance):  # no number is not near one
        logger.warning("%s has attention of its own: its cells run one by one", model.name)
        return False
    return True


def _probe_tokens(model: LanguageModel) -> int:
    """How many tokens are probed: past each length that the configuration names, if it is short."""
    named = [getattr(model.config, name, None) or 0 for name in NAMED_LENGTHS]
    past = [length + PROBE_TOKENS for length in named if length + PROBE_TOKENS <= LONGEST_PROBE]
    limits = filter(None, (model.max_context, position_limit(model)))
    return min(max([PROBE_TOKENS, *past]), *limits, LONGEST_PROBE)
