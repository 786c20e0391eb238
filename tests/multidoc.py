"""Provides questions over documents for tests, and a masked reading with nothing of hopscope's.

What a token sees is given as booleans; attention is a softmax written out, over the keys that are
seen alone; and every generated token comes from a pass over everything before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from hopscope.documents.layout import Encode, Layout
from hopscope.documents.question_set import Document, Hop, MultiDocQuestion
from hopscope.documents.templates import Template
from hopscope.engine.read_out import CellOutputs
from hopscope.masks.algebra import Mask
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import TINY_FAMILIES, build_tiny

MUSIQUE = Path(__file__).parents[2] / "shared" / "data" / "musique.sample60.jsonl"
ROPE = tuple(name for name in TINY_FAMILIES if name != "tiny-random-gpt2")

SHORT = Template("Answer.\n", "Document{label} {title}: {text}\n", "Question: {question}\nAnswer:")
"""Short enough for the context of tiny models, with all parts that a template can have."""

QUESTION = MultiDocQuestion(
    "tower",
    "What is the capital of the country of the Tower?",
    "Paris",
    (
        Document("Kyoto", "The country of Japan."),
        Document("France", "The capital is Paris."),
        Document("Rome", "The capital of Italy, born in the city."),
        Document("the Tower", "The country is France."),
    ),
    (Hop("country of the Tower", "France", 3), Hop("capital of #1", "Paris", 1)),
)
OTHER = MultiDocQuestion(
    "song",
    "Who is the spouse of the performer of Imagine?",
    "Yoko Ono",
    (
        Document("Imagine", "The performer is Lennon."),
        Document("Lennon", "His spouse is Yoko Ono."),
    ),
    (Hop("performer", "Lennon", 0), Hop("spouse", "Yoko Ono", 1)),
)


def question_of(n_documents: int, gold: Sequence[int], ordered: bool = True) -> MultiDocQuestion:
    """A question whose documents are told apart by a number."""
    documents = [Document(f"T{index}", f"Text {index}.") for index in range(n_documents)]
    hops = [Hop(f"step {index}", f"a{index}", index) for index in gold]
    return MultiDocQuestion("q", "Which?", "a", tuple(documents), tuple(hops), (), ordered)


def encode_by(model: LanguageModel) -> Encode:
    """A model's tokenizer, as layouts take it."""

    def encode(text: str) -> tuple[Sequence[int], Sequence[tuple[int, int]]]:
        encoded = model.encode(text)
        return encoded.ids, encoded.offsets

    return encode


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_model(name: str = "tiny-random-qwen2", n_positions: int = 2048) -> LanguageModel:
    """A tiny model with the turns of Qwen2.5, and room for the prompts of a paper."""
    hf, tokenizer = build_tiny(name)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    hf.config.max_position_embeddings = n_positions
    tokenizer.chat_template = CHATML
    return load_model(hf, device="cpu", tokenizer=tokenizer, name=f"{name}-chat")


def by_characters(text: str) -> tuple[Sequence[int], Sequence[tuple[int, int]]]:
    """A tokenizer with a token for each character."""
    return [ord(each) for each in text], [(place, place + 1) for place in range(len(text))]


@cache
def with_attention(name: str, implementation: str) -> LanguageModel:
    """A tiny model whose attention is computed in the named way."""
    hf, tokenizer = build_tiny(name)
    hf.set_attn_implementation(implementation)
    return load_model(hf, device="cpu", tokenizer=tokenizer, name=name)


SEEN_ALONE = "plain_seen_alone"


@dataclass
class _Now:
    """Who sees whom in the pass that runs, by block, and the position ids."""

    seen: list[Tensor]
    positions: list[int]


_now: list[_Now] = []


