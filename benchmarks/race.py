"""Provides the race: all contenders and hopscope in turn, in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from benchmarks.agreement import Agreement, compare_first_tokens, compare_generations
from benchmarks.floor import UnitTimes, Work, decoding_work, prompt_work, unit_times
from benchmarks.others import CONTENDERS
from benchmarks.subjects import Pair, Subject, Task, load_average, sample_of, timed
from hopscope.engine.cache import Prefix
from hopscope.engine.clean_run import clean_run
from hopscope.engine.edits import Patch
from hopscope.engine.read_out import CellOutputs, ReadOut
from hopscope.engine.sweep import sweep

FIRST_TOKEN, GENERATION, BATCH = "hopscope_first_token", "hopscope_generation", "hopscope_paper"
AGAINST = {
    "plain_first_token": FIRST_TOKEN,
    "plain_generation": GENERATION,
    "paper_generation": BATCH,
    "transformer_lens_first_token": FIRST_TOKEN,
    "nnsight_first_token": FIRST_TOKEN,
}


def run_hopscope(task: Task, subject: Subject, generate: bool) -> CellOutputs:
    """All cells of one prompt with hopscope, the clean run included."""
    clean = clean_run(task.model, subject.ids, Prefix())
    states = clean.state(subject.position)
    cells = [[Patch(b, subject.position, states[a])] for a, b in task.pairs]
    what = (
        ReadOut(max_new_tokens=task.max_new_tokens, stop=None)
        if generate
        else ReadOut(answer_tokens=task.answer_tokens)
    )
    return sweep(task.model, subject.ids, cells, what, clean=clean)


@dataclass
class Record:
    """What one contender did.

    Attributes:
        cells: the cells that it has to run.
        run: runs one cell; None if it could not be built.
        told: what it read, cell by cell.
        seconds: for each round, the time of one cell.
        peak: the most CUDA memory allocated, in bytes.
        failure: why it did not run.
    """

    cells: list[Pair]
    run: Callable[[Pair], Any] | None = None
    told: dict[Pair, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    failure: str | None = None


@dataclass
class Ours:
    """What hopscope did: its seconds for all cells of a prompt, by round, and its outputs."""

    first_token: CellOutputs | None = None
    generated: dict[int, CellOutputs] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: dict[str, int | None] = field(default_factory=dict)


@dataclass
class Race:
    """All contenders and hopscope in turn.

    Attributes:
        task: what all do.
        sample: how many cells the others run; all if None.
        rounds: how often they take turns.
        say: is told what happens.
    """

    task: Task
    sample: int | None
    rounds: int
    say: Callable[[str], None] = lambda _: None
    records: dict[str, Record] = field(default_factory=dict)
    ours: Ours = field(default_factory=Ours)
    units: list[UnitTimes] = field(default_factory=list)
    load_before: float | None = None

    def run(self) -> None:
        """Set up, warm up, and take turns."""
        self.load_before = load_average()
        self._warm_up()
        parts = {
            name: sample_of(record.cells, self.sample, self.rounds)
            for name, record in self.records.items()
        }
        for turn in range(self.rounds):
            self.say(f"round {turn + 1} of {self.rounds}")
            for name, record in self.records.items():
                self._guarded(record, partial(self._turn, record, parts[name], turn))
                self._our_turn(AGAINST[name], turn)
            self.units.append(self._unit_times())

    def _warm_up(self) -> None:
        for name, build in CONTENDERS.items():
            cells = self.task.grid if AGAINST[name] == BATCH else self.task.pairs
            record = self.records[name] = Record(cells)
            self.say(f"setting up {name}")
            self._guarded(record, partial(self._build, record, build))
        run_hopscope(self.task, self.task.subject, generate=False)
        few = replace(self.task, layers=self.task.layers[:3])
        run_hopscope(few, few.subject, generate=True)

    def _build(self, record: Record, build: Callable[[Task], Callable[[Pair], Any]]) -> None:
        record.run = build(self.task)
        record.run(record.cells[0])

    def _guarded(self, record: Record, step: Callable[[], None]) -> None:
        if record.failure is None:
            try:
                step()
            except Exception as error:  # whatever a library raises, the others go on
                record.failure = f"{type(error).__name__}: {error}"

    def _turn(self, record: Record, parts: list[list[Pair]], turn: int) -> None:
        assert record.run is not None
        if turn >= len(parts):
            return
        run, part = record.run, parts[turn]
        told, seconds, peak = self._measured(lambda: [run(pair) for pair in part])
        record.told.update(zip(part, told, strict=True))
        record.seconds.append(seconds / len(part))
        record.peak = peak if record.peak is None else max(record.peak, peak or 0)

    def _our_turn(self, name: str, turn: int) -> None:
        subjects = self.task.subjects
        chosen = range(turn, len(subjects), self.rounds) if name == BATCH else range(1)
        if not chosen:
            return
        outputs, seconds, peak = self._measured(
            lambda: [run_hopscope(self.task, subjects[i], name != FIRST_TOKEN) for i in chosen]
        )
        self.ours.seconds.setdefault(name, []).append(seconds / len(chosen))
        self.ours.peak[name] = peak
        if name == FIRST_TOKEN:
            self.ours.first_token = outputs[0]
        else:
            self.ours.generated.update(zip(chosen, outputs, strict=True))

    def _measured(self, run: Callable[[], list[Any]]) -> tuple[list[Any], float, int | None]:
        device = self.task.model.device
        is_cuda = device.type == "cuda"
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        result, seconds = timed(run, device)
        return result, seconds, torch.cuda.max_memory_allocated(device) if is_cuda else None

    def _unit_times(self) -> UnitTimes:
        n_keys = len(self.task.subject.ids)
        return unit_times(self.task.model, len(self.task.pairs), n_keys)

    # --- what came out ---

    def agreements(self) -> dict[str, Agreement]:
        """How each contender that ran compares with hopscope."""
        return {
            name: self._agreement(name, record.told)
            for name, record in self.records.items()
            if record.failure is None
        }

    def _agreement(self, name: str, told: dict[Pair, Any]) -> Agreement:
        assert self.ours.first_token is not None
        if AGAINST[name] == FIRST_TOKEN:
            return compare_first_tokens(self.task, self.ours.first_token, told)
        generated = [self.ours.generated[i] for i in sorted(self.ours.generated)]
        if AGAINST[name] == GENERATION:
            told, generated = {pair: [tokens] for pair, tokens in told.items()}, generated[:1]
        return compare_generations(self.task, generated, told)

    def seconds_by_round(self) -> dict[str, list[float] | None]:
        """For each round, the time of all cells; of the paper's batching, per prompt."""
        seconds: dict[str, list[float] | None] = dict(self.ours.seconds)
        for name, record in self.records.items():
            prompts = len(self.task.subjects) if AGAINST[name] == BATCH else 1
            scaled = [one * len(record.cells) / prompts for one in record.seconds]
            seconds[name] = None if record.failure else scaled
        return seconds

    def work(self) -> tuple[Work, Work]:
        """What the first token, and what the generation cannot avoid."""
        targets, n_layers = [pair.target for pair in self.task.pairs], self.task.model.n_layers
        ids, position = self.task.subject
        prompt = prompt_work(targets, n_layers, len(ids), position)
        tokens = self.ours.generated[0].tokens
        return prompt, prompt + decoding_work(targets, tokens, n_layers, self.task.max_new_tokens)
