"""Provides the scripts and style sheets of the views: plain files without a build step."""

from __future__ import annotations

from importlib import resources


def static(name: str) -> str:
    """Return the text of a script or style sheet."""
    return (resources.files("hopscope.display") / "static" / name).read_text("utf-8")


def module(*scripts: str, render: str) -> str:
    """Return a view as a JavaScript module for anywidget: scripts, one with a function `render`."""
    parts = map(static, ("dom.js", "outputs.js", *scripts))
    return "".join(parts) + f"export default inOutputs({render});\n"
