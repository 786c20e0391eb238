"""Provides the scripts and style sheets of the views: plain files, no build step."""

from __future__ import annotations

from importlib import resources


def static(name: str) -> str:
    """The text of a script or style sheet."""
    return (resources.files("hopscope.display") / "static" / name).read_text("utf-8")


def module(*scripts: str, render: str) -> str:
    """Scripts as one module, whose `render` is what anywidget calls."""
    return "".join(map(static, scripts)) + f"export default {{ render: {render} }};\n"
