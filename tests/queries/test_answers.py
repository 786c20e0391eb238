"""Tests of answers.py: which texts name an entity."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopscope.errors import UsageError
from hopscope.queries.answers import (
    MATCHES,
    Match,
    contains,
    decided,
    delimited,
    exact_match,
    f1_score,
    find_answer,
    first_line,
    matches,
    normalise,
    squashed,
)

# (text, one name, does the text name it?)
WORD_CASES = [
    # accents and letters with strokes, both ways
    ("It is Sao Paulo.", "São Paulo", True),
    ("It is São Paulo.", "Sao Paulo", True),
    ("It is Sa\u0303o Paulo.", "São Paulo", True),
    ("SÃO PAULO", "São Paulo", True),
    ("Lodz", "Łódź", True),
    ("Malmø", "Malmo", True),
    ("Αθηνα", "Αθήνα", True),
    # word boundaries
    ("Nigeria", "Niger", False),
    ("Niger is", "Niger", True),
    ("Romania", "Oman", False),
    ("Oman", "Oman", True),
    ("Perugia", "Peru", False),
    ("1984a", "1984", False),
    ("in 1984.", "1984", True),
    ("Niger\u0301", "Nige", False),
    ("Paris's mayor", "Paris", True),
    ("snake_Paris", "Paris", True),
    # codes of two letters, and codes that are words, count in capitals only
    ("he told us so", "US", False),
    ("in the US.", "US", True),
    ("is it?", "IT", False),
    ("IT", "IT", True),
    ("cl", "CL", False),
    ("CL", "cl", True),
    ("she can do it", "CAN", False),
    ("CAN", "CAN", True),
    ("usa", "USA", True),
    ("all of the us", "the US", False),
    ("in the US", "the US", True),
    ("in US", "the US", True),
    ("Li Bai", "Li", True),
    ("li", "Li", False),
    # abbreviations
    ("in the U.S. now", "U.S.", True),
    ("in the U.S", "U.S.", True),
    ("in the u.s.", "U.S.", True),
    ("in the U. S.", "U.S.", True),
    ("he told us", "U.S.", False),
    ("the U.S.A.", "U.S.", False),
    ("the U.S.A.", "U.S.A.", True),
    ("St Louis", "St. Louis", True),
    ("St. Louis", "St Louis", True),
    ("Washington, D.C.", "Washington D.C.", True),
    # punctuation inside names
    ("Washington, D.C.", "Washington, D.C.", True),
    ("Washington D.C.", "Washington, D.C.", True),
    ("Washington, D. C. is", "Washington, D.C.", True),
    ("Washington, DC", "Washington, D.C.", True),
    ("Washington state", "Washington, D.C.", False),
    ("Cote d’Ivoire", "Côte d'Ivoire", True),
    ("Côte d'Ivoire", "Côte d’Ivoire", True),
    ("Port au Prince", "Port-au-Prince", True),
    ("Port-au-Prince", "Port au Prince", True),
    ("Guinea–Bissau", "Guinea-Bissau", True),
    ("Weird Al Yankovic", '"Weird Al" Yankovic', True),
    ("Simon and Garfunkel", "Simon & Garfunkel", True),
    ("C++", "C++", True),
    ("What (film) is", "What (film)", True),
    # the article
    ("The Netherlands", "Netherlands", True),
    ("Netherlands", "The Netherlands", True),
    ("the  netherlands", "The Netherlands", True),
    ("Hague", "The Hague", True),
    ("the band who sang", "The Who", False),
    ("The Who sang", "The Who", True),
    # scripts without spaces, and with marks that are no accents
    ("首都は日本です", "日本", True),
    ("日", "日", True),
    ("서울은", "서울", True),
    ("เมืองไทยนี้", "ไทย", True),
    ("か", "が", False),
    ("हिन्दी", "हिन्द", False),
    ("यह हिन्दी है", "हिन्दी", True),
    ("أنا في مصر", "مصر", True),
    ("日本", "中国", False),
    # compatibility forms and spacing
    ("ＰＡＲＩＳ", "Paris", True),
    ("New\u00a0York", "New York", True),
    ("New\n York", "New York", True),
    ("Straße", "Strasse", True),
    # numbers are whole numbers
    ("25 C", "-25", False),
    ("it is 25", "-25", False),
    ("-25 C", "-25", True),
    ("−25 °C", "-25", True),
    ("-25 C", "25", False),
    ("from 20-25", "25", True),
    ("from 20-25", "-25", False),
    ("1,000 men", "1000", True),
    ("1000 men", "1,000", True),
    ("1 000 men", "1000", True),
    ("1\u202f000 men", "1,000", True),
    ("10'000'000", "10000000", True),
    ("1,0000", "1000", False),
    ("10,000", "10", False),
    ("10 000", "10", False),
    ("10,000", "000", False),
    ("1,234,567", "234", False),
    ("1,234,567", "1,234", False),
    ("1,234,567", "1234", False),
    ("10, 000", "10", True),
    ("in 1984,300 men", "1984", True),
    ("in 1984 300 men", "1984", True),
    ("in 1984 300 men", "300", True),
    ("10 men", "10", True),
    ("10,men", "10", True),
    ("10:30", "10", False),
    ("10:30", "30", False),
    ("10:30", "10:30", True),
    ("10:305", "10:30", False),
    ("10.5", "10", False),
    ("10.5", "5", False),
    ("105", "10.5", False),
    ("10. 5 men", "10.5", False),
    ("10.", "10", True),
    ("1.2.3", "1.2", False),
    ("1.2.3", "1.2.3", True),
    ("Python 3.11", "Python 3.1", False),
    ("Python 3.11.", "Python 3.11", True),
    ("125", "12,5", False),
    ("10th", "10", False),
    ("Louis XIV", "Louis XI", False),
    ("Louis XIV", "Louis XIV", True),
    ("20000 Leagues", "20,000 Leagues", True),
    ("1984-05-03", "1984", True),
    ("Boeing 737-800", "Boeing 737", True),
    ("٢٥ درجة", "٢٥", True),
    # a name of one letter, digit or sign, where there is no longer one
    ("x", "x", True),
    ("X", "x", False),
    ("xy", "x", False),
    ("in Ω.", "Ω", True),
    ("in Ωs", "Ω", False),
    ("in \u2126", "Ω", True),
    ("7 men", "7", True),
    ("17 men", "7", False),
    ("7.5 men", "7", False),
    ("25°C", "°C", True),
    ("5€", "€", True),
    ("flag 🇬🇧", "🇬🇧", True),
    # names that cannot be used
    ("anything", "", False),
    ("anything ...", "...", False),
    ("anything ...", ".", False),
]

SUBSTRING_CASES = [
    ("he told us so", "US", True),
    ("Nigeria", "Niger", True),
    ("Sao Paulo", "São Paulo", False),
    ("The NETHERLANDS", "netherlands", True),
    ("Netherlands", "The Netherlands", False),
    ("x", "x", True),  # of one character, a word
    ("xy", "x", False),
    ("in Ω.", "Ω", True),
    ("ΟΔΟΣ", "οδος", True),
    ("ΟΔΟΣΑ", "οδος", True),
    ("anything", "", False),
]


@pytest.mark.parametrize(("text", "name", "expected"), WORD_CASES)
def test_word_match(text: str, name: str, expected: bool) -> None:
    assert matches(text, (name,)) is expected


@pytest.mark.parametrize(("text", "name", "expected"), SUBSTRING_CASES)
def test_substring_match_is_the_rule_of_the_paper(text: str, name: str, expected: bool) -> None:
    assert matches(text, (name,), "substring") is expected


KINGDOM = ("United Kingdom", "UK", "Britain", "U")
MARKED = [
    (": United Kingdom is an island", True),
    ("x: the United Kingdom, an island", False),
    (": UK, an island", True),
    (": uk.", True),
    (": Britain: an island", True),
    ("britain: an island", True),
    (": Britain\nAn island", True),  # a line break is a space
    (": Britain", False),  # whose end says nothing
    (": Britain\n", False),
    (": Great Britain, an island", False),
    (": Britains, islands", False),
    (":Britain, an island", False),
    (": U, an alias of one letter", False),
    ("", False),
]


@pytest.mark.parametrize(("text", "expected"), MARKED)
def test_delimited_by_hand(text: str, expected: bool) -> None:
    assert delimited(text, KINGDOM) == expected


PIECES = st.lists(st.sampled_from([": ", "UK", "uk", "Britain", " ", ",", ".", ":", "\n", "x"]))


@given(PIECES)
def test_delimited_is_one_of_five_patterns(pieces: list[str]) -> None:
    """As a regular expression: case aside, on the text as the paper's code keeps it."""
    text = "".join(pieces)
    kept = text.strip().replace("\n", " ")
    names = "|".join(re.escape(name) for name in KINGDOM[:3])
    found = re.search(rf": (?:{names})[ ,.:]|(?:{names}): ", kept, re.IGNORECASE)
    assert delimited(text, KINGDOM) == (found is not None)


