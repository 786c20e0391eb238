"""Decides whether a generated text names an entity, and when decoding can stop."""

from __future__ import annotations

import math
import numbers
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, NamedTuple

from hopscope.errors import UsageError, one_of
from hopscope.scripts import HANGUL, UNSPACED

Match = Literal["word", "substring"]
MATCHES: tuple[Match, ...] = ("word", "substring")

_TYPOGRAPHY = {
    **dict.fromkeys(map(ord, "‘’‚‛ʼ′´`＇"), "'"),
    **dict.fromkeys(map(ord, "“”„‟«»″＂"), '"'),
    **dict.fromkeys(map(ord, "‐‑‒–—―−﹘﹣－"), "-"),
    **dict.fromkeys(map(ord, "\u00ad\u200b\ufeff"), None),
    **dict.fromkeys(range(0xFE00, 0xFE10), None),  # variation selectors
}
# Letters with a stroke and ligatures have no canonical decomposition, but are often typed plain.
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe"}
    | {"Ø": "O", "Ł": "L", "Đ": "D", "Ħ": "H", "Æ": "AE", "Œ": "OE"}
)
_UNSPACED = f"{UNSPACED}{HANGUL}"
"""Scripts without spaces between words, and Hangul, which attaches particles to names."""
# English words that, in capitals, are also codes or names: CAN (Canada), WHO, AND (Andorra), ARE
# (United Arab Emirates), PER (Peru). Two-letter names are always treated as ambiguous.
_RUNNING_TEXT = (
    "a all an and any are as at be but by can did do for had has he her him his how i if in is it "
    "its lot man may me men my no nor not of on one or our out per she so that the them they this "
    "to too two up us was we what when where who why you your then than there here with"
)
_ENGLISH = frozenset(_RUNNING_TEXT.split())

_GROUP = r"[, ']\d{3}(?!\d)"
"""What continues a number whose thousands are set apart: "10" is not in "10,000" or "10 000"."""
_GROUPED = re.compile(r"(?<!\d)\d{1,3}(?:[, ']\d{3})+(?!\d)")
_ANSWER_IS = re.compile(r"(?:answer is|answer:)", re.IGNORECASE)
_PIECES = re.compile(r"\d+|(?P<mark>(?<=\d)[.,:](?=\d)|^[.-](?=\d))|.", re.DOTALL)
"""Numbers, the marks inside and before them, and other characters."""


@lru_cache(maxsize=4096)
def _drops_accents(letter: str) -> bool:
    """Return whether marks on this letter are accents, and not part of the letter itself."""
    return unicodedata.name(letter, "").startswith(("LATIN", "GREEK", "CYRILLIC"))


def _strip_accents(text: str) -> str:
    """Drop combining marks from Latin, Greek and Cyrillic letters only."""
    characters: list[str] = []
    base = ""
    for character in unicodedata.normalize("NFD", text):
        if unicodedata.category(character) != "Mn":
            base = character
        elif base and _drops_accents(base):
            continue
        characters.append(character)
    return unicodedata.normalize("NFC", "".join(characters))


def _fold(text: str, *, case: bool) -> str:
    """Unify compatibility forms, typography, accents and whitespace, and with `case` also case."""
    if text.isascii():
        text = text.replace("`", "'")
        return re.sub(r"\s+", " ", text.casefold() if case else text)
    text = unicodedata.normalize("NFKC", text.translate(_TYPOGRAPHY))
    text = _strip_accents(text.casefold() if case else text).translate(_PLAIN)
    return re.sub(r"\s+", " ", text)


def normalise(text: str) -> str:
    """Normalise case, accents, typography and spacing, which do not distinguish names.

    Accents are dropped from Latin, Greek and Cyrillic letters only. In other scripts a mark is part
    of the letter (Devanagari vowel signs, Japanese dakuten).

    Example:
        >>> normalise("  São  Paulo’s ")
        "sao paulo's"
    """
    return _fold(text, case=True).strip()


