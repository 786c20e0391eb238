"""Decides whether a generated text names an entity: normalising, matching, early stopping."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, NamedTuple

from hopscope.errors import UsageError

Match = Literal["word", "substring"]
MATCHES: tuple[Match, ...] = ("word", "substring")

_TYPOGRAPHY = {
    **dict.fromkeys(map(ord, "‘’‚‛ʼ′´`＇"), "'"),
    **dict.fromkeys(map(ord, "“”„‟«»″＂"), '"'),
    **dict.fromkeys(map(ord, "‐‑‒–—―−﹘﹣－"), "-"),
    **dict.fromkeys(map(ord, "\u00ad\u200b\ufeff"), None),
    **dict.fromkeys(range(0xFE00, 0xFE10), None),  # variation selectors
}
# Letters with a stroke or a ligature have no canonical decomposition; people type them plain.
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe"}
    | {"Ø": "O", "Ł": "L", "Đ": "D", "Ħ": "H", "Æ": "AE", "Œ": "OE"}
)
# Scripts that write words without spaces, or (Hangul) glue particles to a name.
_UNSPACED = "\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"
# Words of running English that are also codes or names in capitals: CAN (Canada), WHO, AND
# (Andorra), ARE (the Emirates), PER (Peru). Two-letter names need no list: all are that risky.
_RUNNING_TEXT = (
    "a all an and any are as at be but by can did do for had has he her him his how i if in is it "
    "its lot man may me men my no nor not of on one or our out per she so that the them they this "
    "to too two up us was we what when where who why you your then than there here with"
)
_ENGLISH = frozenset(_RUNNING_TEXT.split())


@lru_cache(maxsize=4096)
def _drops_accents(letter: str) -> bool:
    """Whether marks on this letter are accents (Latin, Greek, Cyrillic) and not part of it."""
    return unicodedata.name(letter, "").startswith(("LATIN", "GREEK", "CYRILLIC"))


def _strip_accents(text: str) -> str:
    """Drop combining marks from Latin, Greek and Cyrillic letters only."""
    kept: list[str] = []
    base = ""
    for character in unicodedata.normalize("NFD", text):
        if unicodedata.category(character) != "Mn":
            base = character
        elif base and _drops_accents(base):
            continue
        kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept))


def _fold(text: str, *, case: bool) -> str:
    """Unify compatibility forms, typography, accents and whitespace; and case where asked."""
    if text.isascii():
        text = text.replace("`", "'")
        return re.sub(r"\s+", " ", text.casefold() if case else text)
    text = unicodedata.normalize("NFKC", text.translate(_TYPOGRAPHY))
    text = _strip_accents(text.casefold() if case else text).translate(_PLAIN)
    return re.sub(r"\s+", " ", text)


def normalise(text: str) -> str:
    """Fold away what does not tell two names apart: case, accents, typography, spacing.

    Accents are dropped from Latin, Greek and Cyrillic letters only: in other scripts a mark is
    part of the letter (Devanagari vowel signs, Japanese dakuten).

    Example:
        >>> normalise("  São  Paulo’s ")
        "sao paulo's"
    """
    return _fold(text, case=True).strip()


def first_line(text: str) -> str:
    """Return what stands before the first line break, without surrounding whitespace.

    Example:
        >>> first_line(" Paris\\nThe capital of")
        'Paris'
    """
    return text.split("\n", 1)[0].strip()


@lru_cache(maxsize=1)
def _marks() -> str:
    """Every combining mark of Unicode's first two planes, as the inside of a character class."""
    marks = (chr(point) for point in range(0x300, 0x1F000))
    return "".join(mark for mark in marks if unicodedata.category(mark).startswith("M"))


def _bounded(pattern: str, name: str) -> str:
    """Ask for word boundaries around a pattern, at the ends where the script has them."""
    marks = _marks()
    unspaced = re.compile(f"[{_UNSPACED}]")
    before = "" if unspaced.match(name[0]) else rf"(?<![^\W_])(?<![{marks}])"
    after = "" if unspaced.match(name[-1]) else r"(?![^\W_])"
    return f"{before}{pattern}{after}(?![{marks}])"


