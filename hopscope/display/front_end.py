"""Provides what there is to know about the program that shows the outputs of a kernel."""

from __future__ import annotations

import sys
from typing import Any

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
