"""Provides children that are forked from a test, which has imported everything."""

from __future__ import annotations

import os
from collections.abc import Callable


def forked(run: Callable[[], object]) -> int:
    """Start a child that runs something, and ends with 0 if it did."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run()
        code = 0
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """How a child ended: its code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
