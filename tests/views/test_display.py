"""What a notebook shows of a result: a widget where there is a kernel, and always a picture."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from known import made_back_patching, made_grading

from hopscope.display import notebook
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


def test_in_a_kernel_it_is_a_widget_with_the_picture_behind(
    result: BackPatching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    bundle = result._repr_mimebundle_(include=None, exclude=None)
    assert set(bundle) == {"text/plain", "image/png", notebook.WIDGET}
    assert bundle[notebook.WIDGET]["model_id"]


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
    assert set(data) >= {"text/plain", notebook.WIDGET, "image/png"}
    assert data["image/png"] == result._repr_mimebundle_()["image/png"]