def _loose(character: str, dots_optional: bool) -> str:
    """The pattern of one character of a name, loose about punctuation."""
    if character == "-":
        return "[ -]"
    if character == " ":  # "Washington D.C." is also "Washington, D.C."
        return "[.,]?[ -]"
    if character in ',"':
        return f"{character}?"
    if character == ".":
        return r"(?:\.|(?!\.)) ?" if dots_optional else r"\. ?"
    if character == "&":
        return "(?:&|and)"
    return re.escape(character)


def _pattern(name: str) -> str:
    """The pattern of a folded name: loose about punctuation, strict at its word boundaries."""
    body = name.removesuffix(".")
    dots_optional = sum(map(str.isalnum, name)) > 2 and name.replace(".", "") not in _ENGLISH
    pattern = "".join(_loose(character, dots_optional) for character in body)
    pattern = pattern.replace(" ?[.,]?[ -]", "[ -]?")
    if body != name:  # "U.S" is "U.S.", but the start of "U.S.A" is not
        pattern += r"(?:\.|(?!\.))"
    return _bounded(pattern, name)


def _without_article(name: str) -> str:
    """Drop a leading "the", unless only a word of running text is left ("The Who")."""
    rest = name[4:] if name[:4].lower() == "the " else name
    telling = _is_code(rest) or rest.casefold() not in _ENGLISH
    return rest if telling and sum(map(str.isalnum, rest)) > 1 else name


def _is_code(name: str) -> bool:
    """Whether a name is told from running text by its capitals alone: "US", "IT", "CAN"."""
    letters = name.isascii() and name.isalpha()
    return letters and (len(name) == 2 or (name.isupper() and name.lower() in _ENGLISH))


class _Spelling(NamedTuple):
    """One name, ready to be looked for in a folded text."""

    name: str
    word: str
    """Its longest word: a text without that needs no search."""
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, name: str, folded: str) -> _Spelling:
        """Compile a name by its folded spelling."""
        word = max(re.findall(r"[^\W_]+", folded), key=len)
        return cls(name, word, re.compile(_pattern(folded)))

    def found(self, text: str, *, closed: bool) -> bool:
        """Whether the name is in a folded text; if ``closed``, with one more character after."""
        if self.word not in text:
            return False
        match = self.pattern.search(text)
        while match and closed and match.end() == len(text):
            match = self.pattern.search(text, match.start() + 1)
        return match is not None


@lru_cache(maxsize=8192)
def _spellings(names: tuple[str, ...]) -> tuple[tuple[_Spelling, ...], tuple[_Spelling, ...]]:
    """Compile the usable names of an entity once: those of any case, and the codes."""
    anycase: dict[str, str] = {}
    codes: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str):
            continue
        plain = _without_article(_fold(name, case=False).strip())
        if sum(map(str.isalnum, plain)) < 2 and not re.search(f"[{_UNSPACED}]", plain):
            continue
        if _is_code(plain):
            codes.setdefault(plain.upper() if plain.islower() else plain, name)
        else:
            anycase.setdefault(_without_article(normalise(name)), name)
    return (
        tuple(_Spelling.of(name, folded) for folded, name in anycase.items()),
        tuple(_Spelling.of(name, folded) for folded, name in codes.items()),
    )


def _find_word(text: str, names: tuple[str, ...], *, closed: bool = False) -> str | None:
    """The first name in a text at word boundaries."""
    for spellings, case in zip(_spellings(names), (True, False), strict=True):
        folded = _fold(text, case=case) if spellings else ""
        for spelling in spellings:
            if spelling.found(folded, closed=closed):
                return spelling.name
    return None


def _checked(names: Iterable[str], match: str) -> tuple[str, ...]:
    """Check the arguments that every matching function takes."""
    if match not in MATCHES:
        raise UsageError(f"unknown match {match!r}: choose one of {', '.join(MATCHES)}")
    if isinstance(names, str):
        raise UsageError(f"names must be a sequence of names, not the one string {names!r}")
    return tuple(names)


