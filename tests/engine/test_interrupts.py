"""The stop button at any line of set-up and tear-down leaves model and process as they were."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import pytest
import torch
from known import known_model, known_queries

import hopscope as hs
from hopscope import engine, models
from hopscope.engine.edits import Knockout, Patch
from hopscope.engine.read_out import ReadOut
from hopscope.engine.sweep import sweep
from hopscope.errors import ResultError
from hopscope.experiments.two_hop import back_patching
from hopscope.experiments.two_hop.back_patching import back_patch
from hopscope.models.interrupts import interrupt_safe
from hopscope.models.language_model import LanguageModel

WATCHED = tuple(str(Path(module.__file__).parent) for module in (engine, models))


def lines_of(run: Callable[[], object], stop_at: int | None = None) -> list[tuple[str, int]]:
    """Run something and list the engine's lines; the stop button is pressed at one of them."""
    seen: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(WATCHED) and not file.endswith("contextlib.py"):
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
