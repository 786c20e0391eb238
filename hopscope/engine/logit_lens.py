"""Provides logit_lens(): a model's own final norm and unembedding as a lens."""

from __future__ import annotations

import torch

from hopscope.engine.finite import refuse_not_finite
from hopscope.engine.hooks import probed, run_short_prompt
from hopscope.errors import ModelError, of_type
from hopscope.models.language_model import LanguageModel
from hopscope.probes import LogitLens

PROBE_TOKENS = 8
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")


def logit_lens(model: LanguageModel) -> LogitLens:
    """The logit lens of a model: its own final norm and unembedding.

    A short probe, made once a model, tests that the lens of the last block's states gives the
    model's own logits, and finds the number by which a family scales them (Cohere, Granite).

    Raises:
        ModelError: if something else stands between the last block and the logits, or they are
            not finite numbers.
    """
    of_type("model", model, LanguageModel, "load one with hs.load_model")
    caps = (getattr(model.config, name, None) for name in SOFTCAPS)
    softcap = next((cap for cap in caps if cap is not None), None)
    scale = probed(model, "lens scale", lambda model: _scale(model, softcap))
    if scale is None:
        raise ModelError(
            f"the logit lens does not hold in {model.name} ({model.config.model_type}): the final "
            "norm and the unembedding of the last block's states are not the model's logits"
        )
    return LogitLens(model.final_norm, model.unembedding, softcap, scale)


@torch.no_grad()
def _scale(model: LanguageModel, softcap: float | None) -> float | None:
    """By what the lens's logits are multiplied to be the model's; None if nothing makes them so."""
    ids, states, logits = run_short_prompt(model, PROBE_TOKENS)
    logits = logits.double()
    if not logits.isfinite().all():
        refuse_not_finite(model, "logits", ids[0].tolist())
    if len(states) != model.n_layers + 1:
        return None
    plain = LogitLens(model.final_norm, model.unembedding)(states[-1]).double()
    if plain.shape != logits.shape:
        return None
    uncapped, free = logits, torch.ones_like(logits)
    if softcap is not None:
        uncapped = torch.atanh((logits / softcap).clamp(-0.99, 0.99)) * softcap
        free = ((logits / softcap).abs() < 0.99).double()
    found = float((uncapped * plain * free).sum() / (plain * plain * free).sum())
    tolerance = max(1e-4, 8 * torch.finfo(model.dtype).eps) * logits.abs().max()
    for scale in (1.0, found):
        lens = LogitLens(model.final_norm, model.unembedding, softcap, scale)(states[-1])
        if bool((lens.double() - logits).abs().max() <= tolerance):
            return scale
    return None
