"""Provides the floor: the work that no way of running the cells can avoid, and its time.

The floor is (layer-tokens × the time of one) + (unembedding rows × the time of one). A
layer-token is one block run on one token. Nothing else counts: no attention to be set up, no
rows to be gathered, no reading of logits, no bookkeeping.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from benchmarks.subjects import timed
from hopscope.models.language_model import LanguageModel


@dataclass(frozen=True)
class Work:
    """Layer-tokens and rows of the unembedding."""

    layer_tokens: int
    unembedding_rows: int

    def __add__(self, other: Work) -> Work:
        return Work(
            self.layer_tokens + other.layer_tokens, self.unembedding_rows + other.unembedding_rows
        )

    def seconds(self, unit: UnitTimes) -> float:
        """The least time that it takes."""
        return self.layer_tokens * unit.layer_token + self.unembedding_rows * unit.unembedding_row


def prompt_work(targets: Sequence[int], n_layers: int, n_tokens: int, position: int) -> Work:
    """What the next-token read-out of back-patched cells cannot avoid.

    The clean run needs every block on every token. A cell with target b differs from it in the
    blocks b+1..L-1, at the tokens from the patched one on, and has logits of its own.

    Args:
        targets: the target layer of each cell.
        n_layers: number of blocks, L.
        n_tokens: length of the prompt.
        position: the patched token, counted from the start.
    """
    clean = n_layers * n_tokens
    own = sum(n_layers - 1 - target for target in targets) * (n_tokens - position)
    return Work(clean + own, len(targets))


def decoding_work(
    targets: Sequence[int],
    generated: Sequence[tuple[int, ...]],
    n_layers: int,
    max_new_tokens: int,
) -> Work:
    """What the greedy tokens after the first cannot avoid.

    Each generated token is fed back, but for the last of `max_new_tokens`. For a cell with
    target b it needs the blocks b+1..L-1 and logits of the cell's own. The blocks 0..b see
    nothing but unedited states and the tokens generated so far, so there it is one row for all
    cells that have generated the same: up to the highest target among them.

    Args:
        targets: the target layer of each cell.
        generated: the tokens of each cell, without the one that ended the text.
        n_layers: number of blocks, L.
        max_new_tokens: how many tokens were asked for.
    """
    own = rows = 0
    shared: dict[tuple[int, ...], int] = {}
    for target, tokens in zip(targets, generated, strict=True):
        fed = min(len(tokens), max_new_tokens - 1)
        rows += fed
        own += fed * (n_layers - 1 - target)
        for length in range(1, fed + 1):
            history = tokens[:length]
            shared[history] = max(shared.get(history, 0), target + 1)
    return Work(own + sum(shared.values()), rows)


@dataclass(frozen=True)
class UnitTimes:
    """Seconds of one layer-token and of one row of the unembedding, in a batch of `rows`."""

    layer_token: float
    unembedding_row: float
    rows: int


def median_of(units: Sequence[UnitTimes]) -> UnitTimes:
    """The median of several measurements."""
    return UnitTimes(
        statistics.median(unit.layer_token for unit in units),
        statistics.median(unit.unembedding_row for unit in units),
        units[0].rows,
    )


@torch.inference_mode()
def unit_times(model: LanguageModel, rows: int, n_keys: int, repeats: int = 5) -> UnitTimes:
    """Time one block and the unembedding on a batch of rows of one token each.

    The block is the middle one, run by its own forward exactly as the model calls it: norms,
    projections, rotary embedding, the model's own attention over `n_keys` keys and values a row
    (in a buffer that is written in place, the new token's own among them), and the MLP.
    The unembedding is its matrix product alone.

    Args:
        model: the model.
        rows: how many rows; the cells of the benchmark.
        n_keys: keys that each row sees; the tokens of the prompt.
        repeats: of which the median is taken, after one that is not counted.
    """
    block, calls = model.layers[model.n_layers // 2], dict[nn.Module, _Call]()
    ids = torch.zeros((rows, 1), dtype=torch.long, device=model.device)
    positions = torch.full((1, 1), n_keys - 1, device=model.device)
    with ExitStack() as stack:
        for module in (block, model.unembedding):
            handle = module.register_forward_pre_hook(_keeping(calls), with_kwargs=True)
            stack.callback(handle.remove)
        past: dict[str, Any] = {model.cache_argument: _FullCache(n_keys)}
        model.hf(input_ids=ids, position_ids=positions, use_cache=True, **past)
    seconds = {}
    for module, (args, kwargs) in calls.items():
        times = [_seconds_of(module, args, kwargs, model.device) for _ in range(repeats + 1)]
        seconds[module] = statistics.median(times[1:])
    return UnitTimes(seconds[block] / rows, seconds[model.unembedding] / rows, rows)


_Call = tuple[tuple[Any, ...], dict[str, Any]]


def _keeping(calls: dict[nn.Module, _Call]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] = (args, kwargs)

    return hook


def _seconds_of(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
) -> float:
    return timed(lambda: module(*args, **kwargs), device)[1]


class _FullCache(Cache):
    """Rows that have seen all tokens but the last: one buffer for all blocks, never growing."""

    def __init__(self, n_keys: int) -> None:
        super().__init__(layers=[])
        self.n_keys = n_keys
        self.buffers: dict[torch.Size, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the last place of the buffer."""
        row, head, _one, width = key_states.shape
        if key_states.shape not in self.buffers:
            shape = (row, head, self.n_keys, width)
            self.buffers[key_states.shape] = (
                key_states.new_ones(shape),
                value_states.new_ones(shape),
            )
        keys, values = self.buffers[key_states.shape]
        keys[:, :, -1:], values[:, :, -1:] = key_states, value_states
        return keys, values

    def get_seq_length(self, layer_idx: int = 0, *_: Any, **__: Any) -> int:
        """Number of tokens seen."""
        return self.n_keys - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the keys."""
        return self.n_keys, 0