def first_line(text: str) -> str:
    """Return the text before the first line break, without surrounding whitespace.

    Example:
        >>> first_line(" Paris\\nThe capital of")
        'Paris'
    """
    return text.split("\n", 1)[0].strip()


@lru_cache(maxsize=1)
def _marks() -> str:
    """Return the combining marks of the first two Unicode planes, for use in a character class."""
    marks = (chr(point) for point in range(0x300, 0x1F000))
    return "".join(mark for mark in marks if unicodedata.category(mark).startswith("M"))


def _bounded(pattern: str, name: str) -> str:
    """Add boundaries to a pattern: of words, at the ends whose script has them, and of numbers."""
    marks = _marks()
    unspaced = re.compile(f"[{_UNSPACED}]")
    symbol = _is_symbol(name)
    free_before = unspaced.match(name[0]) or (symbol and not name[0].isalnum())
    free_after = unspaced.match(name[-1]) or (symbol and not name[-1].isalnum())
    before = "" if free_before else rf"(?<![^\W_])(?<![{marks}])"
    after = "" if free_after else r"(?![^\W_])"
    if number := re.match(r"\d+", name):
        before += r"(?<!\d[.:])(?<!(?<![^\W_])-)"  # the 5 of "2.5", "12:5" and "-5"
        if len(number[0]) % 3 == 0:
            before += "".join(rf"(?<!(?<!\d)\d{{{n}}}[, '])" for n in (1, 2, 3))
    if name[-1].isdecimal():
        after += r"(?![.:]\d)"
    return f"{before}{pattern}{after}(?![{marks}])"