def _find_substring(text: str, names: tuple[str, ...]) -> str | None:
    lowered = text.lower()
    usable = (name for name in names if isinstance(name, str) and len(name) > 1)
    return next((name for name in usable if name.lower() in lowered), None)


def find_answer(text: str, names: Iterable[str], match: Match = "word") -> str | None:
    """Return one of ``names`` that ``text`` contains, or None.

    Args:
        text: what a model generated.
        names: the label and aliases of an entity. Entries that are no string, or have fewer
            than two letters or digits (one for Chinese, Japanese, Korean), are ignored.
        match: "word" compares normalised names at word boundaries; a leading "the" and inner
            commas, full stops, hyphens and quotes are optional; a name of two letters, or one in
            capitals that is an English word ("CAN"), counts only as it is spelled: "US" is not
            in "told us". Scripts without spaces need no boundary. "substring" is the rule of
            Hopping Too Late (Biran et al. 2024): any name longer than one character occurs in
            the lower-cased text.

    Raises:
        UsageError: for another ``match``, or a bare string as ``names``.

    Example:
        >>> find_answer("It is in Sao Paulo.", ("São Paulo", "Sampa"))
        'São Paulo'
    """
    names = _checked(names, match)
    if match == "substring":
        return _find_substring(text, names)
    return _find_word(text, names)


def matches(text: str, names: Iterable[str], match: Match = "word") -> bool:
    """Whether ``text`` contains one of ``names``; see `find_answer` for the rules.

    Example:
        >>> matches("Nigeria", ("Niger",)), matches("Nigeria", ("Niger",), "substring")
        (False, True)
    """
    return find_answer(text, names, match) is not None


def decided(text: str, names: Iterable[str], match: Match = "word") -> bool:
    """Whether `matches` is already true of ``text`` whatever follows it: decoding can stop.

    In word mode a name must be closed by a character that cannot extend it ("Niger" may yet
    become "Nigeria"); trailing U+FFFD, a character whose bytes are still incomplete, is no such
    character.

    Example:
        >>> decided(" Niger", ("Niger",)), decided(" Niger.", ("Niger",))
        (False, True)
    """
    names = _checked(names, match)
    text = text.rstrip("\ufffd")
    if match == "substring":
        return _find_substring(text, names) is not None
    return _find_word(text, names, closed=True) is not None


def squashed(text: str) -> str:
    """The letters and digits of a text in lower case, of any script.

    Example:
        >>> squashed("St. John's"), squashed("東京!")
        ('stjohns', '東京')
    """
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def contains(text: str, names: Iterable[str]) -> bool:
    """Whether a text holds one of the names when both are squashed to letters and digits.

    What Huang et al. 2025 call exact match. They keep Latin letters only, so that a reference in
    another script becomes empty and is always found; here all scripts' letters stay, and a name
    without any is never found.
    """
    within = squashed(text)
    return any(name and name in within for name in map(squashed, _checked(names, "word")))


def _squad_words(text: str) -> list[str]:
    """The words of a text without punctuation and articles, as SQuAD's evaluation has them."""
    marks = (each in string.punctuation or unicodedata.category(each)[0] == "P" for each in text)
    kept = "".join(each for each, mark in zip(text, marks, strict=True) if not mark).casefold()
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def exact_match(text: str, names: Iterable[str]) -> bool:
    """Whether a text is one of the names, but for case, punctuation and articles (SQuAD)."""
    words = _squad_words(text)
    return bool(words) and any(words == _squad_words(name) for name in _checked(names, "word"))


def f1_score(text: str, names: Iterable[str]) -> float:
    """The best F1 of a text's words against those of a name (SQuAD), from 0 to 1."""
    words = _squad_words(text)
    return max((_f1(words, _squad_words(name)) for name in _checked(names, "word")), default=0.0)


def _f1(words: list[str], wanted: list[str]) -> float:
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / max(1, len(words) + len(wanted))
