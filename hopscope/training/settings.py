"""Provides TrainingSettings and Schedule, and checks of their values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hopscope.documents.templates import template_of
from hopscope.documents.world_docs import NAMES
from hopscope.errors import UsageError


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training with AdamW (betas 0.9 and 0.98).

    Attributes:
        steps: number of optimizer steps.
        batch_size: examples per step.
        learning_rate: peak learning rate, reached after the warm-up; it decays to 0 as a cosine.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        weight_decay: weight decay of matrices; norms and biases have none.
        clip: largest norm of the gradient.
        checkpoint_every: steps between checkpoints, if there is a folder for them.
        bfloat16: whether to compute in bfloat16 with torch's autocast; weights keep their dtype.
        hold: share of the steps after which the learning rate begins to decay. Abilities that are
            learned abruptly, such as composing two hops, need the full rate until then.

    Raises:
        UsageError: if a value is out of range.
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
            raise UsageError(
                f"hold must be a share of the steps from 0 to below 1, not {self.hold}"
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        start = max(self.warmup_steps, int(self.hold * self.steps))
        done = max(0, step - start) / max(1, self.steps - start)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def check_positive(settings: object, *names: str) -> None:
    """Check that the named attributes are greater than 0.

    Raises:
        UsageError: for the first that is not.
    """
    for name in names:
        if not getattr(settings, name) > 0:
            raise UsageError(f"{name} must be more than 0, not {getattr(settings, name)}")


def check_not_negative(settings: object, *names: str) -> None:
    """Check that the named attributes are 0 or more.

    Raises:
        UsageError: for the first that is not.
    """
    for name in names:
        if not getattr(settings, name) >= 0:
            raise UsageError(f"{name} must be 0 or more, not {getattr(settings, name)}")


def check_shares(settings: object, *names: str) -> None:
    """Check that the named attributes are None or shares from 0 to 1.

    Raises:
        UsageError: for the first that is not.
    """
    for name in names:
        share = getattr(settings, name)
        if share is not None and not 0 <= share <= 1:
            raise UsageError(f"{name} must be a share from 0 to 1, not {share}")


def share_at(step: int, share: float, late_share: float | None, late: int) -> float:
    """Return `late_share` from step `late` on unless it is None, and `share` before."""
    return share if late_share is None or step < late else late_share


@dataclass(frozen=True)
class TrainingSettings(Schedule):
    """Settings for training a model to answer questions over documents.

    Attributes:
        hop_share: share of the prompts that ask a single hop of their question.
        late_hop_share: the same share from step `late` on; None keeps it constant. Once single hops
            are learned, few of them are needed, and composition is learned earlier with more
            two-hop questions.
        late: the first step with `late_hop_share`.
        orders: orders of the documents, from which one is drawn for each prompt; if empty, any
            permutation.
        n_names: number of invented names of `world-docs` to draw from. Each prompt draws new names,
            so that answers cannot be memorised; 0 keeps the names of the questions.
        turns: the most questions about the same documents in one prompt, each about a different
            chain. The loss includes the answer of each.
        template: a name of `hopscope.documents.templates.TEMPLATES`.
        second_hops: whether the second hop of a chain may be asked on its own. Over bare pairs of
            names it is the harder hop, because its name occurs twice in the documents.
        n_layers, d_model, n_heads, d_mlp: shape of a model that is trained from scratch.
        lora_rank: rank of the low-rank updates of a pretrained model.
        lora_alpha: the updates are scaled by `lora_alpha / lora_rank`.
        steps, batch_size, ...: as in `Schedule`.

    Raises:
        UsageError: if a value is out of range, or the template is unknown.
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
            raise UsageError(f"n_names must lie between 0 and {len(NAMES)}, not {self.n_names}")
        check_shares(self, "hop_share", "late_hop_share")
        check_not_negative(self, "late")
        if self.d_model % (2 * self.n_heads):
            raise UsageError(
                f"d_model {self.d_model} must be a multiple of {2 * self.n_heads}: each of the "
                f"{self.n_heads} heads needs an even width"
            )

    def hops_at(self, step: int) -> float:
        """Return the share of prompts that ask a single hop at a step, counted from 0."""
        return share_at(step, self.hop_share, self.late_hop_share, self.late)
