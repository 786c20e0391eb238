"""Provides train(): a small model from nothing, or LoRA on a pretrained one, under any mask.

A decoder that was trained causally gains little from a mask that it has never seen. Whether a
prefix that is seen both ways helps once the model is trained with it (Huang et al. 2025, Masking
in Multi-hop QA, section 3.3) is a question about training, here small enough for two cores.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from hopscope.documents.question_set import QuestionSet
from hopscope.errors import QueryError
from hopscope.masks.algebra import Mask
from hopscope.masks.named import mask_of
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.training.batches import answer_loss, batch_of, drawn_layouts
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
    folder = None if out is None else Path(out)
    if folder is not None:
        open_training(folder, _asked(start, questions, mask, settings, seed))
        if (folder / WEIGHTS).is_file():
            return load_model(folder, start.device, start.dtype, name=start.name)
    hf = copy.deepcopy(start.hf)
    adapted = None if model is None else with_updates(hf, settings, seed, start.device)
    if adapted is None:
        hf.requires_grad_(True)
    trained = LanguageModel(hf, start.tokenizer, start.name)

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
        return answer_loss(trained, batch_of(trained, layouts, mask))

    what = f"train {mask.name}"
    fit(hf, loss_of, settings, seed=seed, folder=folder, description=what, progress=progress)
    done = hf if adapted is None else adapted.merge_and_unload()
    done.eval()
    done.requires_grad_(False)
    trained = LanguageModel(done, start.tokenizer, start.name)
    if folder is not None:
        save_model(trained, folder)
    return trained


def _asked(
    start: LanguageModel, questions: QuestionSet, mask: Mask, settings: TrainingSettings, seed: int
) -> dict[str, Any]:
    """All that the trained weights depend on."""
    how = {key: value for key, value in asdict(settings).items() if key != "checkpoint_every"}
    return {
        "mask": mask.name,
        "settings": how,
        "seed": seed,
        "start": {"name": start.name, "sha256": start.fingerprint},
        "questions": {"name": questions.name, "sha256": questions.fingerprint},
    }
