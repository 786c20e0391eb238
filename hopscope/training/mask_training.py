"""Provides train(): trains a small model from scratch, or LoRA on a pretrained one, under a mask.

A causally trained decoder gains little from a mask that it has never seen. Whether a bidirectional
prefix helps a model that is trained with it (Huang et al. 2025, Masking in Multi-hop QA, section
3.3) can be studied here with models that are small enough for two CPU cores.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hopscope.documents.question_set import QuestionSet
from hopscope.documents.templates import template_of
from hopscope.errors import MAX_SEED, QueryError, of_type, path_of, whole_number
from hopscope.masks.algebra import Mask
from hopscope.masks.named import mask_of
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.training.batches import answer_loss, batch_of, drawn_layouts, end_token
from hopscope.training.fit import WEIGHTS, fit, open_training
from hopscope.training.settings import TrainingSettings
from hopscope.training.small_models import save_model, small_model, with_updates


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
    """Train a model to answer questions over documents under an attention mask.

    The loss is the cross-entropy of the answer tokens and the end of text, or, of a chat template,
    the end of the turn. Batches and dropout
    depend only on the seed and the step, so that an interrupted run that continues from `out` ends
    with the same weights on the same device.

    Args:
        questions: the training questions; each time a question is used, its documents are in an
            order that is newly drawn from those of the settings.
        mask: the attention mask; a name of `MASKS`, or a mask.
        model: a pretrained model, which is not changed: a copy is trained with LoRA, and the
            updates are merged into its weights at the end. None trains a small model from scratch.
        settings: settings of the training.
        seed: seed of weights, batches and orders.
        out: folder for checkpoints and the trained model, which `load_model` reads. An unfinished
            run in it is continued, and a finished one is loaded.
        progress: whether to show a progress bar.

    Returns:
        The trained model, in eval mode.

    Raises:
        QueryError: if there are no questions.
        ResultError: if `out` holds another run or other files, or a damaged checkpoint.
        ModelError: if a pretrained model is given and peft is not installed.
        UsageError: for an unknown mask or model, or a prompt that is too long.

    Example:
        >>> questions = load_questions("world-docs", distractors=2)        # doctest: +SKIP
        >>> trained = train(questions, "prefix_bidirectional", out="tiny")  # doctest: +SKIP
    """
    of_type("questions", questions, QuestionSet, "load one with hs.load_questions", QueryError)
    seed = whole_number("seed", seed, 0, MAX_SEED)
    settings = of_type("settings", settings or TrainingSettings(), TrainingSettings)
    mask = mask_of(mask)
    if not len(questions):
        raise QueryError(f"{questions.name} is an empty question set: there is nothing to train on")
    settings = settings.for_questions(len(questions))
    start = small_model(questions, settings, seed) if model is None else load_model(model)
    folder = None if out is None else path_of("out", out)
    if folder is not None:
        recipe = _recipe(start, questions, mask, settings, seed)
        open_training(folder, recipe, lambda record: _upgrade_record(record, recipe))
        if (folder / WEIGHTS).is_file():
            return load_model(folder, start.device, start.dtype, name=start.name)
    hf = copy.deepcopy(start.hf)
    adapted = None if model is None else with_updates(hf, settings, seed, start.device)
    if adapted is None:
        hf.requires_grad_(True)
    trained = LanguageModel(hf, start.tokenizer, start.name)
    end = end_token(trained, chat=template_of(settings.template).chat)

    def loss_of(step: int) -> Tensor:
        layouts = drawn_layouts(
            trained,
            questions,
            step=step,
            batch_size=settings.batch_size,
            orders=settings.orders,
            hop_share=settings.hops_at(step),
            n_names=settings.n_names,
            turns=settings.turns,
            template=settings.template,
            second_hops=settings.second_hops,
            seed=seed,
        )
        return answer_loss(trained, batch_of(trained, layouts, mask, end))

    bar = f"train {mask.name}"
    fit(hf, loss_of, settings, seed=seed, folder=folder, description=bar, progress=progress)
    merged = hf if adapted is None else adapted.merge_and_unload()
    merged.eval()
    merged.requires_grad_(False)
    trained = LanguageModel(merged, start.tokenizer, start.name)
    if folder is not None:
        save_model(trained, folder)
    return trained


def _recipe(
    start: LanguageModel, questions: QuestionSet, mask: Mask, settings: TrainingSettings, seed: int
) -> dict[str, Any]:
    """Return everything that the trained weights depend on, as JSON."""
    return {
        "mask": mask.name,
        "settings": {k: v for k, v in settings.as_record().items() if k != "checkpoint_every"},
        "seed": seed,
        "start": {"name": start.name, "sha256": start.fingerprint, "setup": start.setup},
        "questions": {"name": questions.name, "sha256": questions.fingerprint},
    }


def _upgrade_record(record: dict[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record; that of an earlier version says nothing of its model but its weights."""
    if record.get("start", {}).get("setup", {}).get("rule") == recipe["start"]["setup"]["rule"]:
        return record
    return {**record, "start": {**record["start"], "setup": recipe["start"]["setup"]}}
