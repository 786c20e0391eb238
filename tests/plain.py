"""Provides the plain way: one forward per cell over the full prompt, with nothing of hopscope's.

Vectors are put into the outputs of decoder layers (or of the modules that write to the residual
stream, or into the input of the heads' projection) by raw torch hooks; blocked edges are left out
by an attention function that goes through heads and tokens one by one; and tokens come from
transformers' own `generate`. It is slow, easy to read, and what the engine must equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from hopscope.engine.edits import Cell, Knockout, Patch

TINY_SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
"""The size of the models that tests build from the configurations of many families."""

LAYERS = (
    "model.layers",
    "model.language_model.layers",
    "transformer.h",
    "gpt_neox.layers",
    "transformer.blocks",
    "backbone.layers",
)
POST_NORMS = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
WRITERS = {
    "gpt2": {"attn_out": "attn", "mlp_out": "mlp"},
    "gpt_neox": {"attn_out": "attention", "mlp_out": "mlp"},
    "gemma2": POST_NORMS,
    "gemma3_text": POST_NORMS,
    "olmo2": POST_NORMS,
}
READERS = {
    "gpt2": {"attn_in": "ln_1", "mlp_in": "ln_2"},
    "gemma2": {"attn_in": "input_layernorm", "mlp_in": "pre_feedforward_layernorm"},
    "gemma3_text": {"attn_in": "input_layernorm", "mlp_in": "pre_feedforward_layernorm"},
    "olmo2": {"attn_in": "self_attn", "mlp_in": "mlp"},
}
USUAL_READERS = {"attn_in": "input_layernorm", "mlp_in": "post_attention_layernorm"}
USUAL_WRITERS = {"attn_out": "self_attn", "mlp_out": "mlp"}
PROJECTIONS = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense"}
USUAL_PROJECTION = "self_attn.o_proj"
NO_TOKEN = -1
MARGIN = 1e-4
"""Logits nearer than this may change places between two ways of computing them."""


@dataclass(frozen=True)
class PlainOutput:
    """What one cell gives.

    Attributes:
        logits: of the token after the prompt, shape (vocabulary,).
        tokens: what is generated, without a token that ends the text.
    """

    logits: Tensor
    tokens: tuple[int, ...]

    def logprob(self, answer_tokens: Sequence[int]) -> float:
        """The log-probability of the likeliest answer token."""
        return float(torch.log_softmax(self.logits.float(), -1)[list(answer_tokens)].max())

    def ranks(self, answer_tokens: Sequence[int]) -> range:
        """The ranks that the likeliest answer token may have; one, but for near ties."""
        best = self.logits[list(answer_tokens)].max()
        certain = int((self.logits > best + MARGIN).sum())
        possible = int((self.logits > best - MARGIN).sum())  # counts the answer itself
        return range(certain, possible)

    def stopped(self, stop: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
        """The generated tokens up to where `stop` first says so."""
        for n in range(1, len(self.tokens)):
            if stop(self.tokens[:n]):
                return self.tokens[:n]
        return self.tokens


def decoder_layers(hf: nn.Module) -> nn.ModuleList:
    """The blocks of a model, found by the names that families give them."""
    for path in LAYERS:
        try:
            found = hf.get_submodule(path)
        except AttributeError:
            continue
        assert isinstance(found, nn.ModuleList)
        return found
    raise AssertionError(f"{type(hf).__name__} has its blocks elsewhere")


def writer(hf: PreTrainedModel, layer: int, site: str) -> nn.Module:
    """The module whose output a block adds to the residual stream."""
    names = WRITERS.get(hf.config.model_type, USUAL_WRITERS)
    return decoder_layers(hf)[layer].get_submodule(names[site])


def reader(hf: PreTrainedModel, layer: int, site: str) -> nn.Module:
    """The module that a sublayer alone reads the residual stream through: its norm, or itself."""
    names = READERS.get(hf.config.model_type, USUAL_READERS)
    return decoder_layers(hf)[layer].get_submodule(names[site])


def first_of(output: Any) -> Tensor:
    """The hidden states in what a module returns."""
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


@torch.no_grad()
def states(hf: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """The residual stream after each block, shape (layer, token, d_model)."""
    found: list[Tensor] = []
    with ExitStack() as stack:
        for layer in decoder_layers(hf):
            hook = layer.register_forward_hook(lambda _, __, out: found.append(first_of(out)[0]))
            stack.callback(hook.remove)
        hf(input_ids=torch.tensor([list(ids)], device=hf.device))
    return torch.stack(found)


@torch.no_grad()
def site_states(hf: PreTrainedModel, ids: Sequence[int], site: str) -> Tensor:
    """What every block has at a site of `Patch`, shape (layer, token, width); heads side by side.

    `resid_pre` of block 0 is what the tokens are embedded as.
    """
    found: list[Tensor] = []
    name = PROJECTIONS.get(hf.config.model_type, USUAL_PROJECTION)

    def keep_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args[0] if args else kwargs["hidden_states"])[0])

    with ExitStack() as stack:
        for number, layer in enumerate(decoder_layers(hf)):
            if site in ("resid_pre", "z", "attn_in", "mlp_in"):
                module = layer if site == "resid_pre" else layer.get_submodule(name)
                if site in USUAL_READERS:
                    module = reader(hf, number, site)
                hook = module.register_forward_pre_hook(keep_input, with_kwargs=True)
            else:
                module = layer if site == "resid_post" else writer(hf, number, site)
                hook = module.register_forward_hook(
                    lambda _, __, out: found.append(first_of(out)[0])
                )
            stack.callback(hook.remove)
        hf(input_ids=torch.tensor([list(ids)], device=hf.device))
    return torch.stack(found)


def _put(hidden: Tensor, patch: Patch) -> Tensor:
    changed = hidden.clone()
    changed[:, patch.position] = patch.vector.to(hidden)
    return changed


def _once(module: nn.Module, patch: Patch) -> Any:
    """Patch the first output of a module, that of the pass over the prompt."""
    calls: list[None] = []

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        calls.append(None)
        if len(calls) > 1:
            return output
        changed = _put(first_of(output), patch)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return module.register_forward_hook(hook)


def _once_before(module: nn.Module, patch: Patch) -> Any:
    """Patch the first input of a module."""
    calls: list[None] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls.append(None)
        if len(calls) > 1:
            return args, kwargs
        if args:
            return (_put(args[0], patch), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _put(kwargs["hidden_states"], patch)}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _once_in_head(hf: PreTrainedModel, patch: Patch) -> Any:
    """Patch one head's part of what the heads' projection is first given."""
    calls: list[None] = []
    name = PROJECTIONS.get(hf.config.model_type, USUAL_PROJECTION)
    assert patch.head is not None
    first = patch.head * len(patch.vector)

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        calls.append(None)
        if len(calls) > 1:
            return args
        changed = args[0].clone()
        changed[:, patch.position, first : first + len(patch.vector)] = patch.vector.to(changed)
        return (changed, *args[1:])

    return decoder_layers(hf)[patch.layer].get_submodule(name).register_forward_pre_hook(hook)


BRUTE = "plain_brute_force"
_knockouts: list[Knockout] = []
_prompt_length: list[int] = []


def brute_force_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of one row of tokens, without the blocked edges of the prompt."""
    _, n_heads, n_queries, width = query.shape
    n_keys, groups = key.shape[2], n_heads // key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    reading = n_queries == n_keys == _prompt_length[-1]
    output = torch.zeros(1, n_queries, n_heads, width, dtype=query.dtype)
    for head in range(n_heads):
        for place in range(n_queries):
            at = n_keys - n_queries + place
            seen = [
                k
                for k in range(at + 1)
                if (sliding_window is None or at - k < sliding_window)
                and not (reading and _is_blocked(int(module.layer_idx), head, at, k))  # type: ignore[call-overload]
            ]
            scores = key[0, head // groups, seen] @ query[0, head, place] * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            output[0, place, head] = torch.softmax(scores, 0) @ value[0, head // groups, seen]
    return output, None


def _is_blocked(layer: int, head: int, query: int, key: int) -> bool:
    return query != key and any(
        layer in k.layers
        and query in k.queries
        and key in k.keys
        and (k.heads is None or head in k.heads)
        for k in _knockouts
    )


AttentionInterface.register(BRUTE, brute_force_attention)


@contextmanager
def blocked(hf: PreTrainedModel, knockouts: Sequence[Knockout], n_tokens: int) -> Iterator[None]:
    """Leave out edges of a prompt of `n_tokens` tokens."""
    config = hf.config.get_text_config()
    before = config._attn_implementation
    _knockouts[:] = knockouts
    _prompt_length.append(n_tokens)
    config._attn_implementation = BRUTE
    try:
        yield
    finally:
        config._attn_implementation = before
        _knockouts.clear()
        _prompt_length.pop()


@contextmanager
def patched(hf: PreTrainedModel, cell: Cell, n_tokens: int) -> Iterator[None]:
    """Make a cell's edits in the next pass, which reads the prompt, and in none after it."""
    knockouts = [edit for edit in cell if isinstance(edit, Knockout)]
    with ExitStack() as stack:
        if knockouts:
            stack.enter_context(blocked(hf, knockouts, n_tokens))
        for patch in cell:
            if isinstance(patch, Knockout):
                continue
            layers = decoder_layers(hf)
            if patch.site == "resid_post":
                handle = _once(layers[patch.layer], patch)
            elif patch.site == "resid_pre" and patch.layer > 0:
                handle = _once(layers[patch.layer - 1], patch)
            elif patch.site == "resid_pre":
                handle = _once_before(layers[0], patch)
            elif patch.site == "z":
                handle = _once_in_head(hf, patch)
            elif patch.site in USUAL_READERS:
                handle = _once_before(reader(hf, patch.layer, patch.site), patch)
            else:
                handle = _once(writer(hf, patch.layer, patch.site), patch)
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def plain_output(
    hf: PreTrainedModel,
    ids: Sequence[int],
    cell: Cell,
    max_new_tokens: int = 0,
    end_tokens: Iterable[int] = (),
) -> PlainOutput:
    """One cell: a hooked forward for its logits, and a hooked `generate` for its tokens."""
    row = torch.tensor([list(ids)], device=hf.device)
    with patched(hf, cell, len(ids)):
        logits = hf(input_ids=row).logits[0, -1]
    if not max_new_tokens:
        return PlainOutput(logits, ())
    with patched(hf, cell, len(ids)):
        tokens = generated(hf, row, torch.ones_like(row), max_new_tokens, end_tokens)[0]
    return PlainOutput(logits, tokens)


def plain_outputs(
    hf: PreTrainedModel,
    ids: Sequence[int],
    cells: Sequence[Cell],
    max_new_tokens: int = 0,
    end_tokens: Iterable[int] = (),
) -> list[PlainOutput]:
    """All cells, one after the other."""
    ends = tuple(end_tokens)
    return [plain_output(hf, ids, cell, max_new_tokens, ends) for cell in cells]


@torch.no_grad()
def generated(
    hf: PreTrainedModel,
    ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    end_tokens: Iterable[int] = (),
) -> list[tuple[int, ...]]:
    """The greedy tokens of a batch by transformers' own `generate`, cut where the text ends."""
    ends = set(end_tokens)
    output = hf.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=attention_mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,  # a hook in the pass over the prompt must last
        eos_token_id=sorted(ends) or [NO_TOKEN],
        pad_token_id=0,
    )
    return [_cut(row, ends) for row in output[:, ids.shape[1] :].tolist()]


def _cut(tokens: Sequence[int], ends: set[int]) -> tuple[int, ...]:
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[:end])
