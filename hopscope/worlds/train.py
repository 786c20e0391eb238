"""Provides train_world(): the model of a world, from nothing."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from hopscope.errors import UsageError
from hopscope.files import write_json
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import device_of, load_model
from hopscope.training.fit import IGNORED, fit, open_training
from hopscope.training.small_models import save_model
from hopscope.worlds.catalogue import recipe_of
from hopscope.worlds.folders import ABOUT, world_name
from hopscope.worlds.recipe import TASKS, Recipe, facts_digest
from hopscope.worlds.small_model import learn, tie, untied, untrained
from hopscope.worlds.tasks.examples import Batch, Written, tabulated
from hopscope.worlds.tasks.task import Task, Thinks
from hopscope.worlds.thoughts import think
from hopscope.worlds.world import World, read_world

ROWS_AT_ONCE = 2048
END_WEIGHT = 0.1
"""Of the ends in the loss: with as much weight as the answers they cost 1 % of these."""


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
        name: one of `WORLDS`, or what a world of your own `recipe` is called.
        seed: of the facts, the weights and the batches.
        out: folder for checkpoints and the trained model, which `load_world` and `load_model`
            read. A run that is there goes on; a finished one is loaded.
        recipe: of a world of your own.
        snapshots: after how many steps to keep the weights, for `over_checkpoints`; needs `out`,
            and must be asked for from the start.
        device: where to train; CUDA by default if there is any.
        progress: show a progress bar.

    Raises:
        UsageError: for an unknown name or device, snapshots without a folder, or a task that is
            not in `TASKS`.
        ResultError: if `out` holds something else.

    Example:
        >>> world = train_world("two-hop-looped", out="worlds/looped")  # doctest: +SKIP
        >>> world.accuracy["in_distribution"]                           # doctest: +SKIP
    """
    recipe = (recipe_of(name) if recipe is None else recipe).seeded(seed)
    if snapshots and out is None:
        raise UsageError("snapshots are kept in a folder: give out=")
    if out is not None and TASKS.get(recipe.task.kind) is not type(recipe.task):
        raise UsageError(
            f"the world could not be read back: enter its task in "
            f"hopscope.worlds.catalogue.TASKS[{recipe.task.kind!r}] first"
        )
    folder = None if out is None else Path(out)
    chosen = device_of(device)
    asked = {"world": name, "seed": seed, "recipe": recipe.as_json()}
    if folder is not None:
        kept = {"snapshots": sorted(snapshots)} if snapshots else {}
        open_training(folder, {**asked, **kept}, _today)
        if (folder / ABOUT).is_file():
            return read_world(folder, chosen)
    start = time.perf_counter()
    model = _fitted(name, seed, recipe, folder, snapshots, chosen, progress)
    seconds = time.perf_counter() - start
    measured = {"accuracy": accuracy(model, recipe.task), "facts": facts_digest(recipe.task)}
    record = {**asked, "seconds": seconds, **measured}
    if folder is not None:
        save_model(model, folder)
        write_json(folder / ABOUT, record)
    return World(name, seed, model, recipe.task, record)


def _today(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the settings that have come since; they were as by default."""
    try:
        return {**record, "recipe": Recipe.from_json(record["recipe"]).as_json()}
    except (KeyError, TypeError, UsageError):
        return record  # of something else, which the comparison will tell


def _fitted(
    name: str,
    seed: int,
    recipe: Recipe,
    folder: Path | None,
    snapshots: Collection[int],
    device: torch.device,
    progress: bool,
) -> LanguageModel:
    """The trained model."""
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
    """The token that stands for a continuous thought, if the task has any."""
    word = task.thought if isinstance(task, Thinks) else None
    return None if word is None else model.tokenizer.get_vocab()[word]


def logits_of(
    model: LanguageModel, ids: Tensor, thought: int | None
) -> Float[Tensor, "row token vocab"]:
    """The logits of texts, with thoughts in them if there is a token for these."""
    if thought is None:
        return model.hf(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]
    return think(model, ids, thought).logits


def answer_loss(
    model: LanguageModel, batch: Batch, end: int, thought: int | None = None
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answers and, with little weight, the ends after them, in nats."""
    logits = logits_of(model, batch.ids, thought).float().flatten(0, 1)
    weight = torch.ones_like(logits[0])
    weight[end] = END_WEIGHT
    return functional.cross_entropy(logits, batch.targets.flatten(), weight, ignore_index=IGNORED)


@torch.no_grad()
def answered(
    model: LanguageModel, written: Sequence[Written], thought: int | None = None
) -> Bool[Tensor, " example"]:
    """Whether every word of each answer, and the end after it, is the likeliest."""
    vocabulary, end = model.tokenizer.get_vocab(), int(model.tokenizer.eos_token_id)
    table = tabulated(written, vocabulary, end)
    right = []
    for start in range(0, len(written), ROWS_AT_ONCE):
        places = torch.arange(start, min(len(written), start + ROWS_AT_ONCE))
        some = table.rows(places).to(model.device)
        said = logits_of(model, some.ids, thought).argmax(dim=-1)
        right.append(((said == some.targets) | (some.targets == IGNORED)).all(dim=1).cpu())
    return torch.cat(right)


def accuracy(model: LanguageModel, task: Task) -> dict[str, float]:
    """The share of right answers in each split of a task."""
    thought = thought_of(task, model)
    return {
        split: float(answered(model, written, thought).float().mean())
        for split, written in task.tests().items()
    }