def test_a_label_of_one_letter_is_delimited_too() -> None:
    assert delimited(": Q, a letter", ["Q", "R"])
    assert not delimited(": R, a letter", ["Q", "R"])
    assert not delimited(": , ", [])


def test_the_matched_name_is_returned_as_it_was_given() -> None:
    names = ("United States of America", "US", "the U.S.")
    assert find_answer("it is the u.s. of course", names) == "the U.S."
    assert find_answer("it is the US", names) == "US"
    assert find_answer("it told us", names) is None
    assert find_answer("it told us", names, "substring") == "US"


def test_entries_that_are_no_names_are_ignored() -> None:
    names = (None, float("nan"), True, "Paris", "")
    for match in MATCHES:
        assert find_answer("Paris.", names, match) == "Paris"  # type: ignore[arg-type]
        assert find_answer("None True nan", names, match) is None  # type: ignore[arg-type]
    assert not contains("None True nan", names)  # type: ignore[arg-type]
    assert not exact_match("nan", names)  # type: ignore[arg-type]


def test_numbers_are_names_as_they_are_written() -> None:
    names = ("Orwell", 1984, np.int64(2001), 7.0, 2.5)
    for match in MATCHES:
        for text in ("in 1984.", "in 2001.", "in 2.5"):
            assert matches(text, names, match), text  # type: ignore[arg-type]
        assert not matches("in 1985", names, match)  # type: ignore[arg-type]
        assert matches("7 men", (7.0,), match)  # type: ignore[arg-type]
    assert contains("year 1984!", names)  # type: ignore[arg-type]
    assert exact_match("2001", names)  # type: ignore[arg-type]
    assert f1_score("the 1984", names) == 1  # type: ignore[arg-type]


