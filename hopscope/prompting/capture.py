"""Provides capture(): the states of a model at chosen sites and positions of many prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from hopscope.display.front_end import ProgressBar
from hopscope.engine.attention import forward_streams
from hopscope.engine.cache import Prefix, StreamCache
from hopscope.engine.editing import recording, stacked
from hopscope.engine.finite import check_states
from hopscope.engine.prefix_store import PrefixStore
from hopscope.engine.support import shares_prefixes
from hopscope.engine.work import count
from hopscope.errors import ModelError, UsageError, as_list, of_type, one_of, whole_number
from hopscope.models.language_model import LanguageModel
from hopscope.models.linear import without_bias
from hopscope.prompting.tokenized import TokenizedPrompt, by_shape
from hopscope.queries.prompts import Prompt

if TYPE_CHECKING:
    from transformer_lens import ActivationCache
    from transformer_lens.model_bridge import TransformerBridge

Site = Literal[
    "resid_pre",
    "resid_post",
    "attn_in",
    "mlp_in",
    "attn_out",
    "mlp_out",
    "attn_head_out",
    "z",
    "attn_pattern",
]
SITES: tuple[Site, ...] = get_args(Site)
STATE_DIMS = ("query", "position", "layer", "d_model")
DIMS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("resid_pre", "resid_post", "attn_in", "mlp_in"), STATE_DIMS),
    **dict.fromkeys(("attn_out", "mlp_out"), STATE_DIMS),
    "attn_head_out": ("query", "position", "layer", "head", "d_model"),
    "z": ("query", "position", "layer", "head", "head_dim"),
    "attn_pattern": ("query", "position", "layer", "head", "key"),
}


@dataclass(frozen=True)
class Activations(Mapping[str, Tensor]):
    """Captured states by site.

    Attributes:
        tensors: for each site a tensor whose axes `dims` names.
        positions: what the position axis stands for.
        tokens: the token index of each position, shape (query, position).
        query_ids: what the query axis stands for.

    Example:
        >>> acts["resid_post"].shape, acts.dims("resid_post")  # doctest: +SKIP
        (torch.Size([8, 2, 30, 576]), ('query', 'position', 'layer', 'd_model'))
    """

    tensors: Mapping[str, Tensor]
    positions: tuple[str | int, ...]
    tokens: Tensor
    query_ids: tuple[str, ...]

    def __getitem__(self, site: str) -> Tensor:
        if site not in self.tensors:
            raise UsageError(f"{site!r} was not captured; there is {', '.join(self.tensors)}")
        return self.tensors[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{site}: {tuple(t.shape)}" for site, t in self.tensors.items())
        return f"Activations({shapes}; positions {self.positions})"

    @staticmethod
    def dims(site: str) -> tuple[str, ...]:
        """The names of the axes of a site's tensor."""
        return DIMS[site]

    def to_activation_cache(self, bridge: TransformerBridge | None = None) -> ActivationCache:
        """The states as a TransformerLens cache: queries as its batch, positions as its `pos`.

        Args:
            bridge: the model whose weights the cache's methods use; `to_transformer_lens()` of the
                model. Without one a cache can be indexed and stacked.

        Raises:
            UsageError: if a site has no name in TransformerLens.

        See `hopscope.prompting.transformer_lens_cache.to_activation_cache`.
        """
        from hopscope.prompting.transformer_lens_cache import (
            to_activation_cache,  # built on this module
        )

        return to_activation_cache(self, bridge)


