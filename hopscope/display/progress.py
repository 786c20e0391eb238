"""Provides progress within a part of a run: what computes says how far it is, and a bar moves.

A bar counts queries, and a query may take minutes. So the work on it is divided: a loop over
positions into shares of one size, a sweep into its chunks, a chunk into its passes and blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from hopscope.interrupts import interrupt_safe

T = TypeVar("T")


@dataclass
class _Work:
    """Work that is shown.

    Attributes:
        show: told how much of the whole is done, in [0, 1].
        low, high: the share of the whole that is being worked on.
        shown: how much was told; what is done once more, or in between, does not take it back.
        in_chunk: whether a chunk of a sweep is computed, whose blocks are told.
    """

    show: Callable[[float], None]
    low: float = 0.0
    high: float = 1.0
    shown: float = 0.0
    in_chunk: bool = False

    def tell(self, done: float) -> None:
        """Tell how much of the present share is done."""
        done = self.low + done * (self.high - self.low)
        if done > self.shown:
            self.shown = done
            self.show(done)


_work: ContextVar[_Work | None] = ContextVar("hopscope_progress", default=None)


@interrupt_safe
def showing(show: Callable[[float], None]) -> Iterator[None]:
    """Tell how much is done of what is computed while the context is open.

    Args:
        show: called with a share in [0, 1], which never falls.
    """
    token = _work.set(_Work(show))
    try:
        yield
    finally:
        _work.reset(token)


@interrupt_safe
def share(low: float, high: float, *, in_chunk: bool = False) -> Iterator[None]:
    """Say that what is computed while the context is open is a share of the work around it.

    Args:
        low, high: where the share begins and ends, in [0, 1].
        in_chunk: whether it is a chunk of a sweep, of which `tell_done` tells. Other passes, such
            as that over the unedited prompt, are no measure of how far the work is.
    """
    work = _work.get()
    if work is None:
        yield
        return
    before = work.low, work.high, work.in_chunk
    span = work.high - work.low
    work.low, work.high = work.low + low * span, work.low + high * span
    work.in_chunk = work.in_chunk or in_chunk
    try:
        yield
    finally:
        work.low, work.high, work.in_chunk = before


def divided(items: Sequence[T]) -> Iterator[T]:
    """Go through items, each of which is an equal share of the work.

    Example:
        >>> shown = []
        >>> with showing(shown.append):
        ...     for _ in divided("ab"):
        ...         with share(0, 1, in_chunk=True):
        ...             tell_done(0.5)
        >>> shown
        [0.25, 0.75]
    """
    for index, item in enumerate(items):
        with share(index / len(items), (index + 1) / len(items)):
            yield item


def tell_done(done: float) -> None:
    """Tell how much of the present share is done, in [0, 1], where it belongs to a chunk."""
    work = _work.get()
    if work is not None and work.in_chunk:
        work.tell(done)