def test_names_of_one_letter_count_only_where_there_is_no_longer_one() -> None:
    for match in MATCHES:
        assert not matches("M", ("Miriam", "M"), match)
        assert matches("M", ("M", "x"), match)


def test_unknown_match_and_bare_string_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'fuzzy'.*word, substring"):
        matches("Paris", ("Paris",), "fuzzy")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'fuzzy'"):
        decided("Paris", ("Paris",), "fuzzy")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'Paris'"):
        matches("Paris", "Paris")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  São  Paulo’s ", "sao paulo's"),
        ("“Äther”", '"ather"'),
        ("a—b", "a-b"),
        ("a`b", "a'b"),
        ("が", "が"),
        ("हिन्दी", "हिन्दी"),
        ("ё", "е"),
        ("co\u00adop", "coop"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text())
def test_normalise_leaves_single_spaces_and_one_case(text: str) -> None:
    once = normalise(text)
    assert once == " ".join(once.split())
    assert normalise(text.upper().lower()) == normalise(text.upper())


@given(st.text(st.sampled_from("aéñßŁøİДёが東-’“ .\u0301\u00a0"), max_size=12))
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Paris\nThe", "Paris"),
        ("Paris", "Paris"),
        ("\nParis", ""),
        (" Paris\r\n", "Paris"),
        ("", ""),
    ],
)
def test_first_line(text: str, expected: str) -> None:
    assert first_line(text) == expected


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("Niger", "Niger", False),
        ("Niger ", "Niger", True),
        ("Niger.", "Niger", True),
        ("Nigeria.", "Niger", False),
        ("Niger\ufffd", "Niger", False),
        ("Niger \ufffd", "Niger", True),
        ("Nige\u0301", "Nige", False),
        ("U.S.", "U.S.", False),
        ("U.S. ", "U.S.", True),
        ("日本", "日本", False),
        ("日本で", "日本", True),
        ("か", "か", False),
        ("Niger and Niger", "Niger", True),
        ("US", "US", False),
        ("US,", "US", True),
        ("10", "10", False),
        ("10,", "10", False),
        ("10,00", "10", False),
        ("10, ", "10", True),
        ("10:", "10", False),
        ("10.", "10", False),
        ("10 ", "10", False),
        ("10 m", "10", True),
        ("10-", "10", True),
        ("Ω", "Ω", False),
        ("Ω ", "Ω", True),
    ],
)
def test_decided_in_word_mode(text: str, name: str, expected: bool) -> None:
    assert decided(text, (name,)) is expected


