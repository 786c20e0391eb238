"""Provides ways to TransformerLens: a model as a bridge, captured states as its ActivationCache.

Neither TransformerLens nor nnsight is imported before it is needed.

From either library to hopscope, `load_model` takes a `TransformerBridge` or an nnsight model. An
nnsight model needs no way back: the modules that `load_model` finds in it are the ones that it
traces, so `hopscope.edit` holds in its traces, around them or inside them:

    >>> model = hs.load_model(nn_model)                               # doctest: +SKIP
    >>> with hs.edit(model, edits, n_tokens=ids.shape[1]):            # doctest: +SKIP
    ...     with nn_model.trace(ids):
    ...         logits = nn_model.output.logits.save()

Inside a trace, `edit` must be opened before the first value is asked for, and closed after the
last one that the edits should reach. In one `with` the trace must come last: of `with
nn_model.trace(ids), hs.edit(...)` nnsight never runs the second half, and says nothing. Edits are
made in all rows, so two invokes that need other edits are two traces. A module's output is served
as the module computed it: a patch of `resid_post` shows in the next block's input, and a patch of
`attn_out` or `mlp_out` in the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING

from einops import rearrange
from torch import Tensor

from hopscope.errors import UsageError

if TYPE_CHECKING:
    from transformer_lens import ActivationCache
    from transformer_lens.model_bridge import TransformerBridge

TRANSFORMER_LENS_NAMES: Mapping[str, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "attn_head_out": "attn.hook_result",
    "attn_pattern": "attn.hook_pattern",
}
"""What TransformerLens calls a site, behind `blocks.{layer}.`."""

BY_POSITION = "query position layer ... -> layer query position ..."
BY_HEAD = "query position layer head key -> layer query head position key"
AXES: Mapping[str, str] = {"attn_pattern": BY_HEAD}
"""How the axes of a site's tensor are turned, where not `BY_POSITION`."""


def to_activation_cache(
    activations: Mapping[str, Tensor], bridge: TransformerBridge | None = None
) -> ActivationCache:
    """Captured states under TransformerLens's names, as an `ActivationCache`.

    Args:
        activations: what `capture` returned.
        bridge: the model whose weights the cache's methods use, such as
            `model.to_transformer_lens()`. Without one a cache can be indexed and stacked. Methods
            that need more than what was captured, such as the scales of norms, fail as they do on
            any cache without them.

    Returns:
        A cache with an entry for each site and layer, views of the captured tensors. Its batch is
        the queries and its `pos` the captured positions, in their order: `hook_resid_post` has
        shape (query, position, d_model), `attn.hook_z` and `attn.hook_result` (query, position,
        head, width), and `attn.hook_pattern` (query, head, position, key), its keys padded with
        zeros to the longest prompt.

    Raises:
        UsageError: if a site has no name in TransformerLens.

    Example:
        >>> cache = hs.capture(model, prompts).to_activation_cache()  # doctest: +SKIP
        >>> cache["resid_post", 3].shape                              # doctest: +SKIP
        torch.Size([8, 1, 576])
    """
    from transformer_lens import ActivationCache

    entries, n_layers = {}, 0
    for site, tensor in activations.items():
        if site not in TRANSFORMER_LENS_NAMES:
            raise UsageError(
                f"TransformerLens has no name for the site {site!r}; capture only some of "
                f"{', '.join(TRANSFORMER_LENS_NAMES)}"
            )
        by_layer = rearrange(tensor, AXES.get(site, BY_POSITION))
        n_layers = len(by_layer)
        for layer, states in enumerate(by_layer):
            entries[f"blocks.{layer}.{TRANSFORMER_LENS_NAMES[site]}"] = states
    # Enough of a model to count layers from the end.
    counted = SimpleNamespace(cfg=SimpleNamespace(n_layers=n_layers))
    return ActivationCache(entries, bridge if bridge is not None else counted)
