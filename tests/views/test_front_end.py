"""Tests of what the front end of a notebook is given: progress bars that stay readable."""

from __future__ import annotations

import IPython.display
import pytest
from transformers.utils import logging

from hopscope.display import front_end
from hopscope.display.front_end import ProgressBar
from hopscope.models.text_bars import text_bars


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool, str]]:
    """What a notebook is shown: the output's name, whether it is there already, and the text."""
    calls: list[tuple[str, bool, str]] = []

    def display(data: dict[str, str], *, raw: bool, display_id: str, update: bool) -> None:
        assert raw
        (text,) = data.values()
        assert list(data) == ["text/plain"]
        calls.append((display_id, update, text))

    monkeypatch.setattr(front_end, "in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", display)
    return calls


def test_a_bar_in_a_notebook_is_one_output_that_ends_as_it_was_last(
    shown: list[tuple[str, bool, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar(total=4, desc="cells", mininterval=0) as bar:
        bar.update(1)
        bar.update(3)
    names, updates, texts = zip(*shown, strict=True)
    assert len(set(names)) == 1
    assert updates == (False, *(True for _ in updates[1:]))
    assert texts[0].startswith("cells:   0%")
    assert texts[-1].startswith("cells: 100%|█")
    assert any(each.startswith("cells:  25%") for each in texts)
    assert capfd.readouterr() == ("", "")


def test_a_bar_may_stand_between_two_numbers(capfd: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(total=3, desc="queries", mininterval=0) as bar:
        for place in (0.1 + 0.2, 1, 3):
            bar.reach(place)
    err = capfd.readouterr().err
    assert "0.3/3" in err
    assert "1/3" in err
    assert "3/3" in err
    assert "1.0/3" not in err


def test_each_bar_has_an_output_of_its_own(shown: list[tuple[str, bool, str]]) -> None:
    for _ in range(2):
        list(ProgressBar(range(2)))
    assert len({name for name, _, _ in shown}) == 2


def test_a_bar_that_is_not_wanted_shows_nothing(shown: list[tuple[str, bool, str]]) -> None:
    assert list(ProgressBar(range(3), disable=True)) == [0, 1, 2]
    assert shown == []


def test_elsewhere_a_bar_is_a_line_on_the_standard_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert list(ProgressBar(range(3), desc="cells")) == [0, 1, 2]
    out, err = capfd.readouterr()
    assert out == ""
    assert "cells: 100%" in err


def test_transformers_shows_its_progress_in_the_same_way(
    shown: list[tuple[str, bool, str]],
) -> None:
    with text_bars():
        assert list(logging.tqdm(range(2), desc="Loading weights")) == [0, 1]
        n = len(shown)
        assert shown[-1][2].startswith("Loading weights: 100%")
        logging.disable_progress_bar()
        try:
            assert list(logging.tqdm(range(2))) == [0, 1]
        finally:
            logging.enable_progress_bar()
    assert len(shown) == n
    assert type(logging.tqdm(range(2), disable=True)) is not ProgressBar
