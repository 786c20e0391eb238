"""Provides train(): a small model from nothing, or LoRA on a pretrained one, under any mask.

A decoder that was trained causally gains little from a mask that it has never seen. Whether a
prefix that is seen both ways helps once the model is trained with it (Huang et al. 2025, Masking
in Multi-hop QA, section 3.3) is a question about training, here small enough for two cores.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from hopscope.documents import QuestionSet
from hopscope.errors import QueryError, ResultError
from hopscope.masks import Mask, mask_of
from hopscope.models import LanguageModel, load_model
from hopscope.results import write_json
from hopscope.training_batches import answer_loss, batch_of, drawn_layouts
from hopscope.training_models import (
    WEIGHTS,
    TrainingSettings,
    save_model,
    seed_all,
    seeded,
    small_model,
    with_updates,
)

logger = logging.getLogger(__name__)

RECORD, CHECKPOINT = "training.json", "checkpoint.safetensors"
SLOTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of every parameter."""
LOG_EVERY = 50


def train(
    questions: QuestionSet,
    mask: str | Mask = "causal",
    *,
    model: LanguageModel | str | None = None,
    settings: TrainingSettings | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> LanguageModel:
    """Train a model to answer questions over documents under a mask.

    The prompt is the documents' texts and the question; the loss is that of the answer's tokens
    and the end of text. Batches and dropout depend on the seed and the step alone, so that a run
    that was killed and goes on from `out` ends with the same weights on the same device.

    Args:
        questions: what is trained on; each is seen in another order of its documents every time.
        mask: who sees whom; a name of `MASKS`, or a mask.
        model: a pretrained model, which stays as it is: a copy is trained by LoRA, and the updates
            are merged into its weights in the end. None makes a small model from nothing.
        settings: of the training.
        seed: of weights, batches and orders.
        out: folder for checkpoints and the trained model, which `load_model` reads. A run that is
            there goes on; a finished one is loaded.
        progress: show a progress bar.

    Returns:
        The trained model, in eval mode.

    Raises:
        QueryError: if there is no question.
        ResultError: if `out` holds something else, or a damaged checkpoint.
        ModelError: if a pretrained model is given and peft is not installed.
        UsageError: for an unknown mask or model, or a prompt that is too long.

    Example:
        >>> questions = load_questions("world-docs", distractors=2)        # doctest: +SKIP
        >>> trained = train(questions, "prefix_bidirectional", out="tiny")  # doctest: +SKIP
    """
    settings, mask = settings or TrainingSettings(), mask_of(mask)
    if not len(questions):
        raise QueryError(f"{questions.name} is an empty question set: nothing to train on")
    start = small_model(questions, settings, seed) if model is None else load_model(model)
    folder = None if out is None else _opened(Path(out), start, questions, mask, settings, seed)
    if folder is not None and (folder / WEIGHTS).is_file():
        return load_model(folder, start.device, start.dtype, name=start.name)
    run = _Run.of(start, settings, seed, pretrained=model is not None)
    first = 0 if folder is None else run.resume(folder / CHECKPOINT)
    run.go(questions, mask, first, folder, progress)
    trained = run.finished(start)
    if folder is not None:
        save_model(trained, folder)
    return trained


def _opened(
    folder: Path,
    start: LanguageModel,
    questions: QuestionSet,
    mask: Mask,
    settings: TrainingSettings,
    seed: int,
) -> Path:
    """Make the folder of a training run, or check that it holds the same one."""
    how = {key: value for key, value in asdict(settings).items() if key != "checkpoint_every"}
    asked = json.loads(
        json.dumps(
            {
                "mask": mask.name,
                "settings": how,
                "seed": seed,
                "start": {"name": start.name, "sha256": start.fingerprint},
                "questions": {"name": questions.name, "sha256": questions.fingerprint},
            }
        )
    )
    record = folder / RECORD
    if not record.is_file():
        if folder.is_file() or (folder.exists() and any(folder.iterdir())):
            raise ResultError(f"{folder} is there and holds no training run; choose another place")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, asked)
        return folder
    try:
        before = json.loads(record.read_text("utf-8"))
        differing = [key for key in asked if before.get(key) != asked[key]]
    except (ValueError, AttributeError) as error:
        raise ResultError(f"{record} is damaged: {error}") from None
    if differing:
        key = differing[0]
        raise ResultError(
            f"{folder} holds another training run: its {key} is {before.get(key)}, not "
            f"{asked[key]}. Choose another folder, or delete this one."
        )
    return folder


