"""Provides edit(), and all hooks by which the engine reads and changes a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache

from hopscope.engine.edits import Edit, Knockout, Patch
from hopscope.errors import ModelError
from hopscope.masks.lowering import lower, within_window
from hopscope.models.interrupts import interrupt_safe
from hopscope.models.language_model import LanguageModel

Rewrite = Callable[[int, Tensor], Tensor | None]
Hooks = Iterable[tuple[nn.Module, Callable[..., Any]]]


@interrupt_safe
def _before(hooks: Hooks) -> Iterator[None]:
    """Call each hook with the module, its arguments and keyword arguments before it runs."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


@interrupt_safe
def _after(hooks: Hooks) -> Iterator[None]:
    """Call each hook with the module, its arguments and its output after it has run."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def rewriting_residual(model: LanguageModel, rewrite: Rewrite) -> AbstractContextManager[None]:
    """Pass the residual stream through `rewrite(boundary, hidden)` at each boundary.

    Boundary ℓ lies before block ℓ; boundary n_layers before the final norm. `hidden` has shape
    (rows, tokens, d_model); the rows may change in number. None leaves it as it is.
    """

    def at(boundary: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            changed = rewrite(boundary, args[0] if args else kwargs["hidden_states"])
            if changed is None:
                return None
            if args:
                return (changed, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": changed}

        return hook

    modules = (*model.layers, model.final_norm)
    return _before((module, at(boundary)) for boundary, module in enumerate(modules))


def rewriting_output(
    module: nn.Module, rewrite: Callable[[Tensor], Tensor | None]
) -> AbstractContextManager[None]:
    """Pass the output of a module (the first of a tuple) through `rewrite`; None leaves it."""

    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        changed = rewrite(output[0] if isinstance(output, tuple) else output)
        if changed is None or not isinstance(output, tuple):
            return changed
        return (changed, *output[1:])

    return _after([(module, hook)])


def rewriting_input(
    module: nn.Module, rewrite: Callable[[Tensor], Tensor | None]
) -> AbstractContextManager[None]:
    """Pass the first input of a module through `rewrite`; None leaves it."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = rewrite(args[0])
        return None if changed is None else ((changed, *args[1:]), kwargs)

    return _before([(module, hook)])


def contiguous_rows(model: LanguageModel) -> AbstractContextManager[None]:
    """Give the unembedding its rows side by side in memory.

    The states of the rows' last tokens are a view with gaps between them. Of such a view a product
    in bfloat16 may copy the unembedding once a row: 47 GB for 101 rows, a vocabulary of 151,936
    and a d_model of 1,536.
    """
    return rewriting_input(model.unembedding, Tensor.contiguous)


@interrupt_safe
def _beginning(model: LanguageModel) -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether the pass that runs begins with a text's first token."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caches = [each for each in (*args, *kwargs.values()) if isinstance(each, Cache)]
        beginning[0] = not any(each.get_seq_length() for each in caches)

    beginning = [True]
    with _before([(model.stack, hook)]):
        yield lambda: beginning[0]


