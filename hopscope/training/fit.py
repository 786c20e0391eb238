"""Provides fit(): a seeded training loop that continues from its last checkpoint.

The loop does not depend on the task; it minimises a function from the step to a loss. If that
function depends on nothing but the step, an interrupted run ends with the same weights as an
uninterrupted one on the same device.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hopscope.display.front_end import ProgressBar
from hopscope.errors import ModelError, ResultError, TakenError
from hopscope.files import clear_leftovers, make_folder, replacing, write_json
from hopscope.interrupts import interrupt_safe
from hopscope.models.evaluation import torch_modes
from hopscope.results.run_folder import is_taken
from hopscope.training.settings import Schedule

logger = logging.getLogger(__name__)

RECORD, CHECKPOINT, WEIGHTS = "training.json", "checkpoint.safetensors", "model.safetensors"
SLOTS = ("exp_avg", "exp_avg_sq", "step")
"""The state that AdamW keeps for each parameter."""
LOG_EVERY = 50
"""Steps between two reports of the loss."""
IGNORED = -100
"""The target of positions without a loss, which torch's cross-entropy ignores by default."""


def _unchanged(record: dict[str, Any]) -> dict[str, Any]:
    return record


def open_training(
    folder: Path,
    recipe: Mapping[str, Any],
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = _unchanged,
) -> None:
    """Create the folder of a training run, or check that it belongs to the same run.

    Args:
        folder: folder of the checkpoints.
        recipe: everything that the trained weights depend on, as JSON.
        upgrade: converts a recipe that an earlier version wrote to the current form.

    Raises:
        TakenError: if `folder` holds another run or other files.
        PlaceError: if there can be no such folder.
        ResultError: if its record is damaged.
    """
    recipe = json.loads(json.dumps(recipe))
    record = folder / RECORD
    if not record.is_file():
        if is_taken(folder, RECORD):
            raise TakenError(f"{folder} exists but holds no training run; choose another place")
        write_json(make_folder(folder) / RECORD, recipe)
        return
    try:
        recorded = json.loads(json.dumps(upgrade(json.loads(record.read_text("utf-8")))))
        differing = [key for key in recipe if recorded.get(key) != recipe[key]]
    except (ValueError, AttributeError) as error:
        raise ResultError(
            f"{record} is damaged: {error}; delete the folder to train again"
        ) from None
    if differing:
        key = differing[0]
        raise TakenError(
            f"{folder} holds another training run: its {key} is {recorded.get(key)}, not "
            f"{recipe[key]}. Choose another folder, or delete this one."
        )
    clear_leftovers(folder)


def snapshot_path(folder: Path, step: int) -> Path:
    """Return the file of the weights after `step` steps."""
    return folder / f"step-{step:06d}.safetensors"


def fit(
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    schedule: Schedule,
    *,
    seed: int,
    folder: Path | None = None,
    snapshots: Collection[int] = (),
    description: str = "train",
    progress: bool = True,
) -> None:
    """Train the parameters of a module that require gradients, in place.

    Dropout depends only on the seed and the step.

    Args:
        module: the module to train; it is left in train mode.
        loss_of: returns the loss of a step, counted from 0.
        schedule: number of steps, learning rate and other settings of the optimizer.
        seed: seed of dropout.
        folder: folder of the checkpoint; a run that it holds is continued.
        snapshots: numbers of steps after which the weights are saved in `folder` permanently; 0
            saves the initial weights.
        description: label of the progress bar.
        progress: whether to show a progress bar.

    Raises:
        ResultError: if the checkpoint is damaged.
        ModelError: if the loss is not a finite number, as is looked up every 50 steps.
    """
    optimizer = _Optimizer(module, schedule)
    first = 0 if folder is None else optimizer.resume(folder / CHECKPOINT)
    device = next(iter(optimizer.parameters.values())).device
    module.train()
    steps = ProgressBar(
        range(first, schedule.steps),
        desc=description,
        unit="step",
        initial=first,
        total=schedule.steps,
        disable=not progress,
    )
    if folder is not None and not first and 0 in snapshots:
        optimizer.save_weights(snapshot_path(folder, 0))
    with torch_seed(device, seed):
        for step in steps:
            seed_all(device, seed * 1_000_003 + step)
            with torch.autocast(device.type, torch.bfloat16, enabled=schedule.bfloat16):
                loss = loss_of(step)
            optimizer.step(loss, schedule.rate(step))
            done = step + 1
            if done % LOG_EVERY == 0 or done == schedule.steps:
                _check_loss(loss, done)
                steps.set_postfix(loss=f"{loss.item():.3f}")
                logger.debug("step %d: loss %.4f", done, loss.item())
            if folder is not None and done in snapshots:
                optimizer.save_weights(snapshot_path(folder, done))
            if folder is not None and done % schedule.checkpoint_every == 0:
                optimizer.save_checkpoint(folder / CHECKPOINT, done)