@dataclass
class _Run:
    """A model on its way.

    Attributes:
        model: what is trained.
        adapted: peft's wrapper of it, if only updates are trained.
        parameters: what is trained of it, by name.
        optimizer: of the parameters.
        settings: of the training.
        seed: of batches and dropout.
    """

    model: LanguageModel
    adapted: Any
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    settings: TrainingSettings
    seed: int

    @classmethod
    def of(
        cls, start: LanguageModel, settings: TrainingSettings, seed: int, pretrained: bool
    ) -> _Run:
        hf = copy.deepcopy(start.hf)
        adapted = with_updates(hf, settings, seed, start.device) if pretrained else None
        if not pretrained:
            hf.requires_grad_(True)
        model = LanguageModel(hf, start.tokenizer, start.name)
        trained = {name: each for name, each in hf.named_parameters() if each.requires_grad}
        matrices = [each for each in trained.values() if each.ndim >= 2]
        others = [each for each in trained.values() if each.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
        return cls(model, adapted, trained, optimizer, settings, seed)

    def go(
        self,
        questions: QuestionSet,
        mask: Mask,
        first: int,
        folder: Path | None,
        progress: bool,
    ) -> None:
        """Take the steps from the `first` on, with a checkpoint in `folder` now and then."""
        settings, device = self.settings, self.model.device
        self.model.hf.train()
        steps = tqdm(
            range(first, settings.steps),
            desc=f"train {mask.name}",
            unit="step",
            initial=first,
            total=settings.steps,
            disable=not progress,
        )
        with seeded(device, self.seed):
            for step in steps:
                seed_all(device, self.seed * 1_000_003 + step)
                loss = self._step(questions, mask, step)
                if (step + 1) % LOG_EVERY == 0:
                    steps.set_postfix(loss=f"{loss.item():.3f}")
                    logger.debug("step %d: loss %.4f", step + 1, loss.item())
                if folder is not None and (step + 1) % settings.checkpoint_every == 0:
                    self.keep(folder / CHECKPOINT, step + 1)

    def _step(self, questions: QuestionSet, mask: Mask, step: int) -> Tensor:
        settings = self.settings
        layouts = drawn_layouts(
            self.model,
            questions,
            step=step,
            batch_size=settings.batch_size,
            orders=settings.orders,
            hop_share=settings.hop_share,
            seed=self.seed,
        )
        batch = batch_of(self.model, layouts, mask)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=settings.bfloat16):
            loss = answer_loss(self.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(list(self.parameters.values()), settings.clip)
        self.optimizer.step()
        return loss.detach()

    def keep(self, path: Path, done: int) -> None:
        """Write a checkpoint beside, then rename it: weights, optimizer state, steps done."""
        tensors = {f"weight/{name}": each.detach() for name, each in self.parameters.items()}
        for name, each in self.parameters.items():
            state = self.optimizer.state[each]
            tensors |= {f"{slot}/{name}": state[slot] for slot in SLOTS}
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(
            {name: each.cpu().contiguous() for name, each in tensors.items()},
            beside,
            metadata={"done": str(done)},
        )
        os.replace(beside, path)

    def resume(self, path: Path) -> int:
        """Take up a checkpoint, if there is one; how many steps are done.

        Raises:
            ResultError: if it is damaged.
        """
        if not path.is_file():
            return 0
        try:
            with safe_open(path, framework="pt") as file, torch.no_grad():
                for name, each in self.parameters.items():
                    each.copy_(file.get_tensor(f"weight/{name}"))
                    state = {slot: file.get_tensor(f"{slot}/{name}") for slot in SLOTS}
                    moments = {slot: state[slot].to(each.device) for slot in SLOTS[:2]}
                    self.optimizer.state[each] = {**moments, "step": state["step"]}
                done = int(file.metadata()["done"])
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise ResultError(
                f"{path} is damaged: {error}; delete it to train from the start"
            ) from error
        logger.info("going on with %s after %d steps", path, done)
        return done

    def finished(self, start: LanguageModel) -> LanguageModel:
        """The model, with updates merged into its weights, as `load_model` gives it."""
        hf = self.model.hf if self.adapted is None else self.adapted.merge_and_unload()
        hf.eval()
        hf.requires_grad_(False)
        return LanguageModel(hf, start.tokenizer, start.name)