def blocking_attention(
    attention: nn.Module,
    knockouts: Sequence[Knockout],
    n_heads: int,
    n_tokens: int,
    begins: Callable[[], bool] = lambda: True,
) -> AbstractContextManager[None]:
    """Block edges of one attention module, whatever form its mask has, in passes over a prompt.

    Args:
        attention: the module.
        knockouts: the edges.
        n_heads: its number of heads.
        n_tokens: length of the prompt. A pass over more tokens reads the prompt and what follows.
        begins: says whether the pass that runs begins with the prompt's first token.

    Raises:
        ModelError: when it runs, if the attention implementation takes no mask of its own.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        after = hidden.shape[1] - n_tokens
        if after < 0 or not begins():
            return None
        if "attention_mask" not in kwargs:
            raise ModelError(f"{type(attention).__name__} is given no attention mask to change")
        blocked = blocked_edges(knockouts, n_heads, n_tokens).to(hidden.device)
        blocked = functional.pad(blocked, (0, after, 0, after))
        mask = kwargs["attention_mask"]
        config = getattr(attention, "config", None)
        if mask is None and getattr(config, "_attn_implementation", "sdpa") in ("sdpa", "eager"):
            mask = ~torch.ones_like(blocked[:1]).triu(1)[None]
        mask = _without(mask, blocked, hidden.dtype)
        return args, {**kwargs, "attention_mask": mask}

    return _before([(attention, hook)])


def masking(
    model: LanguageModel, keeps: Sequence[Tensor], positions: Tensor
) -> AbstractContextManager[None]:
    """Give every block a mask of its own, in the form that its attention takes.

    Args:
        model: the model.
        keeps: for each block who sees whom, booleans of shape (head or 1, query, key).
        positions: the position ids of all keys, shape (1, key), by which sliding windows cut.
    """

    def lowered(layer: int) -> Any:
        keep, window = keeps[layer].to(positions.device), model.window(layer)
        if window is not None:
            keep = within_window(keep, positions[0], window)
        return lower(keep[None], model.config._attn_implementation, model.dtype)

    return giving_masks(model, [lowered(layer) for layer in range(model.n_layers)])


def giving_masks(model: LanguageModel, masks: Sequence[Any]) -> AbstractContextManager[None]:
    """Give every block its mask, as its attention takes it, in place of what the model makes."""

    def hook(mask: Any) -> Callable[..., Any]:
        def replace_mask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "attention_mask": mask}

        return replace_mask

    return _before((model.attention(layer), hook(mask)) for layer, mask in enumerate(masks))


def adding_to_scores(
    sublayers: Sequence[nn.Module], added: Callable[[int], Tensor]
) -> AbstractContextManager[None]:
    """Add numbers to the attention scores of T5's sublayers, in place of their mask and bias.

    T5 hands the position bias from block to block, and in earlier versions of transformers (5.9)
    the first block's mask in it; so every block is given both as its bias. UMT5 blocks add a bias
    of their own, and take the mask alone.

    Args:
        sublayers: attention with its norm and residual connection, one a block.
        added: gives for a block numbers of shape (row, head, query, key).
    """

    def at(layer: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            numbers = added(layer).to(args[0].device)
            if "position_bias" in kwargs:
                return args, {**kwargs, "attention_mask": None, "position_bias": numbers}
            least = torch.finfo(numbers.dtype).min
            mask = torch.where(numbers > least, torch.zeros_like(numbers), least)
            return args, {**kwargs, "attention_mask": mask}

        return hook

    return _before((sublayer, at(layer)) for layer, sublayer in enumerate(sublayers))


def reading_weights(
    attentions: Sequence[nn.Module],
    n_heads: int,
    added: Callable[[int], Tensor],
    read: Callable[[int, Tensor], None],
) -> AbstractContextManager[None]:
    """Call `read` with the attention weights of each of T5's blocks, in float32.

    They are computed anew from queries and keys, since only the eager implementation tells them.
    Keys that are kept in a cache are computed in the first pass alone, and remembered here.

    Args:
        attentions: the attention module of each block.
        n_heads: number of heads.
        added: gives for a block what is added to its scores, shape (row, head, query, key).
        read: takes a block and its weights, shape (row, head, query, key).
    """
    states: dict[tuple[int, str], Tensor] = {}

    def keep(layer: int, part: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            heads = output.view(*output.shape[:2], n_heads, -1)
            states[layer, part] = heads.transpose(1, 2)

        return hook

    def done(layer: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            scores = states[layer, "q"].float() @ states[layer, "k"].float().transpose(-1, -2)
            scores = scores + added(layer).float().to(scores.device)
            read(layer, torch.softmax(scores, dim=-1))

        return hook

    hooks: list[tuple[nn.Module, Callable[..., Any]]] = []
    for layer, attention in enumerate(attentions):
        hooks += [(attention.get_submodule(part), keep(layer, part)) for part in ("q", "k")]
        hooks.append((attention, done(layer)))
    return _after(hooks)


def blocked_edges(knockouts: Sequence[Knockout], n_heads: int, n_tokens: int) -> Tensor:
    """Which edges of a prompt are blocked: booleans of shape (head or 1, query, key)."""
    by_head = any(knockout.heads is not None for knockout in knockouts)
    blocked = torch.zeros(n_heads if by_head else 1, n_tokens, n_tokens, dtype=torch.bool)
    for knockout in knockouts:
        heads = slice(None) if knockout.heads is None else list(knockout.heads)
        for query, key in knockout.edges():
            blocked[heads, query, key] = True
    return blocked


def _without(mask: Any, blocked: Tensor, dtype: torch.dtype) -> Tensor:
    """An attention mask (booleans to keep, or floats to add) with less to see."""
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise ModelError(
            "knockouts need an attention implementation that takes a 4-D mask; load the model "
            "with attn_implementation='sdpa' or 'eager'"
        )
    if mask.dtype == torch.bool:
        return mask & ~blocked
    return torch.where(blocked, torch.finfo(dtype).min, mask)


@interrupt_safe
def edit(model: LanguageModel, edits: Sequence[Edit], n_tokens: int) -> Iterator[None]:
    """Make the same edits in every row of the forward passes that read a whole prompt.

    A pass may read more after the prompt, such as an answer. One that goes on from a key-value
    cache (a decoding step), or has fewer tokens than the prompt, is left as it is. So
    `model.hf.generate` may run inside, with a cache or without.

    Args:
        model: the model.
        edits: patches and knockouts; of two patches in one place the later one counts.
        n_tokens: length of the prompt in tokens, padding included.

    Raises:
        UsageError: if an edit does not fit the model or the prompt.

    Example:
        >>> with edit(model, [Patch(3, -1, vector)], n_tokens=ids.shape[1]):  # doctest: +SKIP
        ...     logits = model.hf(input_ids=ids).logits
    """
    placed = [each.placed(model, n_tokens) for each in edits]
    patches = [each for each in placed if isinstance(each, Patch)]
    knockouts = [each for each in placed if isinstance(each, Knockout)]

    def replaced(hidden: Tensor, chosen: Sequence[Patch]) -> Tensor | None:
        if not chosen or hidden.shape[1] < n_tokens or not begins():
            return None
        hidden = hidden.clone()
        for patch in chosen:
            hidden[:, patch.position, _part(patch)] = patch.vector.to(hidden)
        return hidden

    def residual(boundary: int, hidden: Tensor) -> Tensor | None:
        return replaced(hidden, [p for p in patches if p.in_residual and p.boundary == boundary])

    def sublayer(patch: Patch) -> Callable[[Tensor], Tensor | None]:
        return lambda hidden: replaced(hidden, [patch])

    with ExitStack() as stack:
        begins = stack.enter_context(_beginning(model))
        stack.enter_context(rewriting_residual(model, residual))
        for patch in patches:
            if not patch.in_residual:
                stack.enter_context(rewriting(model, patch.site, patch.layer, sublayer(patch)))
        for layer in sorted({layer for knockout in knockouts for layer in knockout.layers}):
            chosen = [knockout for knockout in knockouts if layer in knockout.layers]
            attention = model.attention(layer)
            stack.enter_context(
                blocking_attention(attention, chosen, model.n_heads, n_tokens, begins)
            )
        yield


def _part(patch: Patch) -> slice:
    """The components that a patch replaces in the vector at its place."""
    if patch.head is None:
        return slice(None)
    width = patch.vector.shape[0]
    return slice(patch.head * width, (patch.head + 1) * width)


def rewriting(
    model: LanguageModel, site: str, layer: int, rewrite: Callable[[Tensor], Tensor | None]
) -> AbstractContextManager[None]:
    """Pass what a sublayer writes, or the heads' outputs (`z`), through `rewrite`."""
    if site == "z":
        return rewriting_input(model.head_projection(layer), rewrite)
    return rewriting_output(model.writer(layer, site), rewrite)