def _check_loss(loss: Tensor, done: int) -> None:
    """Refuse to train on when the loss is NaN or infinite."""
    if not bool(loss.isfinite()):
        raise ModelError(
            f"the loss is {loss.item()} after {done} steps: lower the learning rate, or train in "
            "float32"
        )


class _Optimizer:
    """AdamW over the parameters of a module that require gradients, by name."""

    def __init__(self, module: nn.Module, schedule: Schedule) -> None:
        named = {name: each for name, each in module.named_parameters() if each.requires_grad}
        matrices = {name: each for name, each in named.items() if each.ndim >= 2}
        others = {name: each for name, each in named.items() if each.ndim < 2}
        self.parameters: dict[str, nn.Parameter] = {**matrices, **others}
        self.clip = schedule.clip
        self.adamw = torch.optim.AdamW(
            [
                {"params": list(matrices.values()), "weight_decay": schedule.weight_decay},
                {"params": list(others.values()), "weight_decay": 0.0},
            ],
            lr=schedule.learning_rate,
            betas=schedule.betas,
        )

    def step(self, loss: Tensor, rate: float) -> None:
        """Take one step on the gradient of a loss, at learning rate `rate`."""
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(list(self.parameters.values()), self.clip)
        self.adamw.step()

    def save_weights(self, path: Path) -> None:
        """Write the trained parameters."""
        _write({name: each.detach() for name, each in self.parameters.items()}, path, {})

    def save_checkpoint(self, path: Path, done: int) -> None:
        """Write the weights, the optimizer state, and the number of steps done."""
        tensors = {f"weight/{name}": each.detach() for name, each in self.parameters.items()}
        for name, each in self.parameters.items():
            state = self.adamw.state[each]
            tensors |= {f"{slot}/{name}": state[slot] for slot in SLOTS}
        _write(tensors, path, {"done": str(done)})

    def resume(self, path: Path) -> int:
        """Load the checkpoint if there is one, and return the number of steps done.

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
                    self.adamw.state[each] = {**moments, "step": state["step"]}
                done = int(file.metadata()["done"])
        except torch.OutOfMemoryError:
            raise
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise ResultError(
                f"{path} is damaged: {error}; delete it to train from the start"
            ) from error
        logger.info("continuing from %s after %d steps", path, done)
        return done


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors and metadata as one safetensors file."""
    cpu = {name: each.cpu().contiguous() for name, each in tensors.items()}
    with replacing(path) as temporary:
        save_file(cpu, temporary, metadata=metadata)


@interrupt_safe
def torch_seed(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch on the CPU and one device for a block, and restore the random state after it."""
    devices = [device] if device.type == "cuda" else []
    with torch_modes(), torch.random.fork_rng(devices=devices):
        seed_all(device, seed)
        yield


def seed_all(device: torch.device, seed: int) -> None:
    """Seed torch on the CPU and one device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
