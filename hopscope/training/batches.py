"""Provides the batches of training: questions laid out, masked, padded, and their loss.

A batch depends on nothing but the seed and the number of its step, so that a run that was stopped
goes on with what it would have seen, and two runs with different masks see the same.
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

from hopscope.documents.lay_out import lay_out
from hopscope.documents.layout import Encode, Layout
from hopscope.documents.question_set import MultiDocQuestion
from hopscope.documents.world_docs import NAMES, with_names
from hopscope.engine.hooks import giving_masks
from hopscope.errors import UsageError
from hopscope.masks.algebra import Mask
from hopscope.masks.lowering import lower, within_window
from hopscope.models.language_model import LanguageModel
from hopscope.training.fit import IGNORED


@dataclass(frozen=True)
class Batch:
    """Rows padded on the left, so that all answers end together.

    Attributes:
        ids: token ids, shape (row, token).
        positions: position ids, shape (row, token); 0 for padding.
        targets: the token to predict after each, shape (row, token): those of each answer and an
            end of text after it, `IGNORED` elsewhere.
        masks: for each block the mask as its attention takes it, (row, head or 1, query, key).
    """

    ids: Int[Tensor, "row token"]
    positions: Int[Tensor, "row token"]
    targets: Int[Tensor, "row token"]
    masks: Sequence[Any]

    @property
    def n_kept(self) -> int:
        """How many positions at the end of the rows hold all that has a loss."""
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
    template: str = "plain",
    second_hops: bool = True,
    seed: int,
) -> list[Layout]:
    """The prompts with answers that one step of training sees.

    Every question is seen once in each pass over the set, in an order drawn anew for the pass.

    Args:
        model: whose tokenizer is used.
        questions: the questions.
        step: of training, from 0.
        batch_size: how many prompts.
        orders: of the documents, one of them drawn for each prompt; if empty, any order.
        hop_share: probability that a prompt asks one hop of its question, not the whole.
        n_names: how many invented names are in use; 0 leaves the questions' own.
        turns: how many questions follow one another, each about another chain of the same
            documents, as far as there are any. All but the first stand behind its answer.
        template: how a question and its documents become a prompt.
        second_hops: whether a single hop may be the second of its chain.
        seed: of all that is drawn.
    """
    encode = encoder(model)
    layouts = []
    for seen in range(step * batch_size, (step + 1) * batch_size):
        turn, place = divmod(seen, len(questions))
        rng = random.Random(f"{seed} {seen}")
        question = questions[_shuffled(len(questions), seed, turn)[place]]
        n = len(question.documents)
        order = rng.choice(list(orders)) if orders else rng.sample(range(n), n)
        if n_names:
            question = with_names(question, NAMES[:n_names], rng)
        asked = _one_hop(question, rng, second_hops) if rng.random() < hop_share else question
        others = question.extra.get("others", ())
        further = []
        for whole, *hops in rng.sample(others, min(turns - 1, len(others))):
            alone = rng.random() < hop_share
            further.append(rng.choice(hops if second_hops else hops[:1]) if alone else whole)
        layouts.append(
            lay_out(encode, asked, order, template=template, answer=asked.answer, turns=further)
        )
    return layouts


def answers_of(layout: Layout) -> list[range]:
    """The tokens of each answer in a prompt that ends in one, or in several turns.

    Raises:
        UsageError: if there is none.
    """
    if not layout.answers:
        raise UsageError(f"the prompt of question {layout.question.id!r} has no answer")
    tokens, found = layout.tokens("answer"), list[range]()
    for span in layout.answers:
        inside = [token for token in tokens if _overlap(layout.offsets[token], span)]
        found.append(range(inside[0], inside[-1] + 1))
    return found


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return max(a[0], b[0]) < min(a[1], b[1])


@lru_cache(maxsize=2)
def _shuffled(n: int, seed: int, turn: int) -> list[int]:
    """The places of one pass over `n` questions."""
    return random.Random(f"{seed} pass {turn}").sample(range(n), n)


def _one_hop(question: MultiDocQuestion, rng: random.Random, second_hops: bool) -> MultiDocQuestion:
    """One step of the chain as a question of its own, among the same documents."""
    hop = rng.choice(question.hops if second_hops else question.hops[:1])
    asked = hop.question
    for number, earlier in enumerate(question.hops, start=1):
        asked = asked.replace(f"#{number}", earlier.answer)
    return replace(question, question=asked, answer=hop.answer)


def encoder(model: LanguageModel) -> Encode:
    """The model's tokenizer as layouts take it."""

    def encode(text: str) -> tuple[Sequence[int], Sequence[tuple[int, int]]]:
        encoded = model.encode(text)
        return encoded.ids, encoded.offsets

    return encode


