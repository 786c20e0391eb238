"""Provides train_world(): trains the model of a world from scratch."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from hopscope.errors import MAX_SEED, UsageError, path_of, whole_number
from hopscope.files import write_json
from hopscope.models.evaluation import evaluating
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import device_of, load_model
from hopscope.training.fit import IGNORED, fit, open_training
from hopscope.training.small_models import save_model
from hopscope.worlds.catalogue import recipe_of
from hopscope.worlds.folders import ABOUT, world_name
from hopscope.worlds.recipe import TASKS, Recipe, facts_digest
from hopscope.worlds.small_model import learn, tie, untied, untrained
from hopscope.worlds.tasks.examples import Example, TaskBatch, as_batch
from hopscope.worlds.tasks.task import Task, Thinks
from hopscope.worlds.thoughts import think
from hopscope.worlds.world import World, read_world

ROWS_AT_ONCE = 2048
"""Examples per forward pass when accuracy is measured."""
END_WEIGHT = 0.1
"""Weight of end tokens in the loss. With a weight of 1, as for answers, accuracy is 1 % lower."""


def train_world(
    name: str,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    recipe: Recipe | None = None,
    snapshots: Collection[int] = (),
    device: str | torch.device | None = None,
    progress: bool = True,
) -> World:
    """Train the model of a world.

    Args:
        name: a name of `WORLDS`, or the name of a world with its own `recipe`.
        seed: seed of the facts, the weights and the batches.
        out: folder for checkpoints and the trained model, which `load_world` and `load_model`
            read. An unfinished run in it is continued, and a finished one is loaded.
        recipe: recipe of a world that is not in `WORLDS`.
        snapshots: numbers of steps after which to save the weights, for `over_checkpoints`. They
            need `out`, and cannot be added to a run that has begun.
        device: device for training; by default CUDA if available.
        progress: whether to show a progress bar.

    Returns:
        The trained world.

    Raises:
        UsageError: for an unknown name or device, for snapshots without a folder, or if `out` is
            given and the task is not registered in `TASKS`.
        ResultError: if `out` holds another run or other files.

    Example:
        >>> world = train_world("two-hop-looped", out="worlds/looped")  # doctest: +SKIP
        >>> world.accuracy["in_distribution"]                           # doctest: +SKIP
    """
    seed = whole_number("seed", seed, 0, MAX_SEED)
    for step in snapshots:
        whole_number("each of snapshots", step, least=0)
    recipe = (recipe_of(name) if recipe is None else recipe).seeded(seed)
    if snapshots and out is None:
        raise UsageError("snapshots are saved in a folder: pass out=")
    if out is not None and TASKS.get(recipe.task.kind) is not type(recipe.task):
        raise UsageError(
            f"the world could not be read back: register its task in "
            f"hopscope.worlds.recipe.TASKS[{recipe.task.kind!r}] first"
        )
    folder = None if out is None else path_of("out", out)
    chosen = device_of(device)
    settings = {"world": name, "seed": seed, "recipe": recipe.as_json()}
    if folder is not None:
        saved = {"snapshots": sorted(snapshots)} if snapshots else {}
        open_training(folder, {**settings, **saved}, _upgrade_record)
        if (folder / ABOUT).is_file():
            return read_world(folder, chosen)
    start = time.perf_counter()
    model = _trained_model(name, seed, recipe, folder, snapshots, chosen, progress)
    seconds = time.perf_counter() - start
    measured = {"accuracy": accuracy(model, recipe.task), "facts": facts_digest(recipe.task)}
    record = {**settings, "seconds": seconds, **measured}
    if folder is not None:
        save_model(model, folder)
        write_json(folder / ABOUT, record)
    return World(name, seed, model, recipe.task, record)


def _upgrade_record(record: dict[str, Any]) -> dict[str, Any]:
    """Add the settings that did not exist when a record was written, with their defaults."""
    try:
        return {**record, "recipe": Recipe.from_json(record["recipe"]).as_json()}
    except (KeyError, TypeError, UsageError):
        return record  # not a record of a world, which the comparison will show


def _trained_model(
    name: str,
    seed: int,
    recipe: Recipe,
    folder: Path | None,
    snapshots: Collection[int],
    device: torch.device,
    progress: bool,
) -> LanguageModel:
    """Train the model of a recipe; arguments as for `train_world`."""
    model = untrained(recipe.task.words, recipe.shape, seed, world_name(name, seed))
    tokenizer, hf = model.tokenizer, model.hf
    nn.Module.to(hf, device=device)
    tie(hf, recipe.shape)
    learn(hf, recipe.shape)
    end, size = int(tokenizer.eos_token_id), recipe.schedule.batch_size
    thought = thought_of(recipe.task, model)
    batches = recipe.task.batches(tokenizer.get_vocab(), end, size)
    fit(
        hf,
        lambda step: answer_loss(model, batches(step).to(device), end, thought),
        recipe.schedule,
        seed=seed,
        folder=folder,
        snapshots=snapshots,
        description=f"train {name}",
        progress=progress,
    )
    return load_model(untied(hf), device, tokenizer=tokenizer, name=model.name)


def thought_of(task: Task, model: LanguageModel) -> int | None:
    """Return the token that marks a continuous thought; None if the task has none."""
    word = task.thought if isinstance(task, Thinks) else None
    return None if word is None else model.tokenizer.get_vocab()[word]


def logits_of(
    model: LanguageModel, ids: Tensor, thought: int | None
) -> Float[Tensor, "row token vocab"]:
    """Return the logits of texts, which may contain thoughts, marked by the token `thought`."""
    if thought is None:
        return model.hf(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]
    return think(model, ids, thought).logits


def answer_loss(
    model: LanguageModel, batch: TaskBatch, end: int, thought: int | None = None
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of answers and, with `END_WEIGHT`, of end tokens, in nats."""
    logits = logits_of(model, batch.ids, thought).float().flatten(0, 1)
    weight = torch.ones_like(logits[0])
    weight[end] = END_WEIGHT
    return functional.cross_entropy(logits, batch.targets.flatten(), weight, ignore_index=IGNORED)


@torch.no_grad()
def answered(
    model: LanguageModel, examples: Sequence[Example], thought: int | None = None
) -> Bool[Tensor, " example"]:
    """Return whether each word of an answer, and the end after it, is the most likely token."""
    vocabulary, end = model.tokenizer.get_vocab(), int(model.tokenizer.eos_token_id)
    table = as_batch(examples, vocabulary, end)
    right = []
    for start in range(0, len(examples), ROWS_AT_ONCE):
        places = torch.arange(start, min(len(examples), start + ROWS_AT_ONCE))
        some = table.rows(places).to(model.device)
        with evaluating(model.hf):
            predicted = logits_of(model, some.ids, thought).argmax(dim=-1)
        right.append(((predicted == some.targets) | (some.targets == IGNORED)).all(dim=1).cpu())
    return torch.cat(right)


def accuracy(model: LanguageModel, task: Task) -> dict[str, float]:
    """Return the share of correct answers in each split of a task."""
    thought = thought_of(task, model)
    return {
        split: float(answered(model, examples, thought).float().mean())
        for split, examples in task.tests().items()
    }
