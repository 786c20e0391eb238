"""Provides the check that contenders and hopscope read the same from the same cells.

In float32 the log-probabilities must lie within 1e-3, the hits (rank 0) and all greedy tokens be
the same. In bfloat16 and float16 the order of summation alone moves a logit by more than the
gap between the two likeliest tokens now and then. There the tolerance is wider, and where greedy
tokens part, both must be likeliest within that tolerance: by the logits of plain transformers,
on the prompt and the tokens up to there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.others import Tokens, replacing, source_states
from benchmarks.subjects import Pair, Subject, Task
from hopscope.engine.read_out import CellOutputs

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.5}


@dataclass(frozen=True)
class Agreement:
    """How one contender's outputs compare with hopscope's.

    Attributes:
        agree: whether they are the same, within the tolerance of the type.
        compared: number of cells (and prompts) that both have run.
        different: those whose tokens, or whose hit, differ; near ties included.
        largest: the largest difference of a log-probability.
    """

    agree: bool
    compared: int
    different: int
    largest: float | None = None


def compare_first_tokens(task: Task, ours: CellOutputs, told: Mapping[Pair, Tensor]) -> Agreement:
    """Log-probability and hit of every cell that the contender has run."""
    place = {pair: index for index, pair in enumerate(task.pairs)}
    index = [place[pair] for pair in told]
    theirs = torch.stack(list(told.values())).cpu()
    difference = (ours.logprob[index] - theirs[:, 0]).abs().nan_to_num(nan=torch.inf)
    different = int(((ours.rank[index] == 0) != (theirs[:, 1] == 0)).sum())
    exact = task.model.dtype == torch.float32
    close = bool((difference <= TOLERANCE[task.model.dtype]).all())
    agree = close and not (exact and different)
    return Agreement(agree, len(index), different, float(difference.max()))


def compare_generations(
    task: Task, ours: Sequence[CellOutputs], told: Mapping[Pair, Sequence[Tokens]]
) -> Agreement:
    """Greedy tokens of every cell and prompt that the contender has run.

    Args:
        task: what was asked.
        ours: hopscope's outputs, one for each prompt that the contender was given.
        told: for each cell the tokens of each prompt; cells that hopscope did not run are left out.
    """
    place = {pair: index for index, pair in enumerate(task.pairs)}
    compared, parted = 0, list[tuple[Subject, Pair, Tokens, Tokens]]()
    for pair in (pair for pair in told if pair in place):
        for subject, outputs, tokens in zip(task.subjects, ours, told[pair], strict=False):
            mine = outputs.tokens[place[pair]]
            compared += 1
            if mine != tuple(tokens):
                parted.append((subject, pair, mine, tuple(tokens)))
    exact = task.model.dtype == torch.float32
    agree = not parted or (not exact and all(near_tie(task, *one) for one in parted))
    return Agreement(agree, compared, len(parted))


@torch.inference_mode()
def near_tie(task: Task, subject: Subject, pair: Pair, mine: Tokens, theirs: Tokens) -> bool:
    """Whether two generations part where both next tokens are likeliest, within the tolerance."""
    same = next(
        (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b),
        min(len(mine), len(theirs)),
    )
    model = task.model
    prompt = torch.tensor([subject.ids], device=model.device)
    vector = source_states(task, prompt)[pair.source][:, subject.position]
    row = torch.tensor([[*subject.ids, *mine[:same]]], device=model.device)
    with replacing(model.layers[pair.target], [subject.position], vector):
        logits = model.hf(input_ids=row, use_cache=False, logits_to_keep=1).logits[0, -1].float()
    end = sorted(model.end_tokens)
    nexts = [[side[same]] if same < len(side) else end for side in (mine, theirs)]
    least = min(float(logits[side].amax()) if side else -torch.inf for side in nexts)
    return float(logits.amax()) - least <= TOLERANCE[model.dtype]


def as_json(agreement: Agreement) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "agree": agreement.agree,
        "compared": agreement.compared,
        "different": agreement.different,
        "largest_logprob_difference": agreement.largest,
    }