def attention_to_what_is_seen(
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
    """Attention of one row of tokens, head by head, each to what it sees within the window."""
    now = _now[-1]
    seen = now.seen[int(module.layer_idx)]  # type: ignore[call-overload]
    _, n_heads, n_tokens, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    groups = n_heads // key.shape[1]
    seen = seen.clone()
    if sliding_window is not None:
        places = torch.tensor(now.positions)
        seen &= ((places[:, None] - places[None, :]).abs() < sliding_window)[None]
    output = torch.zeros(1, n_tokens, n_heads, width, dtype=query.dtype)
    for head in range(n_heads):
        scores = query[0, head] @ key[0, head // groups].T * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        allowed = seen[head if len(seen) > 1 else 0]
        weights = torch.where(allowed, (scores - scores.max()).double().exp(), 0)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        output[0, :, head] = weights.to(value.dtype) @ value[0, head // groups]
    return output, None


AttentionInterface.register(SEEN_ALONE, attention_to_what_is_seen)


@contextmanager
def _seeing(model: LanguageModel, seen: list[Tensor], positions: list[int]) -> Iterator[None]:
    before = model.config._attn_implementation
    model.config._attn_implementation = SEEN_ALONE
    _now.append(_Now(seen, positions))
    try:
        yield
    finally:
        _now.pop()
        model.config._attn_implementation = before


@torch.no_grad()
def next_logits(
    model: LanguageModel, ids: Sequence[int], positions: Sequence[int], seen: list[Tensor]
) -> Tensor:
    """The logits of the token after a row, of which each token sees what `seen` says."""
    with _seeing(model, seen, list(positions)):
        output = model.hf(
            input_ids=torch.tensor([list(ids)]),
            position_ids=torch.tensor([list(positions)]),
            use_cache=False,
        )
    return output.logits[0, -1].float()


def with_one_more(seen: Tensor) -> Tensor:
    """Who sees whom when one token is generated: it sees what the last saw, the last, and itself.

    Nothing before sees it.
    """
    heads, n, _ = seen.shape
    grown = torch.zeros(heads, n + 1, n + 1, dtype=torch.bool)
    grown[:, :n, :n] = seen
    grown[:, n, :n] = seen[:, n - 1]
    grown[:, n, n] = True
    return grown


@dataclass(frozen=True)
class Expected:
    """What one version must give: logits after the prompt, and the greedy tokens."""

    logits: Tensor
    tokens: tuple[int, ...]

    @property
    def logprobs(self) -> Tensor:
        return torch.log_softmax(self.logits, dim=-1)


def by_brute_force(
    model: LanguageModel,
    layout: Layout,
    seen: list[Tensor],
    max_new_tokens: int = 0,
    stop: Callable[[tuple[int, ...]], bool] | None = None,
) -> Expected:
    """Read one layout, whose tokens see in each block what `seen` says."""
    ids, positions = list(layout.ids), list(layout.positions)
    first = logits = next_logits(model, ids, positions, seen)
    tokens: list[int] = []
    while len(tokens) < max_new_tokens:
        token = int(logits.argmax())
        if token in model.end_tokens:
            break
        tokens.append(token)
        if len(tokens) == max_new_tokens or (stop is not None and stop(tuple(tokens))):
            break
        ids.append(token)
        positions.append(positions[-1] + 1)
        seen = [with_one_more(each) for each in seen]
        logits = next_logits(model, ids, positions, seen)
    return Expected(first, tuple(tokens))


def keeps_of(model: LanguageModel, layout: Layout, mask: Mask) -> list[Tensor]:
    """What a mask says of every block."""
    return [mask.keep(layout, layer, model.n_heads) for layer in range(model.n_layers)]


def assert_reads(outputs: CellOutputs, expected: Sequence[Expected], track: Sequence[int]) -> None:
    """Log-probabilities to 1e-4, and the same tokens."""
    for index, each in enumerate(expected):
        torch.testing.assert_close(
            outputs.tracked[index], each.logprobs[list(track)], atol=1e-4, rtol=1e-4
        )
        assert outputs.tokens[index] == each.tokens, f"version {index}"