def batch_of(model: LanguageModel, layouts: Sequence[Layout], mask: Mask) -> Batch:
    """Prompts with answers as one padded batch under a mask, on the model's device.

    Args:
        model: what is trained.
        layouts: prompts that end in an answer.
        mask: who sees whom in each. Padding sees itself alone, and nothing sees padding.

    Raises:
        UsageError: if a layout has no answer, or the mask lets a token see nothing.
    """
    longest, end = max(map(len, layouts)), end_token(model)
    ids = torch.full((len(layouts), longest), end)
    positions = torch.zeros_like(ids)
    targets = torch.full_like(ids, IGNORED)
    for row, layout in enumerate(layouts):
        pad = longest - len(layout)
        ids[row, pad:] = torch.tensor(layout.ids)
        positions[row, pad:] = torch.tensor(layout.positions)
        for answer in answers_of(layout):
            told = torch.tensor([*layout.ids[answer.start : answer.stop], end])
            targets[row, pad + answer.start - 1 : pad + answer.stop] = told
    masks = _masks(model, layouts, mask, longest)
    device = model.device
    return Batch(ids.to(device), positions.to(device), targets.to(device), masks)


def end_token(model: LanguageModel) -> int:
    """The token that ends a text.

    Raises:
        UsageError: if the model has none.
    """
    if not model.end_tokens:
        raise UsageError(f"{model.name} has no end-of-text token, so answers would never end")
    return min(model.end_tokens)


def _masks(
    model: LanguageModel, layouts: Sequence[Layout], mask: Mask, longest: int
) -> tuple[Any, ...]:
    """For each block the lowered mask of a batch; blocks with the same mask share it."""
    made: dict[tuple[int | None, int | None], Any] = {}
    masks = []
    for layer in range(model.n_layers):
        window = model.window(layer)
        kind = (layer if layer in mask.layers else None), window
        if kind not in made:
            keeps = [_keep(model, each, mask, layer, window) for each in layouts]
            seen = _padded(keeps, longest).to(model.device)
            made[kind] = lower(seen, model.config._attn_implementation, model.dtype)
        masks.append(made[kind])
    return tuple(masks)


def _keep(
    model: LanguageModel, layout: Layout, mask: Mask, layer: int, window: int | None
) -> Tensor:
    keep = mask.keep(layout, layer, model.n_heads)
    if window is None:
        return keep
    return within_window(keep, torch.tensor(layout.positions), window)


def _padded(keeps: Sequence[Tensor], longest: int) -> Tensor:
    """Keep-masks of rows padded on the left, shape (row, head or 1, query, key)."""
    n_heads = max(len(keep) for keep in keeps)
    seen = torch.eye(longest, dtype=torch.bool).repeat(len(keeps), n_heads, 1, 1)
    for row, keep in enumerate(keeps):
        pad = longest - keep.shape[-1]
        seen[row, :, pad:, pad:] = keep
    return seen


def answer_logits(model: LanguageModel, batch: Batch) -> Float[Tensor, "row kept vocab"]:
    """The logits of the last `batch.n_kept` positions of every row."""
    with giving_masks(model, batch.masks):
        output = model.hf(
            input_ids=batch.ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.n_kept,
        )
    return output.logits  # type: ignore[no-any-return]


def answer_loss(model: LanguageModel, batch: Batch) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answers' tokens and of the ends of text, in nats."""
    logits = answer_logits(model, batch).float()
    targets = batch.targets[:, -batch.n_kept :]
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
