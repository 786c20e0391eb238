"""Provides the hooks by which the engine reads and changes a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache

from hopscope.engine.edits import Knockout
from hopscope.errors import ModelError
from hopscope.interrupts import interrupt_safe
from hopscope.masks.lowering import lower, within_window
from hopscope.models.language_model import LanguageModel

Rewrite = Callable[[int, Tensor], Tensor | None]
T = TypeVar("T")
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


def _with_first(args: tuple[Any, ...], kwargs: dict[str, Any], first: Tensor) -> Any:
    """The arguments of a module with another first one, in place or by keyword."""
    if args:
        return (first, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": first}


@interrupt_safe
def unhooked(model: LanguageModel) -> Iterator[None]:
    """Set the engine's hooks aside, so that a probe sees the model as it is within an edit, too."""
    kinds = [
        hooks
        for module in model.hf.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        if any(hook.__module__ == __name__ for hook in hooks.values())
    ]
    before = [dict(hooks) for hooks in kinds]
    try:
        for hooks in kinds:
            for key in [key for key, hook in hooks.items() if hook.__module__ == __name__]:
                del hooks[key]
        yield
    finally:
        for hooks, kept in zip(kinds, before, strict=True):
            hooks.clear()
            hooks.update(kept)


def probed(model: LanguageModel, name: str, find: Callable[[LanguageModel], T]) -> T:
    """A property of a model, found once by running it with no edit."""
    if name not in model.probed:
        with unhooked(model):
            model.probed[name] = find(model)
    found: T = model.probed[name]
    return found


def rewriting_residual(model: LanguageModel, rewrite: Rewrite) -> AbstractContextManager[None]:
    """Pass the residual stream through `rewrite(boundary, hidden)` at each boundary.

    Boundary ℓ lies before block ℓ; boundary n_layers before the final norm. `hidden` has shape
    (rows, tokens, d_model); the rows may change in number. None leaves it as it is.

    Gemma 3n has several streams between its blocks. The one is taken that attention and MLP read
    and write; the others stay as they are.
    """
    active = getattr(model.config, "altup_active_idx", None)

    def at(boundary: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if active is None or hidden.ndim == 3:
                changed = rewrite(boundary, hidden)
            elif (changed := rewrite(boundary, hidden[active])) is not None:
                streams = hidden.clone()
                streams[active] = changed
                changed = streams
            return None if changed is None else _with_first(args, kwargs, changed)

        return hook

    modules = (*model.layers, model.final_norm)
    return _before((module, at(boundary)) for boundary, module in enumerate(modules))


@torch.no_grad()
def run_short_prompt(
    model: LanguageModel, n_tokens: int, shift: int = 0
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Run a short prompt, by which something of the model is found out.

    Args:
        model: the model.
        n_tokens: of the prompt; as many as fit, where its context is shorter.
        shift: begins it with other tokens.

    Returns:
        The prompt (1, token), the residual stream before each block and behind all, and the logits.
    """
    numbers = range(shift, shift + min(n_tokens, model.max_context or n_tokens))
    # Token 0 may be padding. In some small vocabularies 13 gives a shifted prompt the same tokens.
    n_others = model.vocab_size - 1
    step = 13 if 13 * 6 % n_others else 11
    ids = torch.tensor([[1 + step * i % n_others for i in numbers]])
    ids, states = ids.to(model.device), list[Tensor]()

    def keep(_: int, hidden: Tensor) -> None:
        states.append(hidden.clone())

    with rewriting_residual(model, keep):
        logits: Tensor = model.forward(input_ids=ids).logits
    return ids, states, logits


def reading_outputs(
    modules: Iterable[nn.Module], read: Callable[[nn.Module, Any], None]
) -> AbstractContextManager[None]:
    """Call `read` with each module that runs and its output (the first of a tuple)."""

    def hook(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        read(module, output[0] if isinstance(output, tuple) else output)

    return _after((module, hook) for module in modules)


def reading_calls(
    modules: Iterable[nn.Module], read: Callable[[nn.Module, Tensor, Tensor], None]
) -> AbstractContextManager[None]:
    """Call `read` with each module that makes a tensor of one, with what it is given and makes."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            read(module, args[0], output)

    return _after((module, hook) for module in modules)


def losing_gradients(
    modules: Iterable[nn.Module], note: Callable[[nn.Module], None]
) -> AbstractContextManager[None]:
    """Call `note` with each module that runs on what has a gradient, and gives what has none.

    Where a family itself computes without gradients, such as what it only chooses tokens by, none
    is lost.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        given = any(isinstance(each, Tensor) and each.requires_grad for each in args)
        given = given and torch.is_grad_enabled()
        if given and first.is_floating_point() and not first.requires_grad:
            note(module)

    return _after((module, hook) for module in modules)


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
        changed = rewrite(args[0] if args else kwargs["hidden_states"])
        return None if changed is None else _with_first(args, kwargs, changed)

    return _before([(module, hook)])


def contiguous_rows(model: LanguageModel) -> AbstractContextManager[None]:
    """Give the unembedding its rows side by side in memory.

    The states of the rows' last tokens are a view with gaps between them. Of such a view a product
    in bfloat16 may copy the unembedding once a row: 47 GB for 101 rows, a vocabulary of 151,936
    and a d_model of 1,536. A single row counts as contiguous whatever its strides are, and costs a
    copy, too: so rows are always copied.
    """
    return rewriting_input(model.unembedding, _side_by_side)


def _side_by_side(rows: Tensor) -> Tensor:
    return rows.clone(memory_format=torch.contiguous_format)


@interrupt_safe
def beginning(model: LanguageModel) -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether the pass that runs begins with a text's first token."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caches = [each for each in (*args, *kwargs.values()) if isinstance(each, Cache)]
        first[0] = not any(_holds_tokens(layer) for each in caches for layer in each.layers)

    first = [True]
    with _before([(model.stack, hook)]):
        yield lambda: first[0]


def _holds_tokens(layer: Any) -> bool:
    """Whether one block's part of a cache has keys, or the state of a recurrent block."""
    length = getattr(layer, "get_seq_length", None)
    states = getattr(layer, "has_previous_state", {})
    return any(states.values()) or (length is not None and bool(length()))


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
            mask = torch.ones_like(blocked[:1]).tril()[None]
        mask = _without(mask, blocked)
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


def _without(mask: Any, blocked: Tensor) -> Tensor:
    """An attention mask (booleans, or floats to add) with less to see."""
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise ModelError(
            "knockouts need an attention implementation that takes a 4-D mask; load the model "
            "with attn_implementation='sdpa' or 'eager'"
        )
    # A blocked edge looks as one to the future does, whichever sign the family gives to a mask.
    return torch.where(blocked, mask[..., :1, 1:2], mask)
