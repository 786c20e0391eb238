"""Provides the probes that say whether the engine computes what a model computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from hopscope.engine.attention import extend, forward_streams
from hopscope.engine.cache import Prefix, StreamCache
from hopscope.engine.finite import refuse_not_finite
from hopscope.engine.hooks import (
    Rewrite,
    probed,
    reading_outputs,
    rewriting_residual,
    run_short_prompt,
)
from hopscope.engine.memory import out_of_memory
from hopscope.errors import ModelError
from hopscope.models.language_model import LanguageModel

logger = logging.getLogger(__name__)


LEAST_ROUNDING = 2**-10
"""What is allowed for in float32, too: the rounding of float16 and of TF32."""
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
    return why_plain(model) is None and fits


def why_plain(model: LanguageModel) -> str | None:
    """Why the engine cannot put its own attention function into this family; None if it can."""
    return probed(model, "why plain", _find_why_plain)


def _find_why_plain(model: LanguageModel) -> str | None:
    others = set(getattr(model.config, "layer_types", None) or ()) - KNOWN_LAYERS
    if others:
        reason: str | None = f"it has layers of the type {', '.join(sorted(others))}"
    elif not getattr(model.hf, "_supports_attention_backend", False):
        reason = "transformers does not let its attention be replaced"
    elif len(model.attention_layers) < model.n_layers:
        reason = "not all of its blocks have attention"
    else:
        reason = differs_from_plain(model)
    if reason is not None:
        logger.warning("%s runs its cells one by one, which is slow: %s", model.name, reason)
    return reason


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


def differs_from_plain(model: LanguageModel) -> str | None:
    """What rows over a shared prefix do not compute as the model does; None if it is all the same.

    Raises:
        ModelError: if the model's own logits are not finite numbers.
    """
    try:
        for part, off, rounding in compared_with_plain(model):
            if not off <= rounding:  # no number is not near one
                return (
                    f"{part} is something else in the engine, by {off:.2g} of its size, where "
                    f"rounding explains {rounding:.2g}"
                )
    except (
        AttributeError,
        AssertionError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if out_of_memory(error) or isinstance(error, ModelError):
            raise  # which says nothing about the family
        return f"it does not run in the engine ({type(error).__name__}: {error})"
    return None


@torch.no_grad()
def compared_with_plain(model: LanguageModel) -> Iterator[tuple[str, float, float]]:
    """Compare rows over a shared prefix with the model's own pass over a short prompt, by block.

    Each block is given the states of the model's own pass, so that rounding does not add up on its
    way through the blocks.

    Yields:
        For the attention of each block, for each block, and for the logits: a name; how far it is
        off, as a share of its size; and how far it may be off by rounding: that of a few products,
        and of the attention scores, which some implementations keep in the dtype of the model.

    Raises:
        ModelError: if the model's own logits are not finite numbers.
    """
    attentions = [model.attention(layer) for layer in range(model.n_layers)]
    expected, found = dict[nn.Module, Tensor](), dict[nn.Module, Tensor]()
    with reading_outputs(attentions, _into(expected)):
        ids, states, logits = run_short_prompt(model, _probe_tokens(model))
    if not logits.isfinite().all():
        refuse_not_finite(model, "logits", ids[0].tolist())
    if len(states) != model.n_layers + 1:
        raise LookupError("its blocks do not run one after the other, each once")
    n_before = ids.shape[1] // 2
    behind: list[Tensor] = []

    def given(tokens: slice, n_rows: int) -> Rewrite:
        """Rows must be allowed to become more on their way through the blocks."""

        def rewrite(boundary: int, hidden: Tensor) -> Tensor | None:
            behind.append(hidden)
            return states[boundary][:, tokens].repeat(n_rows, 1, 1) if boundary else None

        return rewrite

    with rewriting_residual(model, given(slice(None, n_before), 1)):
        prefix = extend(model, Prefix(), ids[0, :n_before].tolist())
    behind.clear()
    cache = StreamCache(prefix, model.n_layers, record_patterns=True, record_scores=True)
    with (
        rewriting_residual(model, given(slice(n_before, None), 2)),
        reading_outputs(attentions, _into(found)),
    ):
        found_logits = forward_streams(model, cache, ids[:, n_before:]).float()
    assert cache.patterns is not None
    assert cache.scores is not None
    rounding = max(torch.finfo(model.dtype).eps, LEAST_ROUNDING)
    for layer, attention in enumerate(attentions):
        scores = float((cache.patterns[layer] * cache.scores[layer].abs()).sum(dim=-1).mean())
        own = expected[attention][:, n_before:].float()
        off = _share(
            (found[attention].float() - own).square().mean().sqrt(), own.square().mean().sqrt()
        )
        yield f"the attention of block {layer}", off, rounding * (2 + scores / 8)
        own = states[layer + 1][:, n_before:].float()
        # Medians, since some components are far larger than others, and some experts a near tie.
        off = _share((behind[layer + 1].float() - own).abs().median(), own.abs().median())
        yield f"what block {layer} gives", off, rounding * (4 + scores / 8)
    last = logits[:, -1].float()
    off = _share((found_logits - last).square().mean().sqrt(), last.square().mean().sqrt())
    yield "the logits", off, rounding * 4


def _share(difference: Tensor, size: Tensor) -> float:
    """A difference as a share of a size; 0 if nothing differs from nothing."""
    return float(difference / size.clamp(min=torch.finfo(size.dtype).tiny))


def _into(outputs: dict[nn.Module, Tensor]) -> Callable[[nn.Module, Tensor], None]:
    """Keep the output of each module; a copy, since some families add to it in place."""

    def keep(module: nn.Module, output: Tensor) -> None:
        outputs[module] = output.clone()

    return keep


def _probe_tokens(model: LanguageModel) -> int:
    """How many tokens are probed: past each length that the configuration names, if it is short."""
    named = [getattr(model.config, name, None) or 0 for name in NAMED_LENGTHS]
    past = [length + PROBE_TOKENS for length in named if length + PROBE_TOKENS <= LONGEST_PROBE]
    limits = filter(None, (model.max_context, position_limit(model)))
    return min(max([PROBE_TOKENS, *past]), *limits, LONGEST_PROBE)