@interrupt_safe
def recording(
    model: LanguageModel, sites: Sequence[str], into: Mapping[str, list[Tensor | None]]
) -> Iterator[None]:
    """Keep the named states of a forward pass.

    Args:
        model: the model.
        sites: any of `resid_pre`, `resid_post`, `attn_out`, `mlp_out`, `head_input`.
        into: for each site a list with one place a block, filled with (rows, tokens, width).
    """

    def residual(boundary: int, hidden: Tensor) -> None:
        if "resid_pre" in sites and boundary < model.n_layers:
            into["resid_pre"][boundary] = hidden
        if "resid_post" in sites and boundary > 0:
            into["resid_post"][boundary - 1] = hidden

    def keep(site: str, layer: int) -> Callable[[Tensor], None]:
        def read(hidden: Tensor) -> None:
            into[site][layer] = hidden

        return read

    with ExitStack() as stack:
        if {"resid_pre", "resid_post"} & set(sites):
            stack.enter_context(rewriting_residual(model, residual))
        for layer in range(model.n_layers):
            for site in {"attn_out", "mlp_out"} & set(sites):
                stack.enter_context(rewriting_output(model.writer(layer, site), keep(site, layer)))
            if "head_input" in sites:
                projection = model.head_projection(layer)
                stack.enter_context(rewriting_input(projection, keep("head_input", layer)))
        yield


def stacked(states: Sequence[Tensor | None], device: torch.device | str | None = None) -> Tensor:
    """The states of all blocks as one tensor with a layer axis behind the tokens."""
    found = [state for state in states if state is not None]
    assert len(found) == len(states), "a block did not run"
    return torch.stack([state.to(device or found[0].device) for state in found], dim=2)
