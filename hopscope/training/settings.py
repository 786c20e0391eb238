"""Provides TrainingSettings and Schedule, and checks of their values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, ClassVar, Literal, get_args

from hopscope.documents.templates import Template, template_of, without_unset
from hopscope.documents.world_docs import NAMES
from hopscope.errors import UsageError, one_of, whole_number

Decay = Literal["cosine", "linear"]


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training with AdamW.

    Attributes:
        steps: number of optimizer steps.
        batch_size: examples per step.
        learning_rate: peak learning rate, reached after the warm-up; then it decays to 0.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        weight_decay: weight decay of matrices; norms and biases have none.
        clip: largest norm of the gradient.
        checkpoint_every: steps between checkpoints, if there is a folder for them.
        bfloat16: whether to compute in bfloat16 with torch's autocast; weights keep their dtype.
        hold: share of the steps after which the learning rate begins to decay. Abilities that are
            learned abruptly, such as composing two hops, need the full rate until then.
        decay: how the learning rate decays: as a `cosine`, or `linear`.
        betas: the decay rates of AdamW's running means of gradients and of their squares.

    Raises:
        UsageError: if a value is out of range.
    """

    added_settings: ClassVar[Mapping[str, Any]] = {"decay": "cosine", "betas": (0.9, 0.98)}
    """Settings that records of earlier versions lack, and what they were then."""

    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    checkpoint_every: int = 500
    bfloat16: bool = False
    hold: float = 0.0
    decay: Decay = "cosine"
    betas: tuple[float, float] = (0.9, 0.98)

    def __post_init__(self) -> None:
        check_positive(self, "steps", "batch_size", "learning_rate", "clip", "checkpoint_every")
        check_not_negative(self, "warmup_steps", "weight_decay")
        if not 0 <= _number(self, "hold") < 1:
            raise UsageError(
                f"hold must be a share of the steps from 0 to below 1, not {self.hold}"
            )
        one_of("decay", self.decay, get_args(Decay))
        object.__setattr__(self, "betas", tuple(self.betas))
        if len(self.betas) != 2 or not all(0 <= each < 1 for each in self.betas):
            raise UsageError(f"betas must be two numbers from 0 to below 1, not {self.betas}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        start = max(self.warmup_steps, int(self.hold * self.steps))
        done = max(0, step - start) / max(1, self.steps - start)
        left = 1 - done if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * left

    def as_record(self) -> dict[str, Any]:
        """Return what a run's record says; of `added_settings` only those that are set."""
        given = without_unset(self)
        if isinstance(template := getattr(self, "template", None), Template):
            given["template"] = template.as_record()
        return given


def check_positive(settings: object, *names: str) -> None:
    """Check that the named attributes are greater than 0.

    Raises:
        UsageError: for the first that is not.
    """
    for name in names:
        if not _number(settings, name) > 0:
            raise UsageError(f"{name} must be more than 0, not {getattr(settings, name)}")


def check_not_negative(settings: object, *names: str) -> None:
    """Check that the named attributes are 0 or more.

    Raises:
        UsageError: for the first that is not.
    """
    for name in names:
        if not _number(settings, name) >= 0:
            raise UsageError(f"{name} must be 0 or more, not {getattr(settings, name)}")


def _number(settings: Any, name: str) -> Any:
    """A setting that is a finite number, and a whole one where it is declared as such.

    Raises:
        UsageError: if it is not.
    """
    value = getattr(settings, name)
    if {each.name: each.type for each in fields(settings)}[name] == "int":
        return whole_number(name, value)
    if not isinstance(value, Real) or not math.isfinite(value):
        raise UsageError(f"{name} must be a number, not {value!r:.60}")
    return value


def check_shares(settings: object, *names: str) -> None:
    """Check that the named attributes are None or shares from 0 to 1.

    Raises:
        UsageError: for the first that is not.
    """
    for name in names:
        share = getattr(settings, name)
        if share is not None and not 0 <= _number(settings, name) <= 1:
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
        template: a name of `hopscope.documents.templates.TEMPLATES`, or a template. In a chat, the
            answer is the assistant's turn, and the end of that turn is learned with it.
        second_hops: whether the second hop of a chain may be asked on its own. Over bare pairs of
            names it is the harder hop, because its name occurs twice in the documents.
        n_layers, d_model, n_heads, d_mlp: shape of a model that is trained from scratch.
        lora_rank: rank of the low-rank updates of a pretrained model.
        lora_alpha: the updates are scaled by `lora_alpha / lora_rank`.
        lora_dropout: share of the inputs of the updates that are dropped in training.
        epochs: passes over the questions, which then say how many steps there are; `steps` does if
            None.
        steps, batch_size, ...: as in `Schedule`.

    Raises:
        UsageError: if a value is out of range, or the template is unknown.
    """

    added_settings: ClassVar[Mapping[str, Any]] = {
        **Schedule.added_settings,
        "lora_dropout": 0.0,
        "epochs": None,
    }

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 3e-3
    hop_share: float = 0.5
    late_hop_share: float | None = None
    late: int = 600
    orders: tuple[str, ...] = ()
    n_names: int = 20
    turns: int = 2
    template: str | Template = "plain"
    second_hops: bool = True
    n_layers: int = 4
    d_model: int = 64
    n_heads: int = 4
    d_mlp: int = 256
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    epochs: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "orders", tuple(self.orders))
        template_of(self.template)
        check_positive(self, "turns", "n_layers", "d_model", "n_heads", "d_mlp")
        check_positive(self, "lora_rank", "lora_alpha")
        if not 0 <= self.n_names <= len(NAMES):
            raise UsageError(f"n_names must lie between 0 and {len(NAMES)}, not {self.n_names}")
        check_shares(self, "hop_share", "late_hop_share")
        if not 0 <= self.lora_dropout < 1:
            raise UsageError(f"lora_dropout must be 0 or more and below 1, not {self.lora_dropout}")
        if self.epochs is not None:
            check_positive(self, "epochs")
        if template_of(self.template).chat and self.turns > 1:
            raise UsageError("a chat template takes one question with its answer: set turns=1")
        check_not_negative(self, "late")
        if self.d_model % (2 * self.n_heads):
            raise UsageError(
                f"d_model {self.d_model} must be a multiple of {2 * self.n_heads}: each of the "
                f"{self.n_heads} heads needs an even width"
            )

    def for_questions(self, n: int) -> TrainingSettings:
        """Return the settings with the steps that `epochs` passes over `n` questions take."""
        if self.epochs is None:
            return self
        return replace(self, steps=max(1, math.ceil(self.epochs * n / self.batch_size)))

    def hops_at(self, step: int) -> float:
        """Return the share of prompts that ask a single hop at a step, counted from 0."""
        return share_at(step, self.hop_share, self.late_hop_share, self.late)


PAPER_FINETUNING = TrainingSettings(
    batch_size=1,
    learning_rate=5e-5,
    warmup_steps=0,
    weight_decay=0.0,
    decay="linear",
    betas=(0.9, 0.999),
    bfloat16=True,
    hop_share=0.0,
    orders=("original",),
    n_names=0,
    turns=1,
    template="paper_tuned",
    lora_dropout=0.05,
    epochs=5,
)
"""The recipe of Huang et al. 2025 (Masking in Multi-hop QA): LoRA of rank 8 on all linear maps of
the blocks, five passes over MuSiQue's training part in the original order, one question a step, and
what transformers' trainer does where their code says nothing. The loss is that of the assistant's
turn."""
