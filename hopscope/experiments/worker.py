"""Provides open_worker(): a process's share of a run, made from the run's recipe."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hopscope.distributed.job import Job, Outcome, Plan
from hopscope.errors import DamagedResultError, ResultError, UnknownModelError, WriteError
from hopscope.experiments.recipe import ReadRecipe
from hopscope.models.load import load_any
from hopscope.models.reference import ModelReference
from hopscope.models.token_model import TokenModel
from hopscope.results.claims import (
    claimed,
    clear_claim,
    clear_claims,
    clear_failure,
    failure_of,
    note_failure,
)
from hopscope.results.run_folder import has_part
from hopscope.results.runs import Pending, rehearsing

logger = logging.getLogger(__name__)
_ATTEMPTS = 10
"""How often parts are read that another worker may just be removing."""


@dataclass
class Worker:
    """Computes parts of a run.

    Attributes:
        job: what is computed.
        reference: what the model was loaded by.
        model: the model.
        pending: the parts; None if all are there.
    """

    job: Job
    reference: ModelReference
    model: TokenModel
    pending: Pending | None

    def plan(self) -> Plan:
        """The parts that are left, and what is done."""
        if self.pending is None:
            return Plan({}, 0)
        return Plan(dict(self.pending.sizes), self.pending.n_done)

    def compute(self, part: int, *, force: bool = False) -> Outcome:
        """Compute a part and write it, unless it is there, or another process computes it.

        Args:
            part: its number.
            force: whether to compute it although another process has claimed it.

        Raises:
            WriteError: if it cannot be written.
        """
        assert self.pending is not None
        pending, folder, begun = self.pending, Path(self.job.folder), time.perf_counter()
        if has_part(folder, part):
            if force:  # it was written by a worker that was lost before it could say so
                clear_claim(folder, part)
        else:
            before = failure_of(folder, part)
            if before is not None and before.is_final:
                return Outcome(part, "failed", before.error, is_final=True)
            with claimed(folder, part, force=force) as mine:
                if not mine:
                    return Outcome(part, "busy")
                try:
                    pending.write(part)
                except WriteError:
                    raise
                except Exception as error:  # told with the part; the others go on
                    logger.debug("part %d failed", part, exc_info=True)
                    told = f"{type(error).__name__}: {error}"
                    failure = note_failure(folder, part, told)
                    return Outcome(part, "failed", told, is_final=failure.is_final)
            clear_failure(folder, part)
        seconds = time.perf_counter() - begun
        return Outcome(part, "done", shown=self._settle(), seconds=seconds)

    def _settle(self) -> str | None:
        """What is shown of the first parts; None if they are enough."""
        assert self.pending is not None
        for attempt in range(_ATTEMPTS):
            try:
                return self.pending.settle()
            except (DamagedResultError, FileNotFoundError):
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.1)
        return ""


def _model(reference: ModelReference, job: Job) -> TokenModel:
    """The model of a run.

    Raises:
        ModelError: if it cannot be loaded by what is known of it, or has other weights.
    """
    place: dict[str, Any] = {"device_map": "auto"} if job.spread else {"device": job.device}
    try:
        model = load_any(reference.source, **place, **reference.options)
    except UnknownModelError as error:
        if reference.sha256 is None:
            raise
        raise UnknownModelError(
            f"{error}\nThe run is of a model that was given as an object, of this name. Save it "
            "with save_pretrained, and give hs.load_model the folder, which workers see, too"
        ) from None
    reference.check(model.fingerprint)
    return model


def open_worker(job: Job, before: Worker | None = None) -> Worker:
    """Load a model and prepare a run; its folder is made if it is not there.

    Args:
        job: what is computed.
        before: a worker whose model is used if it is the same.

    Raises:
        HopscopeError: what the analysis raises for what it cannot do.
    """
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    folder = Path(job.folder)
    recipe = ReadRecipe.of(folder) if job.recipe is None else ReadRecipe(job.recipe, job.files)
    reference = recipe.model
    if before is not None and before.reference == reference:
        model = before.model
    else:
        model = _model(reference, job)
    inputs, found = recipe.inputs(model), list[Pending]()

    def note(pending: Pending) -> None:
        pending.open()
        found.append(pending)

    with rehearsing(note):
        recipe.function(model, inputs, **recipe.arguments, out=folder, progress=False)
    if len(found) > 1:
        raise ResultError(f"{folder} consists of several runs: compute each of them")
    if found:
        clear_claims(folder)
    return Worker(job, reference, model, found[0] if found else None)
