"""Tests of progress within a part: shares of shares, and nothing that goes backwards."""

from __future__ import annotations

import pytest

from hopscope.display.progress import divided, share, showing, tell_done


def test_shares_lie_within_those_around_them() -> None:
    shown: list[float] = []
    with showing(shown.append):
        for _ in divided("ab"):
            with share(0.5, 1, in_chunk=True):
                tell_done(0)
                tell_done(1)
    assert shown == [0.25, 0.5, 0.75, 1.0]


def test_what_is_no_chunk_and_what_was_told_before_moves_nothing() -> None:
    shown: list[float] = []
    with showing(shown.append):
        tell_done(1)
        with share(0, 1, in_chunk=True):
            for done in (0.5, 0.2, 0.6):
                tell_done(done)
    assert shown == [0.5, 0.6]


def test_an_error_ends_a_share_and_the_telling() -> None:
    shown: list[float] = []
    with showing(shown.append):
        with pytest.raises(RuntimeError), share(0, 0.5, in_chunk=True):
            raise RuntimeError
        with share(0.5, 1, in_chunk=True):
            tell_done(1)
    with share(0, 1, in_chunk=True):
        tell_done(1)
    assert shown == [1.0]
    assert list(divided("ab")) == ["a", "b"]
