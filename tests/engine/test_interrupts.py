"""The stop button at any line of set-up and tear-down leaves model and process as they were."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import loaded
from known import RIGHT, known_model, known_queries, made_grading

import hopscope as hs
from hopscope import engine, interrupts, models
from hopscope.display import progress
from hopscope.engine import attention
from hopscope.engine.cache import Prefix, StreamCache
from hopscope.engine.edits import Knockout, Patch
from hopscope.engine.read_out import ReadOut
from hopscope.engine.sweep import sweep
from hopscope.errors import ResultError
from hopscope.experiments.two_hop import attention_knockout, back_patching
from hopscope.experiments.two_hop.back_patching import back_patch
from hopscope.interrupts import interrupt_safe
from hopscope.models.language_model import LanguageModel
from hopscope.results import runs

LATER = {form: RIGHT[form] for form in list(RIGHT)[:2]}
WATCHED = tuple(str(Path(module.__file__).parent) for module in (engine, models))


def of_engine(file: str) -> bool:
    return file.startswith(WATCHED) or file.endswith("contextlib.py")


def of_run(file: str) -> bool:
    return file.endswith(("results/runs.py", "experiments/analysis.py", "hopscope/interrupts.py"))


def lines_of(
    run: Callable[[], object],
    stop_at: int | None = None,
    watched: Callable[[str], bool] = of_engine,
) -> list[tuple[str, int]]:
    """Run something and list the lines of some files; at one of them the stop button is pressed."""
    seen: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not watched(file):
            return None
        if event == "line":
            seen.append((file, frame.f_lineno))
            if len(seen) - 1 == stop_at:
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return seen


def hooks(model: LanguageModel) -> int:
    return sum(
        len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.hf.modules()
    )


def test_the_model_is_left_as_it_was_wherever_the_engine_is_stopped(llama: LanguageModel) -> None:
    ids = llama.encode("The capital of the country of Nauru is").ids
    vector = torch.randn(llama.d_model, generator=torch.Generator().manual_seed(0))
    head = torch.ones(llama.head_dim)
    cells = [
        [Patch(0, 2, vector), Knockout([1], [-1], [1])],
        [Patch(1, 3, vector, "mlp_out"), Patch(2, 3, head, "z", 0)],
    ]

    def run() -> object:
        with hs.edit(llama, cells[1], len(ids)):
            plain = llama.hf(torch.tensor([ids])).logits
        return sweep(llama, ids, cells, ReadOut((5,), max_new_tokens=1)), plain

    with torch.no_grad():
        before = llama.hf(torch.tensor([ids])).logits
        attention, handler = llama.config._attn_implementation, signal.getsignal(signal.SIGINT)
        run()  # what is looked up once is there
        seen = lines_of(run)
        first = {line: index for index, line in reversed([*enumerate(seen)])}
        final = {line: index for index, line in enumerate(seen)}
        assert len(first) > 150
        for index in sorted({*first.values(), *final.values()})[::2]:  # all of them hold, too
            with pytest.raises(KeyboardInterrupt):
                lines_of(run, stop_at=index)
            assert hooks(llama) == 0, seen[index]
            assert llama.config._attn_implementation == attention, seen[index]
            assert signal.getsignal(signal.SIGINT) is handler, seen[index]
        assert torch.equal(llama.hf(torch.tensor([ids])).logits, before)


OPENING = (
    *("contextlib.py", "hopscope/interrupts.py", "torch/autograd/grad_mode.py"),
    *("hopscope/display/progress.py", "hopscope/models/evaluation.py", "hopscope/training/fit.py"),
    *("hopscope/results/runs.py", "hopscope/experiments/worlds/superposition.py"),
    *("hopscope/engine/hooks.py", "hopscope/engine/attention.py", "hopscope/engine/editing.py"),
    *("hopscope/engine/gradients.py", "hopscope/engine/placed_edits.py", "encoder_decoder.py"),
)
"""Files of what opens and closes contexts."""
EVERY = int(os.environ.get("HOPSCOPE_EVERY_LINE", "40"))
"""Of the lines of set-up and tear-down every so-manieth is tried; all of them, if it is 1."""
Passed = tuple[str, int, bool]


def at_edges(run: Callable[[], object], stop_at: int | None = None) -> list[Passed]:
    """The lines of set-up and tear-down that a run passes, and those right before and after.

    Each with whether it is inside; others are None. The stop button is pressed at one of them.
    """
    passed: list[Passed | None] = []
    depth, inside = 0, False

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal depth, inside
        if event == "call" and not frame.f_code.co_filename.endswith(OPENING):
            return None
        if frame.f_code in interrupts._CODES and event in ("call", "return"):
            depth += 1 if event == "call" else -1
        if event == "line":
            before, inside = inside, depth > 0
            place = (frame.f_code.co_filename, frame.f_lineno, inside and before)
            passed.append(place if inside or before else None)
            if len(passed) - 1 == stop_at:
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return passed  # type: ignore[return-value]


@cache
def documents() -> hs.QuestionSet:
    return hs.load_questions("world-docs", distractors=1)[:1]


@cache
def thinking_world() -> hs.World:
    return hs.load_world("reachability")


def trained() -> object:
    settings = hs.TrainingSettings(steps=2, batch_size=2, n_layers=1, d_model=16, n_heads=2)
    return hs.train(documents(), settings=settings, progress=False)


@cache
def calls() -> dict[str, tuple[Any, Callable[[], object]]]:
    """Of each kind of set-up one call that is short, with the model that it is of."""
    llama, t5 = loaded("tiny-random-llama"), hs.load_any("tiny-random-t5", device="cpu")
    some = hs.load_queries("world", few_shot=0)[:3]
    queries = some[:1]
    quiet: dict[str, Any] = {"progress": False}
    return {
        "back_patch": (llama, lambda: hs.back_patch(llama, queries, cells=[(2, 1)], **quiet)),
        "knockout": (llama, lambda: hs.knockout(llama, queries, "t2->e1", layers=[1], **quiet)),
        "attribution": (
            llama,
            lambda: hs.attribution_patch(llama, some, "t2", exact=1, **quiet),
        ),
        "permute": (
            llama,
            lambda: hs.permute_documents(
                llama, documents(), ["forward"], max_new_tokens=1, **quiet
            ),
        ),
        "attention": (
            llama,
            lambda: hs.attention_to_documents(llama, documents(), max_new_tokens=1, **quiet),
        ),
        "of T5": (
            t5,
            lambda: hs.attention_to_documents(t5, documents(), max_new_tokens=1, **quiet),
        ),
        "superposition": (
            thinking_world().model,
            lambda: hs.superposition([thinking_world()], limit=2, **quiet),
        ),
        "training": (llama, trained),
    }


def state_of(model: Any) -> tuple[Any, ...]:
    """Everything that must be as before."""
    modules = list(model.hf.modules())
    return (
        sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules),
        [each.training for each in modules],
        [each.requires_grad for each in model.hf.parameters()],
        model.config._attn_implementation,
        model.config.output_attentions,
        signal.getsignal(signal.SIGINT),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_num_threads(),
        attention._active.get(),
        progress._work.get(),
        torch.get_rng_state().tolist(),
    )


def logits_of(model: Any) -> torch.Tensor:
    ids = torch.tensor([[3, 5, 7, 2]])
    given = {"input_ids": ids}
    if model.hf.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids
    with torch.no_grad():
        logits: torch.Tensor = model.hf(**given).logits
    return logits


CALLS = (
    *("back_patch", "knockout", "attribution", "permute", "attention", "of T5"),
    *("superposition", "training"),
)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_left_wherever_a_set_up_or_tear_down_is_stopped(name: str) -> None:
    model, run = calls()[name]
    run()  # what is looked up once is there
    before, logits = state_of(model), logits_of(model)
    passed = at_edges(run)
    first = {place: index for index, place in reversed([*enumerate(passed)]) if place}
    final = {place: index for index, place in enumerate(passed) if place}
    assert len(first) > 20
    for index in sorted({*first.values(), *final.values()})[::EVERY]:
        with pytest.raises(KeyboardInterrupt):
            at_edges(run, stop_at=index)
        assert state_of(model) == before, passed[index]
    assert torch.equal(logits_of(model), logits)


def test_a_model_that_is_still_marked_from_before_is_cleaned_at_the_start() -> None:
    model, queries = known_model(), known_queries()[:1]
    attention_before, logits = model.config._attn_implementation, logits_of(model)
    whole = hs.knockout(model, queries, layers=[1], progress=False)
    with attention.attending(model, StreamCache(Prefix((), ()), model.n_layers)):
        model.config._attn_implementation = attention.ATTENTION_NAME  # what was there before
    assert model.config._attn_implementation == attention_before
    model.config._attn_implementation = attention.ATTENTION_NAME
    again = hs.knockout(model, queries, layers=[1], progress=False)
    assert again.frame.equals(whole.frame)
    assert again.run["model"] == whole.run["model"]
    assert model.config._attn_implementation == attention_before
    assert torch.equal(logits_of(model), logits)


def test_a_folder_that_is_replaced_is_whole_wherever_it_is_stopped(tmp_path: Path) -> None:
    """Also in this process, which goes on: nothing is put aside, and no file is left over."""
    old, new, place = made_grading(RIGHT), made_grading(LATER), tmp_path / "run"
    old.save(place)

    def of_files(file: str) -> bool:
        return file.endswith(("hopscope/files.py", "hopscope/interrupts.py", "contextlib.py"))

    seen = lines_of(lambda: new.save(place), watched=of_files)
    first = {line: index for index, line in reversed([*enumerate(seen)])}
    for index in sorted(first.values()):
        old.save(place)
        with pytest.raises(KeyboardInterrupt):
            lines_of(lambda: new.save(place), index, of_files)
        assert [path.name for path in tmp_path.iterdir()] == ["run"], seen[index]
        here = hs.load_result(place).frame
        assert any(here.equals(each.frame) for each in (old, new))


def test_what_was_finished_is_in_hand_wherever_a_run_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At every line of the run itself there is what was finished in it, and of no run before."""
    model, queries = known_model(), known_queries()[:3]
    monkeypatch.setattr(attention_knockout, "PER_PART", 1)

    def run() -> hs.Knockouts:
        how: dict[str, Any] = {"layers": [1], "edges": "t2->e1", "controls": ()}
        return hs.knockout(model, queries, progress=False, **how)

    whole, seen = run(), lines_of(run, watched=of_run)
    first = {line: index for index, line in reversed([*enumerate(seen)])}
    final = {line: index for index, line in enumerate(seen)}
    found = Counter[int]()
    begun = next(index for index, (file, _) in enumerate(seen) if file.endswith("runs.py"))
    chosen = sorted(index for index in {*first.values(), *final.values()} if index >= begun)
    between = range(begun, len(seen), max(1, (len(seen) - begun) // 12))  # also within each part
    for index in sorted({*chosen[:: max(1, EVERY // 8)], *between}):
        runs._interrupted[:] = [({"kind": "grading"}, {})]  # what a run before was stopped at
        with pytest.raises(KeyboardInterrupt):
            lines_of(run, index, of_run)
        try:
            done = hs.partial()
        except ResultError:
            found[0] += 1
            continue
        assert isinstance(done, hs.Knockouts), seen[index]
        assert done.frame.equals(whole.frame.head(len(done.frame))), seen[index]
        found[len(done.frame)] += 1
    assert {0, 1, 2, 3} <= set(found)


def test_an_interrupt_waits_for_the_end_of_a_set_up_and_of_a_tear_down() -> None:
    steps = []

    @interrupt_safe
    def inner() -> Iterator[None]:
        steps.append("set up")
        signal.raise_signal(signal.SIGINT)
        steps.append("still setting up")
        yield

    @interrupt_safe
    def outer() -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(steps.append, "all undone")
            stack.enter_context(inner())
            yield

    with pytest.raises(KeyboardInterrupt), outer():
        steps.append("never")
    assert steps == ["set up", "still setting up", "all undone"]


def test_while_the_body_runs_an_interrupt_comes_at_once() -> None:
    steps = []

    @interrupt_safe
    def context() -> Iterator[None]:
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGINT)
            steps.append("undone")

    def body() -> None:
        with context():
            signal.raise_signal(signal.SIGINT)
            steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        body()
    assert steps == ["undone"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_a_library_turns_into_an_error_is_one_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, queries = known_model(), known_queries()[:4]
    whole = back_patch(model, queries, progress=False)
    tables, calls = back_patching._BackPatcher.tables, []

    def swallowing(self: Any, part: Any) -> Any:
        calls.append(part)
        if len(calls) == 2:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise TypeError("a library's own") from None
        return tables(self, part)

    monkeypatch.setattr(back_patching._BackPatcher, "tables", swallowing)
    with pytest.raises(KeyboardInterrupt):
        back_patch(model, queries, progress=False)
    done = hs.partial()
    assert 0 < len(done.frame) < len(whole.frame)
    calls[:] = [None] * 9
    back_patch(model, queries, progress=False)
    with pytest.raises(ResultError, match="no run was interrupted"):
        hs.partial()
    pd.testing.assert_frame_equal(done.frame, whole.frame.head(len(done.frame)))


def test_an_interrupt_during_a_set_up_that_fails_does_not_come_later() -> None:
    @interrupt_safe
    def failing() -> Iterator[None]:
        signal.raise_signal(signal.SIGINT)
        raise ValueError("no")
        yield

    @interrupt_safe
    def fine() -> Iterator[None]:
        yield

    with pytest.raises(ValueError, match="no"), failing():
        pass
    with fine():
        pass
