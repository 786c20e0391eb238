"""Provides training batches of questions over documents under a mask, and their loss.

A batch depends only on the seed and the step, so that an interrupted run continues with the same
batches, and two runs with different masks see the same prompts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from hopscope.documents.framing import encoder_of, frame_of
from hopscope.documents.lay_out import lay_out
from hopscope.documents.layout import Encode, Layout
from hopscope.documents.question_set import MultiDocQuestion
from hopscope.documents.templates import Template, template_of
from hopscope.documents.world_docs import NAMES, with_names
from hopscope.engine.hooks import giving_masks
from hopscope.errors import UsageError
from hopscope.masks.algebra import Mask
from hopscope.masks.lowering import lower, within_window
from hopscope.models.chat import end_of_turn
from hopscope.models.evaluation import plain_outputs
from hopscope.models.language_model import LanguageModel
from hopscope.training.fit import IGNORED


@dataclass(frozen=True)
class Batch:
    """A batch of prompts with answers, padded on the left so that all answers end together.

    Attributes:
        ids: token ids, shape (row, token).
        positions: position ids, shape (row, token); 0 for padding.
        targets: the token to predict after each token, shape (row, token): the tokens of each
            answer and an end of text after it, and `IGNORED` elsewhere.
        masks: for each block, the mask in the form that its attention implementation expects, with
            shape (row, head or 1, query, key).
    """

    ids: Int[Tensor, "row token"]
    positions: Int[Tensor, "row token"]
    targets: Int[Tensor, "row token"]
    masks: Sequence[Any]

    @property
    def n_kept(self) -> int:
        """Number of positions at the end of the rows that contain all targets."""
        first = int((self.targets != IGNORED).any(dim=0).nonzero()[0])
        return self.targets.shape[1] - first


def drawn_layouts(
    model: LanguageModel,
    questions: Sequence[MultiDocQuestion],
    *,
    step: int,
    batch_size: int,
    orders: Sequence[str],
    hop_share: float,
    n_names: int,
    turns: int = 1,
    template: str | Template = "plain",
    second_hops: bool = True,
    seed: int,
) -> list[Layout]:
    """Draw the prompts with answers of one training step.

    Each pass over the questions uses every question once, in a new random order.

    Args:
        model: the model, for its tokenizer.
        questions: the questions.
        step: number of the training step, from 0.
        batch_size: number of prompts.
        orders: orders of the documents, from which one is drawn for each prompt; if empty, any
            permutation.
        hop_share: probability that a prompt asks a single hop instead of the whole question.
        n_names: number of invented names to draw from; 0 keeps the names of the questions.
        turns: the most questions in a prompt, each about a different chain in the same documents.
            All but the first follow the answer of the one before.
        template: a name of `TEMPLATES`, or a template.
        second_hops: whether a single hop may be the second hop of its chain.
        seed: seed of everything that is drawn.

    Returns:
        One layout for each prompt.
    """
    form = template_of(template)
    encode, frame = encoder(model, form), frame_of(model, form)
    layouts = []
    for seen in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(seen, len(questions))
        rng = random.Random(f"{seed} {seen}")
        question = questions[_epoch_order(len(questions), seed, epoch)[place]]
        n = len(question.documents)
        order = rng.choice(list(orders)) if orders else rng.sample(range(n), n)
        if n_names:
            question = with_names(question, NAMES[:n_names], rng)
        first = _one_hop(question, rng, second_hops) if rng.random() < hop_share else question
        further = _further_turns(question, rng, turns - 1, hop_share, second_hops)
        layouts.append(
            lay_out(
                encode,
                first,
                order,
                template=form,
                answer=first.answer,
                turns=further,
                frame=frame,
            )
        )
    return layouts


def _further_turns(
    question: MultiDocQuestion, rng: random.Random, n: int, hop_share: float, second_hops: bool
) -> list[tuple[str, str]]:
    """Draw up to `n` questions with answers about other chains in the same documents."""
    others = question.extra.get("others", ())
    further = []
    for two_hop, *hops in rng.sample(others, min(n, len(others))):
        single_hop = rng.random() < hop_share
        further.append(rng.choice(hops if second_hops else hops[:1]) if single_hop else two_hop)
    return further


def answers_of(layout: Layout) -> list[range]:
    """Return the token range of each answer in a prompt, one for each turn.

    Raises:
        UsageError: if the prompt has no answer.
    """
    if not layout.answers:
        raise UsageError(
            f"the prompt of question {layout.question.id!r} has no answer to train on; lay it out "
            "with answer="
        )
    tokens, ranges = layout.tokens("answer"), list[range]()
    for span in layout.answers:
        inside = [token for token in tokens if _overlap(layout.offsets[token], span)]
        ranges.append(range(inside[0], inside[-1] + 1))
    return ranges


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return max(a[0], b[0]) < min(a[1], b[1])


@lru_cache(maxsize=2)
def _epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """Return the order of `n` questions in one pass over them."""
    return random.Random(f"{seed} pass {epoch}").sample(range(n), n)


def _one_hop(question: MultiDocQuestion, rng: random.Random, second_hops: bool) -> MultiDocQuestion:
    """Draw a single hop, and return it as a question over the same documents."""
    hop = rng.choice(question.hops if second_hops else question.hops[:1])
    text = hop.question
    for number, earlier in enumerate(question.hops, start=1):
        text = text.replace(f"#{number}", earlier.answer)
    return replace(question, question=text, answer=hop.answer)


def encoder(model: LanguageModel, template: str | Template = "plain") -> Encode:
    """Return the tokenizer of a model in the form that `lay_out` expects.

    Args:
        model: the model.
        template: of the prompts; a chat template brings its special tokens.

    Raises:
        UsageError: when it is called, for a text that does not fit into the context.
    """
    return encoder_of(model, template_of(template), fitting=True)


def batch_of(
    model: LanguageModel, layouts: Sequence[Layout], mask: Mask, end: int | None = None
) -> Batch:
    """Convert prompts with answers to a padded batch under a mask, on the model's device.

    Args:
        model: the model to be trained.
        layouts: prompts with answers.
        mask: the attention mask. Padding attends to itself only, and no token attends to padding.
        end: the token to predict after an answer; that of `end_token` if None.

    Raises:
        UsageError: if a prompt has no answer, or if the mask leaves a token without any key.
    """
    longest, end = max(map(len, layouts)), end_token(model) if end is None else end
    ids = torch.full((len(layouts), longest), end)
    positions = torch.zeros_like(ids)
    targets = torch.full_like(ids, IGNORED)
    for row, layout in enumerate(layouts):
        pad = longest - len(layout)
        ids[row, pad:] = torch.tensor(layout.ids)
        positions[row, pad:] = torch.tensor(layout.positions)
        for answer in answers_of(layout):
            answer_ids = torch.tensor([*layout.ids[answer.start : answer.stop], end])
            targets[row, pad + answer.start - 1 : pad + answer.stop] = answer_ids
    masks = _masks(model, layouts, mask, longest)
    device = model.device
    return Batch(ids.to(device), positions.to(device), targets.to(device), masks)


def end_token(model: LanguageModel, *, chat: bool = False) -> int:
    """Return the end-of-text token of a model.

    Args:
        model: the model.
        chat: whether the token is meant with which the assistant's turn ends in a chat, if the
            template has one.

    Raises:
        UsageError: if the model has none.
    """
    if chat and (turn := end_of_turn(model.tokenizer)):
        return min(turn)
    if not model.end_tokens:
        raise UsageError(
            f"{model.name} has no end-of-text token, so that its answers would never end; set "
            "eos_token in its tokenizer"
        )
    return min(model.end_tokens)


def _masks(
    model: LanguageModel, layouts: Sequence[Layout], mask: Mask, longest: int
) -> tuple[Any, ...]:
    """Return the lowered mask of each block; blocks with the same mask share one object."""
    lowered: dict[tuple[int | None, int | None], Any] = {}
    masks = []
    for layer in range(model.n_layers):
        window = model.window(layer)
        kind = (layer if layer in mask.layers else None), window
        if kind not in lowered:
            keeps = [_keep(model, each, mask, layer, window) for each in layouts]
            keep = _padded(keeps, longest).to(model.device)
            lowered[kind] = lower(keep, model.config._attn_implementation, model.dtype)
        masks.append(lowered[kind])
    return tuple(masks)


def _keep(
    model: LanguageModel, layout: Layout, mask: Mask, layer: int, window: int | None
) -> Tensor:
    """Return the keep-mask of a prompt in one block, within the sliding window if there is one."""
    keep = mask.keep(layout, layer, model.n_heads)
    if window is None:
        return keep
    return within_window(keep, torch.tensor(layout.positions), window)


def _padded(keeps: Sequence[Tensor], longest: int) -> Tensor:
    """Stack keep-masks with padding on the left, shape (row, head or 1, query, key)."""
    n_heads = max(len(keep) for keep in keeps)
    padded = torch.eye(longest, dtype=torch.bool).repeat(len(keeps), n_heads, 1, 1)
    for row, keep in enumerate(keeps):
        pad = longest - keep.shape[-1]
        padded[row, :, pad:, pad:] = keep
    return padded


def answer_logits(model: LanguageModel, batch: Batch) -> Float[Tensor, "row kept vocab"]:
    """Return the logits at the last `batch.n_kept` positions of each row."""
    with giving_masks(model, batch.masks), plain_outputs(model.hf):
        output = model.hf(
            input_ids=batch.ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.n_kept,
        )
    return output.logits  # type: ignore[no-any-return]


def answer_loss(model: LanguageModel, batch: Batch) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of answer tokens and ends of text, in nats per token."""
    logits = answer_logits(model, batch).float()
    targets = batch.targets[:, -batch.n_kept :]
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
