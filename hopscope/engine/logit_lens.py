"""Provides logit_lens(): a model's own final norm and unembedding as a lens."""

from __future__ import annotations

from hopscope.errors import ModelError
from hopscope.models.language_model import LanguageModel
from hopscope.probes import LogitLens


def logit_lens(model: LanguageModel) -> LogitLens:
    """The logit lens of a model: its own final norm and unembedding.

    Raises:
        ModelError: if the family scales its logits (Granite, Cohere), which the lens does not.
    """
    for name in ("logits_scaling", "logit_scale"):
        if getattr(model.config, name, None) not in (None, 1.0):
            raise ModelError(
                f"{model.name} scales its logits ({name}), which the logit lens does not do: its "
                "probabilities would be wrong"
            )
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return LogitLens(model.final_norm, model.unembedding, softcap)
