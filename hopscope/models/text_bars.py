"""Provides text_bars(): lets transformers show its progress as hopscope does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers.utils import logging

from hopscope.display.front_end import ProgressBar
from hopscope.interrupts import interrupt_safe


@interrupt_safe
def text_bars() -> Iterator[None]:
    """Replaces the bars of transformers by bars of text, which a saved notebook goes on showing."""

    def bar(factory: Any, args: Any, kwargs: Any) -> Any:
        return (ProgressBar if logging.is_progress_bar_enabled() else factory)(*args, **kwargs)

    previous = logging.set_tqdm_hook(bar)
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)
