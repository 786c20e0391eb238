"""Provides TrainingSettings and Schedule, and the checks of their numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hopscope.documents.templates import template_of
from hopscope.documents.world_docs import NAMES
from hopscope.errors import UsageError


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a model is trained, by AdamW with betas .9 and .98.

    Attributes:
        steps: of the optimizer.
        batch_size: examples a step.
        learning_rate: at its height, after the warm-up; it falls to 0 as a cosine.
        warmup_steps: over which it rises from 0.
        weight_decay: of matrices; norms and biases have none.
        clip: the largest norm of the gradient.
        checkpoint_every: steps between checkpoints, where there is a folder.
        bfloat16: compute in bfloat16 where torch's autocast does; weights keep their type.
        hold: the share of the steps after which the learning rate begins to fall. What is learned
            all at once, as composing is, needs the full rate until then.

    Raises:
        UsageError: for a number that cannot be.
    """

    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    checkpoint_every: int = 500
    bfloat16: bool = False
    hold: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, "steps", "batch_size", "learning_rate", "clip", "checkpoint_every")
        check_not_negative(self, "warmup_steps", "weight_decay")
        if not 0 <= self.hold < 1:
            raise UsageError(f"hold is a share of the steps below 1, not {self.hold}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        start = max(self.warmup_steps, int(self.hold * self.steps))
        done = max(0, step - start) / max(1, self.steps - start)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def check_positive(settings: object, *names: str) -> None:
    """Refuse settings of which a number is not more than 0.

    Raises:
        UsageError: naming the first.
    """
    for name in names:
        if not getattr(settings, name) > 0:
            raise UsageError(f"{name} must be more than 0, not {getattr(settings, name)}")


def check_not_negative(settings: object, *names: str) -> None:
    """Refuse settings of which a number is less than 0.

    Raises:
        UsageError: naming the first.
    """
    for name in names:
        if not getattr(settings, name) >= 0:
            raise UsageError(f"{name} must be 0 or more, not {getattr(settings, name)}")


def check_shares(settings: object, *names: str) -> None:
    """Refuse settings of which a share, unless it is None, is not from 0 to 1.

    Raises:
        UsageError: naming the first.
    """
    for name in names:
        share = getattr(settings, name)
        if share is not None and not 0 <= share <= 1:
            raise UsageError(f"{name} is a share from 0 to 1, not {share}")


def share_at(step: int, share: float, late_share: float | None, late: int) -> float:
    """A share at a step, counted from 0, that is another from step `late` on, if that is given."""
    return share if late_share is None or step < late else late_share


@dataclass(frozen=True)
class TrainingSettings(Schedule):
    """How a model is trained to answer questions over documents.

    Attributes:
        hop_share: share of the prompts that ask a single hop of their question.
        late_hop_share: the same from step `late` on; None leaves it as it was. Once single hops are
            learned, few are needed, and with more of the others composing is learned earlier.
        late: the step from which `late_hop_share` holds.
        orders: of the documents, one drawn for each prompt; if empty, any permutation.
        n_names: how many of the invented names of `world-docs` are in use. Each prompt draws from
            them anew, so that no answer can be learned by heart; 0 leaves questions as they are.
        turns: how many questions are asked of the same documents, one after the other, each about
            another chain, as far as there are any. Each has an answer to learn from.
        template: a name of `hopscope.documents.layout.TEMPLATES`.
        second_hops: whether the second hop of a chain is asked by itself, too. Of bare pairs of
            names it is the harder one to learn: its name stands twice among the documents.
        n_layers, d_model, n_heads, d_mlp: shape of the model that is made from nothing.
        lora_rank: rank of the updates of a pretrained model.
        lora_alpha: they are scaled by `lora_alpha / lora_rank`.
        steps, batch_size, ...: those of `Schedule`.

    Raises:
        UsageError: for a number that cannot be.
    """

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 3e-3
    hop_share: float = 0.5
    late_hop_share: float | None = None
    late: int = 600
    orders: tuple[str, ...] = ()
    n_names: int = 20
    turns: int = 2
    template: str = "plain"
    second_hops: bool = True
    n_layers: int = 4
    d_model: int = 64
    n_heads: int = 4
    d_mlp: int = 256
    lora_rank: int = 8
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "orders", tuple(self.orders))
        template_of(self.template)
        check_positive(self, "turns", "n_layers", "d_model", "n_heads", "d_mlp")
        check_positive(self, "lora_rank", "lora_alpha")
        if not 0 <= self.n_names <= len(NAMES):
            raise UsageError(f"n_names is a number from 0 to {len(NAMES)}, not {self.n_names}")
        check_shares(self, "hop_share", "late_hop_share")
        check_not_negative(self, "late")
        if self.d_model % (2 * self.n_heads):
            raise UsageError(
                f"d_model {self.d_model} does not give {self.n_heads} heads of an even width"
            )

    def hops_at(self, step: int) -> float:
        """The share of the prompts of a step, counted from 0, that ask a single hop."""
        return share_at(step, self.hop_share, self.late_hop_share, self.late)