def test_decided_in_substring_mode_needs_nothing_after_the_name() -> None:
    assert decided("Niger", ("Niger",), "substring")
    assert not decided("Nige", ("Niger",), "substring")
    assert not decided("Niger ", ("Niger ",), "substring"), "a line may end there"
    assert decided("Niger is", ("Niger ",), "substring")


NAMES = ("Niger", "U.S.", "US", "São Paulo", "The Who", "日本", "か", "Washington, D.C.", "A & B")
NUMBERS = (
    '"300"',
    "300.",
    "No. 10.",
    *(
        "10",
        "-25",
        "1,000",
        "1000",
        "1984",
        "12345678",
        "007",
        "7",
        "2.5",
        "12,5",
        ".5",
        "½",
        "10²",
    ),
    *(
        "10:30",
        "3:16",
        "1914-18",
        "May 5, 2019",
        "5.12.2019",
        "v1.2.3",
        "No. 5.",
        "$3",
        "2CV",
        "76ers",
    ),
    *("Louis XI", "Henry V", "I", "Ω", "C++", "°C", "€", "🇬🇧", "٢٥", "ΟΔΟΣ", "Guinea-Bissau"),
    *("Côte d'Ivoire", "Hawai‘i", "O'Neill's", " Rome ", "20,000 Leagues"),
)
PIECES = st.sampled_from([*NAMES, "ia", "n", "A", "\u0301", "\u3099", "\n", "the ", "\ufffd", "s"])
MARKS = st.sampled_from(list(" .,:;'’-–−/%°²½\u00a0\u202f\u200b\t\r\n()"))
PARTS = st.one_of(
    PIECES, MARKS, st.sampled_from(NUMBERS), st.sampled_from(list("0123456789")), st.characters()
)


@given(
    st.lists(PARTS, max_size=6),
    st.lists(PARTS, max_size=5),
    st.sampled_from(NAMES + NUMBERS),
    st.sampled_from(MATCHES),
)
@settings(max_examples=2000)
def test_what_is_decided_is_the_verdict_of_the_whole_text(
    begun: list[str], rest: list[str], name: str, match: Match
) -> None:
    """Also of its first line, which is what counts as an answer."""
    text = "".join(begun)
    if decided(text, (name,), match):
        whole = text.rstrip("\ufffd") + "".join(rest)
        assert matches(whole, (name,), match)
        assert "\n" in text or matches(first_line(whole), (name,), match)


@given(st.lists(MARKS | st.sampled_from("0123456789")), st.sampled_from(NUMBERS))
@settings(max_examples=2000)
def test_what_is_decided_of_a_number_is_the_verdict_of_the_whole_text(
    rest: list[str], name: str
) -> None:
    """Token by token behind the name, as it is decoded."""
    whole = f"it is {name}{''.join(rest)}"
    for end in range(len("it is "), len(whole)):
        if decided(whole[:end], (name,)):
            assert matches(whole, (name,)), whole[:end]


@given(st.lists(PIECES, max_size=6), st.sampled_from(NAMES))
def test_a_hit_followed_by_a_full_stop_and_a_space_is_decided(begun: list[str], name: str) -> None:
    text = "".join(begun).rstrip("\ufffd") + ". "
    assert decided(text, (name,)) == matches(text, (name,))


