"""Provides which scripts are written without spaces between words."""

from __future__ import annotations

import re

UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff00-\uff60\U00020000-\U0003ffff"
"""Thai, Lao, Tibetan, Burmese, Khmer, Chinese and Japanese with their full-width punctuation, as
the inside of a character class."""
HANGUL = "\u1100-\u11ff\uac00-\ud7af"
"""Written with spaces between words, but particles are attached to names."""
_NO_SPACE = re.compile(rf"[\s{UNSPACED}]\Z")


def needs_space(before: str) -> bool:
    """Return whether a space stands between a text and the word that continues it.

    There is none at the beginning, behind white space, and in scripts without spaces.

    Example:
        >>> needs_space("The capital of France is"), needs_space("法国的首都是")
        (True, False)
    """
    return bool(before) and not _NO_SPACE.search(before)
