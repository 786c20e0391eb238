"""Provides the contenders: the same cells as people run them without hopscope.

Each takes the task and returns a function that runs one cell. What is done once (wrapping the
model, the clean run that gives the source states) is done before and not timed. Each is given
what makes it fast without changing how it works: no gradients, no cache where nothing is
decoded, logits of the last token alone where the library can be told so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig

from benchmarks.subjects import Pair, Task
from hopscope.models.transformer_lens import copy_of_modules

FirstToken = Float[Tensor, "2"]
"""Log-probability of the best answer token, and its rank."""
Tokens = tuple[int, ...]


def plain_first_token(task: Task) -> Callable[[Pair], FirstToken]:
    """Plain transformers: one hooked forward over the prompt per cell."""
    model, subject = task.model, task.subject
    ids = torch.tensor([subject.ids], device=model.device)
    states = source_states(task, ids)

    @torch.inference_mode()
    def run(pair: Pair) -> FirstToken:
        vector = states[pair.source][:, subject.position]
        with replacing(model.layers[pair.target], [subject.position], vector):
            logits = model.hf(input_ids=ids, use_cache=False, logits_to_keep=1).logits
        return read(logits[0, -1], task.answer_tokens)

    return run


def plain_generation(task: Task) -> Callable[[Pair], Tokens]:
    """Plain transformers: a hooked prefill per cell, then a greedy loop over its cache."""
    model, subject = task.model, task.subject
    ids = torch.tensor([subject.ids], device=model.device)
    states = source_states(task, ids)

    @torch.inference_mode()
    def run(pair: Pair) -> Tokens:
        vector = states[pair.source][:, subject.position]
        with replacing(model.layers[pair.target], [subject.position], vector):
            output = model.hf(input_ids=ids, use_cache=True, logits_to_keep=1)
        return _decode(task, output)

    return run


def _decode(task: Task, output: Any) -> Tokens:
    """The greedy tokens that follow a prefill, without the one that ends the text."""
    model, tokens = task.model, list[int]()
    while True:
        token = int(output.logits[0, -1].argmax())
        if token in model.end_tokens:
            return tuple(tokens)
        tokens.append(token)
        if len(tokens) == task.max_new_tokens:
            return tuple(tokens)
        past = {model.cache_argument: getattr(output, model.cache_argument)}
        row = torch.tensor([[token]], device=model.device)
        output = model.hf(input_ids=row, use_cache=True, **past)


def paper_generation(task: Task) -> Callable[[Pair], list[Tokens]]:
    """The paper's way: all prompts in one left-padded batch per cell, and `generate`."""
    model, config = task.model, _greedy(task)
    ids, mask = left_padded([s.ids for s in task.subjects], config.pad_token_id, model.device)
    length = ids.shape[1]
    positions = [length - len(s.ids) + s.position for s in task.subjects]
    rows = torch.arange(len(positions), device=model.device)
    states = source_states(task, ids, mask)

    @torch.inference_mode()
    def run(pair: Pair) -> list[Tokens]:
        vectors = states[pair.source][rows, positions]
        with replacing(model.layers[pair.target], positions, vectors):
            out = model.hf.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, generation_config=config
            )
        return [_until(row, model.end_tokens) for row in out[:, length:].tolist()]

    return run


def _greedy(task: Task) -> GenerationConfig:
    end = sorted(task.model.end_tokens)
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=task.max_new_tokens,
        do_sample=False,
        eos_token_id=end or None,
        pad_token_id=end[0] if end else 0,
    )


def _until(tokens: Sequence[int], end: frozenset[int]) -> Tokens:
    """The tokens before the first that ends the text."""
    stop = next((i for i, token in enumerate(tokens) if token in end), len(tokens))
    return tuple(tokens[:stop])


def transformer_lens_first_token(task: Task) -> Callable[[Pair], FirstToken]:
    """TransformerLens: `run_with_hooks` per cell, on its own copy of the modules."""
    position = task.subject.position
    ids = torch.tensor([task.subject.ids], device=task.model.device)
    states = source_states(task, ids)
    bridge = task.model.to_transformer_lens()

    @torch.inference_mode()
    def run(pair: Pair) -> FirstToken:
        def put(hidden: Tensor, hook: object) -> Tensor:
            hidden[:, position] = states[pair.source][:, position]
            return hidden

        name = f"blocks.{pair.target}.hook_resid_post"
        logits = bridge.run_with_hooks(ids, fwd_hooks=[(name, put)])
        return read(logits[0, -1], task.answer_tokens)

    return run


def nnsight_first_token(task: Task) -> Callable[[Pair], FirstToken]:
    """nnsight: one trace per cell, on its own copy of the modules."""
    position = task.subject.position
    ids = torch.tensor([task.subject.ids], device=task.model.device)
    states = source_states(task, ids)
    trace, blocks, unembedding = _envoys(task)

    @torch.inference_mode()
    def run(pair: Pair) -> FirstToken:
        vector = states[pair.source][:, position]
        with trace(ids, use_cache=False, logits_to_keep=1):
            blocks[pair.target].output[:, position] = vector
            logits = unembedding.output.save()
        return read(logits[0, -1], task.answer_tokens)

    return run


def _envoys(task: Task) -> tuple[Any, list[Any], Any]:
    """nnsight's `trace`, and its stand-ins for the blocks and the unembedding."""
    from nnsight import TransformersModel  # type: ignore[import-untyped]

    model = task.model
    names = {module: name for name, module in model.hf.named_modules()}
    traced = TransformersModel(copy_of_modules(model.hf), tokenizer=model.tokenizer)
    blocks = [attrgetter(names[layer])(traced) for layer in model.layers]
    return traced.trace, blocks, attrgetter(names[model.unembedding])(traced)


@contextmanager
def replacing(
    layer: nn.Module, positions: Sequence[int], vectors: Float[Tensor, "row d_model"]
) -> Iterator[None]:
    """Put one vector a row into the output of a block, in passes over more than one token."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] > 1:
            for row, position in enumerate(positions):
                hidden[row, position] = vectors[row]

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def source_states(
    task: Task, ids: Int[Tensor, "row token"], mask: Tensor | None = None
) -> list[Float[Tensor, "row token d_model"]]:
    """The output of each block in the unedited pass."""
    states: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).clone())

    handles = [layer.register_forward_hook(keep) for layer in task.model.layers]
    kept: dict[str, Any] = {}
    if mask is not None:
        places = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        kept = {"attention_mask": mask, "position_ids": places}
    task.model.hf(input_ids=ids, use_cache=False, logits_to_keep=1, **kept)
    for handle in handles:
        handle.remove()
    return states


def read(logits: Float[Tensor, " vocabulary"], answer: Sequence[int]) -> FirstToken:
    """Log-probability and rank of the best answer token."""
    logits = logits.float()
    best = logits[list(answer)].amax()
    return torch.stack([best - logits.logsumexp(dim=-1), (logits > best).sum().float()])


def left_padded(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row token"]]:
    """Prompts of any lengths as one batch, and its attention mask."""
    length = max(len(ids) for ids in prompts)
    rows = [[pad] * (length - len(ids)) + list(ids) for ids in prompts]
    mask = [[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]
    return torch.tensor(rows, device=device), torch.tensor(mask, device=device)


CONTENDERS: dict[str, Callable[[Task], Callable[[Pair], Any]]] = {
    "plain_first_token": plain_first_token,
    "plain_generation": plain_generation,
    "paper_generation": paper_generation,
    "transformer_lens_first_token": transformer_lens_first_token,
    "nnsight_first_token": nnsight_first_token,
}
