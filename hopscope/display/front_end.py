"""Provides what the program that shows outputs is told: a notebook's front end, or a terminal."""

from __future__ import annotations

import io
import sys
import uuid
from typing import Any

from tqdm import tqdm

WIDGET = "application/vnd.jupyter.widget-view+json"
"""The MIME type that names a widget's model, for front ends that create the view themselves."""


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def in_notebook() -> bool:
    """Return whether the code runs in a Jupyter kernel, which may be able to display widgets."""
    return getattr(_shell(), "kernel", None) is not None


def creates_views() -> bool:
    """Return whether the front end connects to a model only where an output has the type `WIDGET`.

    VS Code (which names the notebook in a variable) and Colab do; they show another type of the
    same output where the model is gone. JupyterLab shows an error there instead, but connects to
    every model, and a model can then show its view in an output of any type.
    """
    names = getattr(_shell(), "user_ns", {})
    return "__vsc_ipynb_file__" in names or "google.colab" in sys.modules


class ProgressBar(tqdm):  # type: ignore[type-arg]
    """A progress bar of text, which a saved notebook shows as it was last.

    The bars that tqdm makes for notebooks are widgets: JupyterLab shows an error in their place
    once the kernel is gone, and nbconvert shows them as they were first.

    A bar may stand between two whole numbers, and says then how far it is with two decimals.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._output = uuid.uuid4().hex if in_notebook() else None
        self._is_shown = False
        if self._output is not None:
            kwargs |= {"file": io.StringIO(), "ascii": False}
        super().__init__(*args, **kwargs)

    @property
    def format_dict(self) -> Any:
        """What the text of the bar is made of; whole numbers are shown as such."""
        n = round(self.n, 2)
        return {**super().format_dict, "n": int(n) if n == int(n) else n}

    def reach(self, n: float) -> None:
        """Move the bar to a place."""
        self.update(n - self.n)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Show a text, that of the bar by default, in place of the one before."""
        if self._output is None:
            return super().display(msg, pos)
        from IPython.display import display

        data = {"text/plain": str(self) if msg is None else msg}
        display(  # type: ignore[no-untyped-call]
            data, raw=True, display_id=self._output, update=self._is_shown
        )
        self._is_shown = True
        return True
