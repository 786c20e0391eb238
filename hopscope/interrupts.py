"""Provides interrupt_safe() and uninterrupted(): what the stop button cannot cut in two.

A model is changed while the engine runs it: hooks, and an attention of the engine's own. An
interrupt (SIGINT) between the change and what undoes it would leave the change in the model; one
between two renames would leave a folder that was put aside.
"""

from __future__ import annotations

import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial, wraps
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T", covariant=True)
R = TypeVar("R")


class _Handler:
    """What SIGINT calls while a context is open: it waits for the end of a set-up or tear-down.

    Attributes:
        n_stops: how many interrupts there were while a context was open.
        busy: whether a context is being set up.
    """

    def __init__(self) -> None:
        self.n_stops, self.busy = 0, False
        self._depth, self._waiting = 0, False
        self._before: Callable[[int, FrameType | None], Any] = signal.default_int_handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.n_stops += 1
        if _in_between(frame):
            self._waiting = True
        else:
            self._before(number, frame)

    def open(self) -> bool:
        """Take over SIGINT; whether a context needs this, and `close` must be called.

        It does not in a thread where no interrupt arrives, nor in another context's set-up.
        """
        if self.busy or threading.current_thread() is not threading.main_thread():
            return False
        if self._depth == 0:
            before = signal.getsignal(signal.SIGINT)
            if not callable(before):
                return False
            self._before, self._waiting = before, False
            signal.signal(signal.SIGINT, self)
        self._depth += 1
        return True

    def close(self) -> None:
        """Give SIGINT back when the outermost context ends."""
        self._depth -= 1
        current: Any = signal.getsignal(signal.SIGINT)
        if self._depth == 0 and current is self:
            signal.signal(signal.SIGINT, self._before)

    def deliver(self, frame: FrameType | None) -> None:
        """Interrupt now if an interrupt has waited, and `frame` is in no set-up or tear-down.

        Raises:
            KeyboardInterrupt: or what the handler of before raises.
        """
        if self._waiting and not _in_between(frame):
            self._waiting = False
            self._before(signal.SIGINT, frame)


_HANDLER = _Handler()


def n_stops() -> int:
    """How many interrupts there were in this process while a context was open."""
    return _HANDLER.n_stops


class _Safe(AbstractContextManager[T]):
    """A context that is undone as a whole, at the latest when nothing refers to it any more."""

    def __init__(self, inner: AbstractContextManager[T, bool | None]) -> None:
        self.inner = inner
        self.close: Callable[[], Any] | None = None

    def __enter__(self) -> T:
        if not _HANDLER.open():
            return self.inner.__enter__()
        self.close = weakref.finalize(self, _HANDLER.close)
        _HANDLER.busy = True
        try:
            entered = self.inner.__enter__()
        except BaseException:
            self.close()
            raise
        finally:
            _HANDLER.busy = False
        try:
            _HANDLER.deliver(sys._getframe(1))
        except BaseException as stop:
            self.__exit__(type(stop), stop, stop.__traceback__)
            raise
        return entered

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            return self.inner.__exit__(kind, error, traceback)
        finally:
            if self.close is not None:
                self.close()
                _HANDLER.deliver(sys._getframe(1))


_CODES = frozenset({_Safe.__enter__.__code__, _Safe.__exit__.__code__})


def _in_between(frame: FrameType | None) -> bool:
    """Whether a frame lies in a set-up or tear-down."""
    while frame is not None:
        if frame.f_code in _CODES:
            return True
        frame = frame.f_back
    return False


def interrupt_safe(
    generator: Callable[P, Iterator[T]],
) -> Callable[P, AbstractContextManager[T]]:
    """Make a context manager of a generator, as `contextlib.contextmanager` does.

    An interrupt in the main thread before its `yield` or after it waits until that part is done,
    and then arrives: the context is either open, with what undoes it, or was never opened. While
    the body runs, an interrupt comes at once.

    Example:
        >>> @interrupt_safe
        ... def switched(switch):
        ...     before, switch.on = switch.on, True
        ...     try:
        ...         yield
        ...     finally:
        ...         switch.on = before
    """
    make = contextmanager(generator)

    @wraps(generator)
    def made(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Safe(make(*args, **kwargs))

    return made


@interrupt_safe
def _result_of(call: Callable[[], R]) -> Iterator[R]:
    """Call a function while the context is set up."""
    yield call()


def uninterrupted(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function that runs to its end: an interrupt in the main thread arrives after it."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with _result_of(partial(function, *args, **kwargs)) as result:
            return result

    return called