def _number(digits: str) -> str:
    """Return the pattern of a number, whose thousands may be set apart."""
    if len(digits) <= 3:
        return f"{digits}(?!{_GROUP})"
    grouped = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", "[, ']", digits)
    return f"(?:{digits}|{grouped}(?!{_GROUP}))"


def _loose(piece: str, dots_optional: bool) -> str:
    """Return the pattern of a piece of a name: strict about numbers, lenient about punctuation."""
    if piece.isdecimal():
        return _number(piece)
    if piece == "-":
        return "[ -]"
    if piece == " ":  # "Washington D.C." is also "Washington, D.C."
        return "[.,]?[ -]"
    if piece in ',"':
        return f"{piece}?"
    if piece == ".":
        return r"(?:\.|(?!\.)) ?" if dots_optional else r"\. ?"
    if piece == "&":
        return "(?:&|and)"
    return re.escape(piece)


def _pattern(name: str) -> str:
    """Return the pattern of a folded name: lenient about punctuation, strict at word boundaries."""
    body = name.removesuffix(".") or name
    dots_optional = sum(map(str.isalnum, name)) > 2 and name.replace(".", "") not in _ENGLISH
    pattern = "".join(
        re.escape(piece["mark"]) if piece["mark"] else _loose(piece[0], dots_optional)
        for piece in _PIECES.finditer(_GROUPED.sub(lambda n: re.sub(r"\D", "", n[0]), body))
    )
    pattern = pattern.replace(" ?[.,]?[ -]", "[ -]?")
    if body != name:  # "U.S" is "U.S.", but the start of "U.S.A" is not
        pattern += r"(?:\.|(?!\.))"
    return _bounded(pattern, name)


def _is_symbol(name: str) -> bool:
    """Return whether a name is a single letter, digit or sign."""
    return sum(map(str.isalnum, name)) < 2 and not re.search(f"[{_UNSPACED}]", name)


def _without_article(name: str) -> str:
    """Drop a leading "the", unless only a common English word would be left ("The Who")."""
    rest = name[4:] if name[:4].lower() == "the " else name
    distinctive = _is_code(rest) or rest.casefold() not in _ENGLISH
    return rest if distinctive and sum(map(str.isalnum, rest)) > 1 else name


def _is_code(name: str) -> bool:
    """Return whether only capitals distinguish the name from a word: "US", "IT", "CAN"."""
    letters = name.isascii() and name.isalpha()
    return letters and (len(name) == 2 or (name.isupper() and name.lower() in _ENGLISH))


class _Spelling(NamedTuple):
    """A name, compiled for searching in folded texts."""

    name: str
    word: str
    """The longest word of the name; a text without it need not be searched."""
    pattern: re.Pattern[str]
    open_end: re.Pattern[str]
    """What behind the name may still become a part of it."""

    @classmethod
    def of(cls, name: str, folded: str) -> _Spelling:
        """Compile a name by its folded spelling."""
        words = re.findall(r"[^\W\d_]+|\d{1,3}(?!\d)", folded)
        open_end = r"[.:]?|[, ']\d{0,3}" if folded.rstrip('."')[-1:].isdecimal() else ""
        longest = max(words, key=len, default="")
        return cls(name, longest, re.compile(_pattern(folded)), re.compile(open_end))

    def found(self, text: str, *, closed: bool) -> bool:
        """Return whether a folded text contains the name.

        With ``closed``, it must contain the name however the text continues.
        """
        if self.word not in text:
            return False
        match = self.pattern.search(text)
        while match and closed and self.open_end.fullmatch(text, match.end()):
            match = self.pattern.search(text, match.start() + 1)
        return match is not None


@lru_cache(maxsize=8192)
def _spellings(names: tuple[str, ...]) -> tuple[tuple[_Spelling, ...], tuple[_Spelling, ...]]:
    """Compile the usable names of an entity: names matched in any case, and codes.

    A single letter, digit or sign is a usable name only of an entity that has no other.
    """
    anycase: dict[str, str] = {}
    codes: dict[str, str] = {}
    symbols: dict[str, str] = {}
    for name in names:
        plain = _without_article(_fold(name, case=False).strip())
        if _is_symbol(plain):
            if any(unicodedata.category(each)[0] in "LNS" for each in plain):
                symbols.setdefault(plain, name)
        elif _is_code(plain):
            codes.setdefault(plain.upper() if plain.islower() else plain, name)
        else:
            anycase.setdefault(_without_article(normalise(name)), name)
    if not anycase and not codes:
        codes = symbols
    return (
        tuple(_Spelling.of(name, folded) for folded, name in anycase.items()),
        tuple(_Spelling.of(name, folded) for folded, name in codes.items()),
    )


def _find_word(text: str, names: tuple[str, ...], *, closed: bool = False) -> str | None:
    """Return the first name that occurs in a text at word boundaries, or None."""
    for spellings, case in zip(_spellings(names), (True, False), strict=True):
        folded = _fold(text, case=case) if spellings else ""
        for spelling in spellings:
            if spelling.found(folded, closed=closed):
                return spelling.name
    return None


def name_text(name: object) -> str | None:
    """Return a name as text: 1984 and 1984.0 are "1984"; None for what is no name, such as NaN.

    Example:
        >>> name_text("Paris"), name_text(1984.0), name_text(None)
        ('Paris', '1984', None)
    """
    if isinstance(name, str):
        return name
    if isinstance(name, bool) or not isinstance(name, numbers.Real) or not math.isfinite(name):
        return None
    if isinstance(name, numbers.Integral):
        return str(int(name))
    return str(int(float(name))) if float(name).is_integer() else str(name)


def _checked(names: Iterable[object], match: str = "word") -> tuple[str, ...]:
    """Check the arguments that all matching functions share, and return the names as texts."""
    one_of("match", match, MATCHES)
    if isinstance(names, str):
        raise UsageError(
            f"names must be a sequence of names, not the single string {names!r}; put it in a list"
        )
    return tuple(text for text in map(name_text, names) if text is not None)


def _find_substring(text: str, names: tuple[str, ...], *, closed: bool = False) -> str | None:
    """Return the first name that occurs anywhere in a text, or None.

    A name of one character is looked for as a word, and only if there is no other. With
    ``closed``, the text must contain the name however it continues.
    """
    usable = [name for name in names if len(name) > 1]
    if not usable:
        return _find_word(text, names, closed=closed)
    lowered = _lowered(text.strip() if closed else text)
    return next((name for name in usable if _lowered(name) in lowered), None)


def _lowered(text: str) -> str:
    """Return a text in lower case, in which a letter does not depend on those that follow it."""
    return text.lower().replace("ς", "σ")


def find_answer(text: str, names: Iterable[str], match: Match = "word") -> str | None:
    """Return one of ``names`` that ``text`` contains, or None.

    Args:
        text: a generated text.
        names: the label and aliases of an entity. Numbers count as they are written, other entries
            that are not strings are ignored. A name with fewer than two letters or digits (one for
            Chinese, Japanese, Korean) is used only if there is no longer one, and must match in
            case: "Ω", "7", "C++".
        match: "word" compares normalised names at word boundaries. A leading "the" and inner
            commas, full stops, hyphens and quotes are optional. A name of two letters, or one in
            capitals that is also an English word ("CAN"), must match in case: "US" is not in
            "told us". Scripts without spaces need no boundary. A number must be the whole number:
            "25" is not in "-25", "2.25", "25:10" or "25,000", and "1000" is also "1,000" and
            "1 000". "substring" is the rule of Hopping Too Late (Biran et al. 2024): a name of at
            least two characters occurs anywhere in the text, in any case.

    Raises:
        UsageError: for an unknown ``match``, or a bare string as ``names``.

    Example:
        >>> find_answer("It is in Sao Paulo.", ("São Paulo", "Sampa"))
        'São Paulo'
    """
    names = _checked(names, match)
    if match == "substring":
        return _find_substring(text, names)
    return _find_word(text, names)


def matches(text: str, names: Iterable[str], match: Match = "word") -> bool:
    """Return whether ``text`` contains one of ``names``; see `find_answer` for the rules.

    Example:
        >>> matches("Nigeria", ("Niger",)), matches("Nigeria", ("Niger",), "substring")
        (False, True)
    """
    return find_answer(text, names, match) is not None


def decided(text: str, names: Iterable[str], match: Match = "word") -> bool:
    """Return whether `matches` is true of ``text`` however it continues, so that decoding can stop.

    With "word", a name must be followed by what cannot extend it ("Niger" may still become
    "Nigeria", and "10," become "10,000"). A trailing U+FFFD, which stands for an incomplete
    character, does not count, and with "substring" neither does space at the ends, which is no
    part of an answer.

    Example:
        >>> decided(" Niger", ("Niger",)), decided(" Niger.", ("Niger",))
        (False, True)
    """
    names = _checked(names, match)
    text = text.rstrip("\ufffd")
    if match == "substring":
        return _find_substring(text, names, closed=True) is not None
    return _find_word(text, names, closed=True) is not None


def delimited(text: str, names: Iterable[str]) -> bool:
    """Return whether a description names an entity, by the rule of Hopping Too Late's code.

    A name must stand between the marks of "Name: description": behind ": " and before a space, a
    comma, a full stop or a colon, or before ": ", in any case. Line breaks count as spaces; space
    at the ends of the text does not count, and neither do aliases of a single character.

    Example:
        >>> delimited(": France is a country", ["France"]), delimited("x in France", ["France"])
        (True, False)
    """
    label, *aliases = _checked(names) or ("",)
    usable = [label, *(alias for alias in aliases if len(alias) > 1)] if label else []
    lowered = text.strip().replace("\n", " ").lower()
    return any(
        f"{name}: " in lowered or any(f": {name}{mark}" in lowered for mark in " ,.:")
        for name in map(str.lower, usable)
    )


def squashed(text: str) -> str:
    """Return the letters and digits of a text, of any script, in lower case.

    Example:
        >>> squashed("St. John's"), squashed("東京!")
        ('stjohns', '東京')
    """
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def contains(text: str, names: Iterable[str]) -> bool:
    """Return whether a text contains one of the names, comparing letters and digits only.

    Huang et al. 2025 call this exact match. They keep Latin letters only, so that a reference in
    another script becomes empty and always matches. Here the letters of all scripts are kept, and
    a name without any letter or digit never matches.
    """
    within = squashed(text)
    return any(name and name in within for name in map(squashed, _checked(names)))


def contains_ascii(text: str, names: Iterable[str]) -> bool:
    """Return whether a text contains one of the names, by the rule of Huang et al. 2025.

    It is what their code calls exact match: every character that is not an ASCII letter, a digit
    or white space is deleted, the rest is put in lower case, and a name may stand anywhere, in the
    midst of a word, too. White space counts. A name of which nothing is left, such as one in
    another script, never matches here; in their code it always does.

    Example:
        >>> contains_ascii("Beyonce Knowles", ["Beyoncé"]), contains_ascii("NewYork", ["New York"])
        (True, False)
    """
    within = _ascii_only(text)
    return any(name.strip() and name in within for name in map(_ascii_only, _checked(names)))


def _ascii_only(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9\s]", "", text).lower()


def last_boxed(text: str) -> str:
    """Return what stands in the last `\\boxed{…}` of a text, which ends with the brace that closes
    it; an empty text if there is none.

    Example:
        >>> last_boxed(r"Not \\boxed{Rome} but \\boxed{\\text{Paris}}.")
        '\\\\text{Paris}'
    """
    for opened in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        depth = 1
        for brace in re.finditer(r"[{}]", text[opened.end() :]):
            depth += 1 if brace[0] == "{" else -1
            if not depth:
                return text[opened.end() : opened.end() + brace.start()].strip()
    return ""


def first_boxed(text: str) -> str:
    """Return what stands in the first `\\boxed{…}` of a text, up to the first closing brace; an
    empty text if there is none. It is the rule of the code of Huang et al. 2025.

    Example:
        >>> first_boxed(r"Not \\boxed{Rome} but \\boxed{Paris}.")
        'Rome'
    """
    found = re.search(r"\\boxed\{([^}]+)\}", text)
    return found[1] if found else ""


def last_line(text: str) -> str:
    """Return the last line of a text that is not empty.

    Example:
        >>> last_line("The Tower is in France.\\nParis\\n")
        'Paris'
    """
    return text.strip().rpartition("\n")[2]


def after_answer_is(text: str) -> str:
    """Return what follows the last "answer is" or "answer:" of a text; all of it if there is none.

    Example:
        >>> after_answer_is("France. So the answer is Paris")
        'Paris'
    """
    return _ANSWER_IS.split(text)[-1].strip()


ANSWER_RULES: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "answer_is": after_answer_is,
        "boxed": last_boxed,
        "first_boxed": first_boxed,
        "last_line": last_line,
        "whole": str,
    }
)
"""Where the answer stands in a text of several lines, by name."""


def _squad_words(text: str) -> list[str]:
    """Return the words of a text without punctuation and articles, as in the SQuAD evaluation."""
    marks = (each in string.punctuation or unicodedata.category(each)[0] == "P" for each in text)
    plain = "".join(each for each, mark in zip(text, marks, strict=True) if not mark).casefold()
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def exact_match(text: str, names: Iterable[str]) -> bool:
    """Return whether a text equals a name up to case, punctuation and articles (SQuAD)."""
    words = _squad_words(text)
    return bool(words) and any(words == _squad_words(name) for name in _checked(names))


def f1_score(text: str, names: Iterable[str]) -> float:
    """Return the highest word F1 of a text against one of the names (SQuAD), from 0 to 1."""
    words = _squad_words(text)
    return max((_f1(words, _squad_words(name)) for name in _checked(names)), default=0.0)


def _f1(words: list[str], reference: list[str]) -> float:
    common = sum((Counter(words) & Counter(reference)).values())
    return 2 * common / max(1, len(words) + len(reference))