@torch.no_grad()
def capture(
    model: LanguageModel,
    prompts: Sequence[Prompt | str] | Prompt | str,
    sites: Sequence[Site] | Site = ("resid_post",),
    positions: Sequence[str | int] | str | int = ("t2",),
    *,
    device: torch.device | str | None = None,
    batch_size: int = 64,
    progress: bool = False,
    store: PrefixStore | None = None,
) -> Activations:
    """Run prompts and keep the states at some sites and positions.

    One prompt, site or position alone is a list of one.

    Args:
        model: the model.
        prompts: `QuerySet.prompts()`, or texts.
        sites: the residual stream before (`resid_pre`) or after a block (`resid_post`); as
            attention (`attn_in`) or MLP (`mlp_in`) reads it, before its norm; what attention
            (`attn_out`) or MLP (`mlp_out`) adds to it; each head's part of attention's
            output before its bias and norm (`attn_head_out`), and what the head gives to the
            output projection (`z`); attention weights (`attn_pattern`, padded with zeros to the
            longest prompt).
        positions: names of spans, whose last token is meant (`t1`, `t2`, `e1`), or token indices.
        device: where the tensors go; where they were computed if None.
        batch_size: prompts in a batch; only prompts of equal length share one, none is padded.
        progress: show a progress bar.
        store: keeps the prefixes that prompts share, for calls that follow each other.

    Returns:
        For each site a tensor; see `Activations.dims`.

    Raises:
        UsageError: for an unknown site, no prompt, or a prompt without such a position.

    Example:
        >>> acts = capture(model, "The capital of France is", "resid_post")  # doctest: +SKIP
        >>> acts["resid_post"].shape                                         # doctest: +SKIP
        torch.Size([1, 1, 30, 576])
    """
    of_type("model", model, LanguageModel, "load one with hs.load_model")
    prompts = as_list(prompts, str | Prompt, "prompts", "texts, or what queries.prompts() gives")
    sites = [one_of("site", site, SITES) for site in as_list(sites, name="sites")]
    positions = as_list(positions, str | Integral, "positions", "such as ['t1', 't2'] or [-1]")
    whole_number("batch_size", batch_size, least=1)
    if not sites or not prompts or not positions:
        raise UsageError("nothing to capture: give at least one site, prompt and position")
    tokenized = [TokenizedPrompt.of(model, prompt) for prompt in prompts]
    shares = shares_prefixes(model, max(len(prompt.ids) for prompt in tokenized))
    if "attn_pattern" in sites and not shares:
        raise ModelError(
            f"attn_pattern cannot be read in {model.name} ({model.config.model_type}): it needs "
            "attention that can be replaced in all blocks, and prompts no longer than the length "
            "from which positions change; leave it out, or choose another model"
        )
    where = [[prompt.position(name) for name in positions] for prompt in tokenized]
    longest = max(len(prompt.ids) for prompt in tokenized)
    count(forwards=len(prompts))
    store = PrefixStore(model) if store is None else store
    found = dict[int, dict[str, Tensor]]()
    batches = [
        group[start : start + batch_size]
        for group in by_shape(tokenized)
        for start in range(0, len(group), batch_size)
    ]
    for batch in ProgressBar(batches, desc="capture", disable=not progress):
        rows, at = [tokenized[i] for i in batch], [where[i] for i in batch]
        prefix = store.get(rows[0].ids[: _n_shared(rows, at)]) if shares else None
        states = _batch_states(model, prefix, rows, at, sites, longest)
        for each in states.values():
            check_states(model, each, [row.ids for row in rows])
        for row, index in enumerate(batch):
            found[index] = {site: states[site][row].to(device or model.device) for site in sites}
    tensors: dict[str, Tensor] = {
        site: torch.stack([found[i][site] for i in range(len(prompts))]) for site in sites
    }
    ids = tuple(prompt.prompt.query_id for prompt in tokenized)
    return Activations(tensors, tuple(positions), torch.tensor(where), ids)


def _n_shared(rows: Sequence[TokenizedPrompt], where: Sequence[Sequence[int]]) -> int:
    """How many tokens equally long prompts begin with alike, none of which is read."""
    return min(rows[0].n_shared, *(min(at) for at in where))


def _batch_states(
    model: LanguageModel,
    prefix: Prefix | None,
    rows: Sequence[TokenizedPrompt],
    where: Sequence[Sequence[int]],
    sites: Sequence[Site],
    longest: int,
) -> dict[str, Tensor]:
    """The states of equally long prompts, each of shape (prompt, position, layer, ...).

    They run behind `prefix`, the tokens that they share; as a whole if it is None.
    """
    n_shared = 0 if prefix is None else len(prefix)
    cache = StreamCache(prefix or Prefix(), model.n_layers, record_patterns="attn_pattern" in sites)
    read: dict[str, str] = {site: site for site in sites if site != "attn_pattern"}
    read |= dict.fromkeys({"attn_head_out", "z"} & set(read), "head_input")
    into: dict[str, list[Tensor | None]] = {site: [None] * model.n_layers for site in read.values()}
    ids = torch.tensor([row.ids[n_shared:] for row in rows], device=model.device)
    with recording(model, list(into), into):
        if prefix is None:
            model.run_blocks(ids)
        else:
            forward_streams(model, cache, ids)
    tokens = torch.tensor(where, device=model.device) - n_shared
    row = torch.arange(len(rows), device=model.device)[:, None]
    states = {site: stacked(into[name], model.device)[row, tokens] for site, name in read.items()}
    if "z" in states:
        heads = "query position layer (head d) -> query position layer head d"
        states["z"] = rearrange(states["z"], heads, head=model.n_heads)
    if "attn_head_out" in states:
        states["attn_head_out"] = _head_outputs(model, states["attn_head_out"])
    if cache.patterns is not None:
        states["attn_pattern"] = _patterns(cache.patterns, row, tokens, longest, model.device)
    return states


def _head_outputs(model: LanguageModel, inputs: Tensor) -> Tensor:
    """Each head's share of the output projection: (..., layer, head, d_model)."""
    split = rearrange(inputs, "... layer (head d) -> ... layer d head", head=model.n_heads)
    outputs = []
    for layer in range(model.n_layers):
        alone = torch.diag_embed(split[..., layer, :, :])  # one head at a time, the others 0
        heads = rearrange(alone, "... d head other -> ... head (other d)")
        outputs.append(without_bias(model.head_projection(layer), heads))
    return torch.stack(outputs, dim=2)


def _patterns(
    patterns: Mapping[int, Tensor], row: Tensor, tokens: Tensor, longest: int, device: torch.device
) -> Tensor:
    """Attention weights (prompt, position, layer, head, key) of the chosen queries."""
    layers = []
    for layer in sorted(patterns):
        weights = rearrange(patterns[layer].to(device), "row head q k -> row q head k")
        layers.append(weights[row, tokens])
    stack = torch.stack(layers, dim=2)
    return torch.nn.functional.pad(stack, (0, longest - stack.shape[-1]))