def test_ten_thousand_verdicts_take_a_moment() -> None:
    names = tuple(f"Name number {letter}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    start = time.process_time()
    for index in range(10_000):
        matches(f" it is certainly number {index} of the list,", names)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("St. John's", "stjohns"),
        ("東京!", "東京"),
        ("São  Paulo", "sãopaulo"),
        ("Sa\u0303o", "são"),
        ("Straße", "strasse"),
        ("№ ５", "no5"),
        (" -–—.,!?\n", ""),
        ("", ""),
        ("Αθήνα, 1984", "αθήνα1984"),
    ],
)
def test_squashed_by_hand(text: str, expected: str) -> None:
    assert squashed(text) == expected


@given(st.text())
def test_what_is_squashed_has_letters_and_digits_alone_and_stays_as_it_is(text: str) -> None:
    once = squashed(text)
    assert once == "" or once.isalnum()
    assert squashed(f" {once}! ") == squashed(once)


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("The answer is St Johns.", ("St. John's",), True),
        ("new-york", ("New York",), True),
        ("Nigeria", ("Niger",), True),  # containment knows no boundary
        ("It is Paris", ("Rome", "Paris"), True),
        ("It is Paris", ("Rome",), False),
        ("It is Paris", (), False),
        ("", ("Paris",), False),
        ("", ("",), False),
        # a reference in another script is not squashed to nothing, which all texts would hold
        ("It is Paris", ("東京",), False),
        ("首都は東京です", ("東京",), True),
        ("It is Paris", ("Москва", "القاهرة", "दिल्ली"), False),
        ("Это МОСКВА.", ("Москва",), True),
        # nor is one without letters found
        ("It is Paris", ("!?",), False),
        ("?", ("?",), False),
        ("It is Paris", ("", " ", "…"), False),
        ("in 1984.", ("1,984",), True),
    ],
)
def test_containment_by_hand(text: str, names: tuple[str, ...], expected: bool) -> None:
    assert contains(text, names) is expected


@given(st.text(), st.text(), st.text())
def test_a_name_with_letters_is_found_wherever_it_stands(
    before: str, name: str, after: str
) -> None:
    if any(char.isascii() and char.isalnum() for char in name):
        assert contains(f"{before} {name} {after}", (name,))
    if not squashed(name):
        assert not contains(before, (name,))


# (text, names, exact match, F1)
SQUAD = [
    ("Paris", ("Paris",), True, 1.0),
    ("the paris.", ("Paris",), True, 1.0),
    (" An  Apple ", ("apple!",), True, 1.0),
    ("Paris, France", ("Paris",), False, 2 / 3),
    ("Paris France", ("France", "Paris France"), True, 1.0),
    ("Lyon", ("Paris",), False, 0.0),
    ("in the city of Paris", ("Paris",), False, 2 * (1 / 4) / (1 / 4 + 1)),
    ("a b c d", ("b c x",), False, 2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3)),
    ("new new york", ("new york",), False, 2 * (2 / 3) / (2 / 3 + 1)),
    ("york york", ("york new york",), False, 0.8),
    ("theatre", ("atre",), False, 0.0),
    ("well-known", ("wellknown",), True, 1.0),
    ("St. John's", ("St Johns",), True, 1.0),
    ("", ("Paris",), False, 0.0),
    ("the", ("Paris",), False, 0.0),
    ("Paris", (), False, 0.0),
    ("Paris", ("東京",), False, 0.0),
    ("", ("東京",), False, 0.0),
    ("東京。", ("東京",), True, 1.0),
    ("МОСКВА", ("Москва",), True, 1.0),
    ("$5 million", ("5 million",), True, 1.0),
    ("a+b", ("ab",), True, 1.0),
]


@pytest.mark.parametrize(("text", "names", "exact", "f1"), SQUAD)
def test_exact_match_and_f1_by_hand(
    text: str, names: tuple[str, ...], exact: bool, f1: float
) -> None:
    assert exact_match(text, names) is exact
    assert f1_score(text, names) == pytest.approx(f1)


@given(st.text(), st.lists(st.text(), max_size=3))
def test_f1_is_one_just_where_the_words_are_those_of_a_name(text: str, names: list[str]) -> None:
    score = f1_score(text, names)
    assert 0 <= score <= 1
    if exact_match(text, names):
        assert score == 1
    if exact_match(text, [text]):  # of a text without words nothing is right
        assert f1_score(text, [*names, text]) == 1
    assert score == max([f1_score(text, [name]) for name in names], default=0)
