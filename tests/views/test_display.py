"""What a notebook shows of a result: a widget where there is a kernel, and always a picture."""

from __future__ import annotations

import base64
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from known import made_back_patching, made_grading

from hopscope.display import front_end, notebook, widgets
from hopscope.experiments.two_hop.back_patching import BackPatching
from hopscope.results.result import Result


@pytest.fixture(scope="module")
def result() -> BackPatching:
    return made_back_patching({("a", "t1", "none"): {(1, 0)}}, [(1, 0), (2, 1)])


def is_png(text: str) -> bool:
    return base64.b64decode(text).startswith(b"\x89PNG")


def test_outside_a_kernel_a_result_is_its_picture(result: BackPatching) -> None:
    assert not notebook.in_notebook()
    bundle = result._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png"}
    assert is_png(bundle["image/png"])


def test_in_a_kernel_it_is_a_place_for_its_view_that_holds_the_picture(
    result: BackPatching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JupyterLab shows an error wherever an output has the MIME type of a widget that is gone."""
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    bundle = result._repr_mimebundle_(include=None, exclude=None)
    assert set(bundle) == {"text/plain", "text/html", "image/png"}
    assert is_png(bundle["image/png"])
    html = re.fullmatch(
        r'<div data-hopscope-view="[0-9a-f]{32}">'
        r'<img alt="(.+)" src="data:image/png;base64,(.+)"></div>',
        bundle["text/html"],
    )
    assert html is not None
    assert html.groups() == ("Back-patching: made-up on “by-hand”", bundle["image/png"])
    assert bundle["text/plain"] == repr(result)


@pytest.mark.parametrize("sign", ["VS Code", "Colab"])
def test_a_front_end_that_creates_views_is_given_the_model_too(
    result: BackPatching, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    if sign == "VS Code":
        shell = SimpleNamespace(user_ns={"__vsc_ipynb_file__": "some.ipynb"})
        monkeypatch.setattr(front_end, "_shell", lambda: shell)
    else:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    bundle = result._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "image/png", front_end.WIDGET}
    assert bundle[front_end.WIDGET]["model_id"]


def test_a_result_that_is_no_heatmap_is_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    bundle = made_grading({"a": {"first_hop"}, "b": set()})._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png"}


class Choosy(Result):
    """A result whose picture needs a choice."""

    kind = "choosy"

    def plot(self, value: str) -> Any:
        raise AssertionError(value)


def test_a_result_whose_picture_needs_a_choice_is_its_table(result: BackPatching) -> None:
    made = Choosy(result.frame, result.details, result.run)
    bundle = made._repr_mimebundle_()
    Result.kinds.pop("choosy")
    assert set(bundle) == {"text/plain", "text/html"}
    assert "<table" in bundle["text/html"]


def test_the_view_of_a_result_has_its_picture(result: BackPatching) -> None:
    data, _ = result.view()._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/html", "image/png"}
    assert data["image/png"] == result._repr_mimebundle_()["image/png"]


class Pictured(widgets.View):
    """A view whose picture changes, or that has none yet."""

    now: str | None = None

    def picture(self) -> str | None:
        return self.now


def test_a_later_picture_replaces_the_one_in_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, dict[str, Any]]] = []
    for name in ("display", "update_display"):
        monkeypatch.setattr(
            widgets, name, lambda data, display_id, **_: shown.append((display_id, data))
        )
    view = Pictured()
    view._ipython_display_()
    view.renew_outputs()  # outside a kernel there is no output to renew
    monkeypatch.setattr(widgets, "in_notebook", lambda: True)
    view.now = "AAAA"
    view.renew_outputs()
    (first, before), (second, after) = shown
    assert first == second == view.place != Pictured().place
    assert "image/png" not in before
    assert "Pictured() is shown where its cell is run" in before["text/html"]
    assert after["image/png"] == "AAAA"
    assert 'src="data:image/png;base64,AAAA"' in after["text/html"]
